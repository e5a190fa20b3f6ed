"""What holds for all tests."""

import signal

import pytest


def pytest_configure() -> None:
    """A shell that starts the tests in its background lets them ignore interrupts, and some tests interrupt themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def without_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notebooks leave static pictures out, a fifth of a short run's time; the tests of smoke.yaml itself look at them."""
    monkeypatch.setenv("BROWSER_PATH", "/no/browser")
