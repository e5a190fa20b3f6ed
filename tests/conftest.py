"""What holds for all tests."""

import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import hypothesis
import pytest

from labkit.quick_imports import quick_nbformat
from labkit.runs import notebooks
from tests import warm_kernels

quick_nbformat()  # before a module of tests loads it
LONGEST = ("test_notebooks",)

# A busy machine is no fault of what is tested.
hypothesis.settings.register_profile("labkit", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("labkit")


def pytest_configure(config: pytest.Config) -> None:
    """A shell's background and `nohup` let tests ignore signals that some of them send themselves."""
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, usual)
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False  # xdist would begin with the groups of most tests, not with the longest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several workers (`-n 2 --dist loadgroup`) make a module's fixtures once, and begin with what takes longest.

    Tests of one module that share a fixture of the module stay on one worker, unless they name a group of their own.
    The longest group comes first, then modules with slow tests, so that no worker is left with one when the other has nothing
    to do.
    """
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    for item in items:
        if not item.get_closest_marker("xdist_group") and _shares(item):
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    items.sort(key=lambda item: (item.path.stem not in LONGEST, item.path not in slow))


def _shares(item: pytest.Item) -> bool:
    """Whether a test needs a fixture that lives as long as its module."""
    info = getattr(item, "_fixtureinfo", None)
    known: dict[str, Sequence[pytest.FixtureDef]] = info.name2fixturedefs if info else {}
    return any(each.scope == "module" for each in [made[-1] for made in known.values() if made])


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks leave static pictures out, a fifth of a short run's time; the tests of smoke.yaml itself look at them."""
    monkeypatch.setenv("BROWSER_PATH", "/no/browser")


@pytest.fixture(scope="session")
def warm_kernels_socket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with warm_kernels.served(tmp_path_factory.mktemp("warm") / "socket") as socket:
        yield socket


@pytest.fixture(scope="module")
def in_warm_kernels(warm_kernels_socket: Path) -> Iterator[None]:
    """Notebooks start in a moment, see tests/warm_kernels.py, and leave static pictures out."""
    with pytest.MonkeyPatch.context() as patch:
        if warm_kernels.AVAILABLE:
            patch.setattr(notebooks, "_kernel_manager_class", lambda: warm_kernels.manager_class(warm_kernels_socket))
        patch.setenv("BROWSER_PATH", "/no/browser")
        yield
