from __future__ import annotations

import functools
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from labkit.data.video import decode_worker, prefetch
from labkit.data.video.frames import FrameCache, read_frames, resize
from labkit.data.video.prefetch import PrefetchPool, PrefetchWorker
from labkit.errors import LabError
from tests.data.films import CONSTANT, HEIGHT, WIDTH, film, numbers

TIMES = [0.0, 0.5, 1.0]
AS_THEY_ARE = (HEIGHT, WIDTH)  # frames that need no resizing spare the reader torch, and the test its start
ODD = """
import os, time
from labkit.data.video import decoders
from labkit.data.video import prefetch

decode_with_pyav = decoders.decode_with_pyav

def odd(path, *rest):
    if "hangs" in path:
        time.sleep(600)
    if "dies" in path:
        os.abort()
    return decode_with_pyav(path, *rest)

decoders.decode_with_pyav = odd
prefetch.serve(prefetch._handle)
"""


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool whose processes hang in, or die of, files of such names."""
    monkeypatch.setattr(prefetch, "_COMMAND", [sys.executable, "-c", ODD])


@pytest.fixture
def cache(tmp_path: Path) -> FrameCache:
    return FrameCache(tmp_path / "cache")


@pytest.fixture
def opened() -> Iterator[Callable[..., PrefetchPool]]:
    made: list[PrefetchPool] = []

    def make(processes: int = 1, deadline: float = 60.0) -> PrefetchPool:
        made.append(PrefetchPool(processes, deadline))
        return made[-1]

    yield make
    for each in made:
        each.close()
    until(lambda: not children(), "all readers have ended")


def clips(folder: Path, *names: str) -> dict[str, str]:
    return {name: str(film(folder / f"{name}.mp4", CONSTANT[: 30 + k])) for k, name in enumerate(names)}


def job(cache: FrameCache, path: str, size: tuple[int, int] = AS_THEY_ARE) -> Callable[[PrefetchWorker], None]:
    return functools.partial(_read, cache, path, size)


def _read(cache: FrameCache, path: str, size: tuple[int, int], reader: PrefetchWorker) -> None:
    reader.frames(cache, path, TIMES, size)


def children() -> list[psutil.Process]:
    return [each for each in psutil.Process().children() if "prefetch" in _command(each)]


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""  # it has ended just now


def until(holds: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + 60
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)
    return found


@pytest.mark.slow
def test_what_is_wanted_is_found_on_disk_and_this_process_opens_no_video(
    tmp_path: Path, cache: FrameCache, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, small = clips(tmp_path, "a", "b", "c"), (48, 80)
    expected = {name: resize(read_frames(path, TIMES).rgb, small) for name, path in paths.items()}
    for name in ("decode", "measure"):
        monkeypatch.setattr(decode_worker, name, None)
    pool = opened(2)
    jobs = [(name, job(cache, path, small)) for name, path in paths.items()]
    pool.schedule(jobs)
    for name, work in jobs:
        pool.wait_for(name, work)
    assert (cache.decoded, cache.hits) == (3, 0)
    assert all(np.array_equal(cache.get(path, TIMES, small).rgb, expected[name]) for name, path in paths.items())
    assert (cache.decoded, cache.hits) == (3, 3)


def test_what_is_on_disk_already_starts_no_process(tmp_path: Path, cache: FrameCache, opened: Any) -> None:
    path = clips(tmp_path, "a")["a"]
    cache.info(path)
    cache.get(path, TIMES, AS_THEY_ARE)
    pool = opened()
    pool.wait_for("a", job(cache, path))
    assert children() == [] and cache.decoded == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "hangs",
            "hangs.mp4 hangs between second 0.00 and 1.00: its reader was not done after 1 s, and ended; .* raise video_deadline",
        ),
        ("dies", "dies.mp4 cost its reader's life between second 0.00 and 1.00 .ended by signal 6.; convert it"),
        ("text", "text.mp4 cannot be opened .*; replace the file"),
        ("gone", "gone.mp4 is not there; put the file there"),
    ],
)
@pytest.mark.usefixtures("odd")
def test_a_bad_clip_is_named_and_costs_no_other(
    tmp_path: Path, cache: FrameCache, opened: Any, name: str, words: str
) -> None:
    paths = clips(tmp_path, "a", "hangs", "dies", "b") | {n: str(tmp_path / f"{n}.mp4") for n in ("text", "gone")}
    Path(paths["text"]).write_text("once upon a time " * 100)
    pool = opened(1, deadline=1.0)
    jobs = {each: job(cache, paths[each]) for each in ("a", name, "b")}
    pool.schedule(jobs.items())
    pool.wait_for("a", jobs["a"])
    pool.wait_for("b", jobs["b"])  # the bad one stands in the middle, and nobody has asked for it yet
    with pytest.raises(LabError, match=words):
        pool.wait_for(name, jobs[name])
    assert cache.decoded == 2
    assert numbers(cache.get(paths["b"], TIMES, AS_THEY_ARE).rgb) == [0, 12, 25]


@pytest.mark.usefixtures("odd")
def test_a_clip_that_was_mended_is_read_when_it_is_asked_for_again(
    tmp_path: Path, cache: FrameCache, opened: Any
) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("not yet")
    pool = opened()
    with pytest.raises(LabError, match="cannot be opened"):
        pool.wait_for("a", job(cache, str(path)))
    clips(tmp_path, "a")
    pool.wait_for("a", job(cache, str(path)))
    assert cache.decoded == 1


def test_a_reader_that_cannot_start_is_no_videos_fault(
    tmp_path: Path, cache: FrameCache, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "_COMMAND", [sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(LabError, match="could not be started .ended by exit code 1.; try .* set readers to 0"):
        opened().wait_for("a", job(cache, clips(tmp_path, "a")["a"]))


def test_clips_are_read_in_the_order_told_once_each_and_what_is_asked_for_goes_first(opened: Any) -> None:
    done: list[str] = []
    begun, go_on = threading.Event(), threading.Event()

    def note(name: str) -> tuple[str, Callable[[PrefetchWorker], None]]:
        return name, lambda reader: done.append(name)

    def hold(reader: PrefetchWorker) -> None:
        begun.set()
        go_on.wait(60)
        done.append("held")

    pool = opened(1)
    pool.schedule([("held", hold), note("old")])
    begun.wait(60)
    pool.schedule([("held", hold), note("a"), note("b"), note("c"), note("a")])  # and "old" is not wanted any more
    threading.Timer(0.2, go_on.set).start()
    pool.wait_for(*note("c"))
    pool.wait_for(*note("b"))
    pool.wait_for(*note("held"))
    assert done == ["held", "c", "a", "b"]


@pytest.mark.usefixtures("odd")
def test_an_interrupt_ends_the_wait_and_leaves_the_readers_at_work(
    tmp_path: Path, cache: FrameCache, opened: Any
) -> None:
    paths = clips(tmp_path, "a", "hangs")
    pool = opened(2)
    pool.schedule([("hangs", job(cache, paths["hangs"]))])
    (process,) = until(children, "the reader has started")
    assert os.getpgid(process.pid) != os.getpgid(0), "a kernel's interrupt goes to all of its process group"
    interrupt = [threading.main_thread().ident, signal.SIGINT]
    threading.Timer(0.2, signal.pthread_kill, interrupt).start()
    with pytest.raises(KeyboardInterrupt):
        pool.wait_for("hangs", job(cache, paths["hangs"]))
    pool.wait_for("a", job(cache, paths["a"]))
    assert cache.decoded == 1 and process.is_running()


@pytest.mark.usefixtures("odd")
def test_a_dropped_pool_ends_its_processes_whatever_they_do(tmp_path: Path, cache: FrameCache) -> None:
    paths = clips(tmp_path, "hangs")
    pool = PrefetchPool(1, 600.0)
    pool.schedule([("hangs", job(cache, paths["hangs"]))])
    until(children, "the reader has started")
    del pool
    gc.collect()
    until(lambda: not children(), "it has ended")


@pytest.mark.parametrize("end", ["killed", "ends"])
def test_readers_end_with_their_program_however_it_ends(tmp_path: Path, end: str) -> None:
    path = clips(tmp_path, "hangs")["hangs"]
    script = f"""
import sys, time
from labkit.data.video import prefetch
from tests.data.video.test_prefetch import ODD, FrameCache, children, job, until

prefetch._COMMAND = [sys.executable, "-c", ODD]
pool = prefetch.PrefetchPool(1, 600.0)
pool.schedule([("hangs", job(FrameCache({str(tmp_path / "cache")!r}), {path!r}))])
print(until(children, "the reader has started")[0].pid, flush=True)
time.sleep({60 if end == "killed" else 0})
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    with parent:
        assert parent.stdout is not None
        reader = psutil.Process(int(parent.stdout.readline()))
        if end == "killed":
            parent.kill()
        parent.wait(60)
    until(lambda: not reader.is_running() or reader.status() == psutil.STATUS_ZOMBIE, "the reader has ended")


def test_readers_that_rest_are_ended_and_come_back(
    tmp_path: Path, cache: FrameCache, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "IDLE_SECONDS", 0.1)
    paths = clips(tmp_path, "a", "b")
    pool = opened()
    for done, (name, path) in enumerate(paths.items(), 1):
        pool.wait_for(name, job(cache, path))
        assert cache.decoded == done
        until(lambda: not children(), "it has gone to rest")
