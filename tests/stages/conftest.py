import pytest

from labkit.data.world import write_world
from labkit.policy.model import load_policy
from tests.stages import small


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 3, 1, 1)
    return folder


@pytest.fixture(scope="session")
def moments(world):
    from labkit.data.moments import read_moments

    return read_moments(world / "train.jsonl")


@pytest.fixture
def policy():
    return load_policy("embedded", device="cpu")


@pytest.fixture
def source(policy, moments, tmp_path_factory):
    return small.source(policy, moments, tmp_path_factory.getbasetemp() / "frames")
