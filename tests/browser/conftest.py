"""A browser, and a JupyterLab of its own for what is looked at with a kernel behind it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment, write_moments
from tests.browser.pages import WatchedPage
from tests.data.films import CONSTANT, film

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome") or ""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Its address and its folder, which holds three films and the moments that ask about them."""
    home = tmp_path_factory.mktemp("lab")
    work = home / "work"
    work.mkdir()
    for k in range(3):
        film(work / f"film-{k}.mp4", CONSTANT)
    asked = [Moment(f"q{k}", str(work / f"film-{k}.mp4"), f"thing {k}", (Span(2, 4),), 8.0) for k in range(3)]
    write_moments(asked, work / "moments.jsonl")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {f"JUPYTER_{name}_DIR": str(home / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    environment = os.environ | places | {"PYTHONPATH": str(ROOT), "IPYTHONDIR": str(home / "ipython")}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--expose-app-in-browser", "--allow-root"]
    command += [f"--ServerApp.port={port}", "--IdentityProvider.token=", "--ServerApp.port_retries=0"]
    command += [f"--ServerApp.root_dir={work}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class="
                "jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    with (
        open(home / "server.log", "w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=work) as process,
    ):
        address = f"http://127.0.0.1:{port}"
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"{address}/api", timeout=2).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or process.poll() is not None:
                        pytest.fail(f"JupyterLab does not answer: {(home / 'server.log').read_text()[-2000:]}")
                    time.sleep(0.3)
            yield address, work
        finally:
            process.terminate()
            process.wait(20)


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """The one browser for all: Playwright does not start twice in a thread."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield found
        found.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Callable[..., WatchedPage]]:
    """Opens a file, and in the end makes sure that nothing ran or was asked for, and nothing went wrong where it is `quiet`."""
    opened: list[tuple[WatchedPage, bool]] = []

    def open_page(
        file: Path, ready: str = "", width: int = 1280, scheme: str = "light", quiet: bool = True
    ) -> WatchedPage:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        shown = WatchedPage(context.new_page())
        shown.page.goto(file.as_uri())
        if ready:
            shown.page.wait_for_selector(ready, timeout=20_000)
        opened.append((shown, quiet))
        return shown

    yield open_page
    for shown, quiet in opened:
        assert shown.page.evaluate("window.hits") == 0
        assert shown.requests == []
        assert not quiet or shown.trouble == []
        shown.page.context.close()
