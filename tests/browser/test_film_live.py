"""The real video in JupyterLab: its frames at the second of the sheet, its sound, and the sheet where it cannot be played."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.browser.conftest import CHROMIUM
from tests.browser.pages import frame_shown, run_in_jupyterlab, write_notebook
from tests.data.films import CONSTANT, VARIABLE, expected, film, with_sound

pytestmark = [
    pytest.mark.skipif(not CHROMIUM, reason="no chromium to look with: install it, or name it in $CHROMIUM"),
    pytest.mark.xdist_group("browser"),
    pytest.mark.slow,
]
FILM = ".lk-film"


@pytest.fixture(scope="module")
def sight(server: tuple[str, Path], browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A notebook that scrubs: a film of the server's folder whose sound begins early, one from elsewhere, one that is no film."""
    address, work = server
    with_sound(film(work / "silent.mp4", VARIABLE), work / "with sound.mp4", lead=0.6)
    elsewhere = film(tmp_path_factory.mktemp("elsewhere") / "b.mp4", CONSTANT)
    film(work / "old.mp4", CONSTANT, codec="mpeg4")
    film(work / "old.avi", CONSTANT, codec="mpeg4")
    cells = [f"from labkit import scrub\nscrub({str(path)!r}, {{'truth': (2, 4), 'answer': (1, 4)}})"
             for path in ("with sound.mp4", elsewhere, "old.mp4", "old.avi")]  # fmt: skip
    write_notebook(work / "films.ipynb", *cells)
    page = run_in_jupyterlab(browser, address, "films.ipynb")
    page.wait_for_function("document.querySelectorAll('.lk[data-media=ready]').length === 4", timeout=180_000)
    yield page
    page.close()


def go(page: Any, at: int, second: float) -> None:
    """Set the time of a scrubber and wait for its video."""
    page.evaluate("([at, time]) => document.querySelectorAll('.lk')[at].labkit.player.setTime(time)", [at, second])
    page.wait_for_function(
        "at => { const lk = document.querySelectorAll('.lk')[at];"
        " return lk.dataset.shows === 'film' && !lk.querySelector('video').seeking }", arg=at, timeout=15_000,
    )  # fmt: skip


def test_the_servers_film_shows_the_very_frame_of_each_second(sight: Any) -> None:
    sight.wait_for_selector('.lk[data-film="ready"]', timeout=20_000)
    assert "/files/with%20sound.mp4" in sight.locator(FILM).first.get_attribute("src")
    for second in (0.0, 3.3, 1.71, 5.0, 0.9):
        go(sight, 0, second)
        assert frame_shown(sight, FILM) == expected(VARIABLE, [second])[0], f"at {second} s"


def test_playing_moves_the_head_with_the_film_and_stops_where_it_is_told(sight: Any) -> None:
    go(sight, 0, 1.0)
    sight.get_by_role("button", name="answer: 1.0 to 4.0 s, IoU 0.67").first.dblclick(position={"x": 5, "y": 5})
    sight.wait_for_function("document.querySelector('.lk').dataset.playing === 'true'")
    assert sight.evaluate("document.querySelector('video').muted") is False
    sight.wait_for_function("document.querySelector('.lk').dataset.playing === 'false'", timeout=20_000)
    assert float(sight.locator(".lk-slider").first.get_attribute("aria-valuenow")) == 4.0
    assert sight.evaluate("document.querySelector('video').webkitAudioDecodedByteCount") > 0, "it had a sound"
    sight.locator(".lk-slider").first.focus()
    sight.keyboard.press("m")
    assert sight.evaluate("document.querySelector('video').muted") is True
    sight.keyboard.press("m")


def test_a_film_from_elsewhere_comes_from_the_kernel(sight: Any) -> None:
    sight.wait_for_function("document.querySelectorAll('.lk')[1].dataset.film === 'ready'", timeout=20_000)
    assert sight.locator(FILM).nth(1).get_attribute("src").startswith("blob:")
    go(sight, 1, 2.6)


def test_what_a_browser_cannot_play_is_shown_by_its_sheet(sight: Any) -> None:
    for at in (2, 3):
        sight.evaluate("at => document.querySelectorAll('.lk')[at].labkit.player.setTime(3.1)", at)
        shown = sight.evaluate("at => ({...document.querySelectorAll('.lk')[at].dataset})", at)
        assert (shown["film"], shown["shows"], shown["frame"]) == ("none", "sheet", "6")
