"""Native code that hangs or dies takes nothing along, wherever a video is opened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest

from labkit.chain.spans import Span
from labkit.data.moments import Moment
from labkit.data.video import decode_worker
from labkit.data.video.decode_worker import header_seconds
from labkit.data.video.frames import FrameCache, probe, read_frames, thumbnails
from labkit.data.video.worker_process import WorkerProcess
from labkit.errors import LabError
from labkit.views.explorer import widget as explorer_module
from labkit.views.explorer.scrubber import scrub
from labkit.views.explorer.sprites import SheetCache
from labkit.views.explorer.widget import explore
from labkit.views.figures.chain_strip import film as strip
from tests.data.films import CONSTANT, film, numbers

ODD = """
import os, time
from labkit.data.video import worker_process
from labkit.data.video import decode_worker
from labkit.data.video import decoders

def odd(native):
    def call(path, *rest):
        if "hangs" in str(path):
            time.sleep(600)
        if "dies" in str(path):
            os.abort()
        return native(path, *rest)
    return call

for name in ("open_container", "decord_reader"):
    setattr(decoders, name, odd(getattr(decoders, name)))
worker_process.serve(decode_worker._handle)
"""
DEADLINE = 1.0  # of what hangs; a good file, or one that ends its decoder, may take its time on a busy machine


def allow(seconds: float, patch: pytest.MonkeyPatch) -> None:
    for function in (read_frames, thumbnails, probe):
        patch.setitem(function.__kwdefaults__, "deadline", seconds)
    patch.setattr(header_seconds, "__defaults__", (seconds,))
    patch.setattr(FrameCache.__init__, "__defaults__", (seconds,))


@pytest.fixture
def odd(monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkerProcess]:
    """A decoder that hangs on, or dies of, files of such names."""
    worker = WorkerProcess([sys.executable, "-c", ODD], 60.0)
    monkeypatch.setattr(decode_worker._State, "worker", worker)
    allow(60.0, monkeypatch)
    yield worker
    worker.end()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("odd")
    return {
        name: str(film(folder / f"{name}.mp4", CONSTANT[: 50 + k])) for k, name in enumerate(("fine", "hangs", "dies"))
    }


def moment(path: str) -> Moment:
    return Moment(Path(path).stem, path, "a bar", (Span(0.5, 1.0),), 2.0)


WAYS: dict[str, Callable[[str, Path], object]] = {
    "read_frames": lambda path, _: read_frames(path, [0.5, 1.0]),
    "thumbnails": lambda path, _: thumbnails(path, [0.5, 1.0], 80),
    "probe": lambda path, _: probe(path),
    "the cache's frames": lambda path, folder: FrameCache(folder).get(path, [0.5, 1.0], (48, 80)),
    "the cache's measures": lambda path, folder: FrameCache(folder).info(path),
    "a sheet": lambda path, folder: SheetCache(folder).get(path, 2.0),
    "scrub": lambda path, _: scrub(path),
    "a figure's strip": lambda path, _: strip(moment(path)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("kind", "words"),
    [("hangs", r"hangs.*stood still for 1 s, and was ended"), ("dies", r"killed its decoder.*signal 6")],
)
def test_a_bad_file_ends_in_words_within_its_deadline(
    files: dict[str, str],
    odd: WorkerProcess,
    tmp_path: Path,
    way: str,
    kind: str,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    WAYS[way](files["fine"], tmp_path)  # the process is warm
    error, begin = f"{kind}.mp4 {words}.*; convert it to H.264 mp4 or leave its moments out", time.monotonic()
    with monkeypatch.context() as patch, pytest.raises(LabError, match=error) as caught:
        if kind == "hangs":
            allow(DEADLINE, patch)
        WAYS[way](files[kind], tmp_path)
    assert time.monotonic() - begin < 50, "what a good file is given, 60 s, was not waited for"
    if way in ("read_frames", "thumbnails", "the cache's frames"):
        assert "between second 0.50 and 1.00" in str(caught.value)
    assert numbers(read_frames(files["fine"], [1.0]).rgb) == [25], "whoever comes next finds another process"


def test_a_length_that_is_only_looked_up_is_none(files: dict[str, str], odd: WorkerProcess) -> None:
    assert header_seconds(files["hangs"], DEADLINE) == 0.0
    assert [header_seconds(files[name]) for name in ("fine", "dies")] == [2.0, 0.0]


@dataclass(frozen=True)
class Record:
    qid: str
    text: str
    status: str = "ok"


@pytest.mark.parametrize("error", [LabError("it hangs"), RuntimeError("it is odd")])
def test_a_bad_clip_is_told_in_its_place_and_kills_no_explorer(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    get = SheetCache.get

    def odd(self: SheetCache, video: str, *rest: float) -> object:
        if "hangs" in video:
            raise error
        return get(self, video, *rest)

    monkeypatch.setattr(explorer_module.SheetCache, "get", odd)
    moments = [moment(files["fine"]), moment(files["hangs"])]
    text = "<think>it</think><answer>0.5 to 1.0</answer>"
    shown = explore([Record(each.qid, text) for each in moments], moments)
    told = [clip.get("error", "") for clip in shown.clips.values()]
    assert len(told) == 2 and sum(str(error) in each for each in told) == 1


def test_frames_come_as_they_were_decoded(files: dict[str, str]) -> None:
    times = np.array([1.0, 0.0, 0.0, 1.9])
    there, here = read_frames(files["fine"], times), decode_worker._decode(files["fine"], times, None, None)
    assert np.array_equal(there.rgb, here.frames.rgb) and np.array_equal(there.times, here.frames.times)
    assert there.rgb.dtype == np.uint8 and there.rgb.flags.writeable


def test_threads_wait_for_each_other(files: dict[str, str]) -> None:
    found: dict[int, list[int]] = {}

    def read(k: int) -> None:
        found[k] = numbers(read_frames(files["fine"], [k / 10]).rgb)

    threads = [threading.Thread(target=read, args=[k]) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {k: [int(k / 0.4)] for k in range(8)}


def test_an_interrupt_leaves_no_answer_for_the_next_question(files: dict[str, str], odd: WorkerProcess) -> None:
    assert numbers(read_frames(files["fine"], [1.0]).rgb) == [25]
    threading.Timer(0.3, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        read_frames(files["hangs"], [0.0], deadline=60.0)
    assert numbers(read_frames(files["fine"], [0.5]).rgb) == [12]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_a_decoder_of_its_own(files: dict[str, str]) -> None:
    # In a program without threads: Python warns of a fork beside them.
    script = f"""
import os
from labkit.data.video import decode_worker
from labkit.data.video.frames import read_frames
from tests.data.films import numbers
assert numbers(read_frames({files["fine"]!r}, [1.0]).rgb) == [25]
own = decode_worker._State.worker.process.pid
child = os.fork()
if child == 0:
    right = numbers(read_frames({files["fine"]!r}, [0.5]).rgb) == [12] and decode_worker._State.worker.process.pid != own
    decode_worker._State.worker.end()
    os._exit(0 if right else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert numbers(read_frames({files["fine"]!r}, [1.0]).rgb) == [25] and decode_worker._State.worker.process.pid == own
"""
    subprocess.run(
        [sys.executable, "-W", "error", "-c", script], check=True, cwd=Path(__file__).parents[3], timeout=120
    )


@pytest.mark.parametrize("end", ["killed", "ends"])
@pytest.mark.slow
def test_the_decoder_ends_with_its_program_even_while_it_hangs(files: dict[str, str], end: str) -> None:
    script = f"""
import sys, threading, time
from labkit.data.video import decode_worker
from labkit.data.video.worker_process import WorkerProcess
from labkit.data.video.frames import read_frames
from tests.data.video.test_decode_worker import ODD
decode_worker._State.worker = WorkerProcess([sys.executable, "-c", ODD], 600.0)
threading.Thread(target=read_frames, args=[{files["hangs"]!r}, [0.0]], daemon=True).start()
while decode_worker._State.worker.process is None:
    time.sleep(0.01)
print(decode_worker._State.worker.process.pid, flush=True)
time.sleep({60 if end == "killed" else 1})
"""
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=Path(__file__).parents[3])
    with parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if end == "killed":
            parent.kill()
        parent.wait(60)
    deadline = time.monotonic() + 60
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline, "the decoder outlives its program"
        time.sleep(0.02)


def test_a_script_without_a_main_guard_reads_videos(files: dict[str, str], tmp_path: Path) -> None:
    # A pool of spawned processes would run the script again in each.
    script = tmp_path / "script.py"
    script.write_text(f"from labkit.data.video.frames import probe\nprint(probe({files['fine']!r}).frames)\n")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=120,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("50\n", 0), done.stderr


def test_a_decoder_that_cannot_start_is_no_videos_fault(
    files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decode_worker._State, "worker", WorkerProcess([sys.executable, "-c", "raise SystemExit(1)"], 5.0)
    )
    with pytest.raises(LabError, match="process that decodes videos could not be started .ended by exit code 1.; try"):
        read_frames(files["fine"], [0.0])
