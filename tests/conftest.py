"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """A shell that starts the tests in its background lets them ignore interrupts, and some tests interrupt themselves."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
