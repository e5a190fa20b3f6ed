import pytest
import torch

from labkit.data.moments import read_moments
from labkit.embedded.world import write_world
from labkit.policy.model import load_policy
from tests.stages import small


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """As the processes that are killed: with another number of threads, sums are rounded otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, 3, 1, 1, edition=1)
    return folder


@pytest.fixture(scope="session")
def moments(world):
    return read_moments(world / "train.jsonl")


@pytest.fixture
def policy():
    return load_policy("embedded", device="cpu")


@pytest.fixture(scope="session")
def source(moments, tmp_path_factory):
    """Every policy's prompts are these: the vision tower is frozen."""
    return small.source(load_policy("embedded", device="cpu"), moments, tmp_path_factory.getbasetemp() / "frames")
