"""The embedded world: small video files in which things happen at known times.

There are two editions of it. In the first (`labkit.embedded.first_edition`) a query takes one look at a clip of one scene. In the
second (`labkit.embedded.second_edition`) half of the queries take two: in which of three scenes, and when in it. The third is
the second with half of the queries for what happens twice.

Everything follows from the seed. The splits draw from disjoint ranges of seeds, and so do the embedded bases' own trainings.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

from labkit.data.moments import Moment, write_moments
from labkit.data.video.worker_process import available_cores
from labkit.embedded import first_edition, second_edition
from labkit.embedded.clips import write_mp4
from labkit.errors import LabError
from labkit.files import replacing

Task = Literal["grounding", "gqa"]

SEEDS_PER_SPLIT = 10**9
SPLITS = {"train": 0, "validation": 1, "test": 2, "base": 3}
"""Number of each split's range of seeds; `base` is where the embedded models' own training draws from."""


class Edition(NamedTuple):
    """What differs between the world's editions."""

    seconds: int
    """Of each clip."""
    draw: Callable[[int], Any]
    """What a clip shows, from its seed."""
    render_frames: Callable[[Any], Any]
    clip_moments: Callable[[Any, Path, Task], list[Moment]]
    tasks: tuple[Task, ...]


EDITIONS = {
    1: Edition(
        first_edition.SECONDS,
        first_edition.make_scene,
        first_edition.render_frames,
        lambda scene, path, task: first_edition.scene_moments(scene, path),
        ("grounding",),
    ),
    2: Edition(
        second_edition.SECONDS,
        second_edition.make_film,
        second_edition.render_frames,
        second_edition.clip_moments,
        ("grounding", "gqa"),
    ),
}
EDITIONS[3] = EDITIONS[2]._replace(draw=functools.partial(second_edition.make_film, twice=True), tasks=("grounding",))


def find_edition(number: int, task: Task = "grounding") -> Edition:
    """An edition of the world by its number; raises LabError when there is none, or it has no such task."""
    if number not in EDITIONS:
        raise LabError(f"edition is {number}; the embedded world has editions {', '.join(map(str, EDITIONS))}")
    if task not in EDITIONS[number].tasks:
        raise LabError(f"edition {number} of the embedded world has no questions of task {task}; take edition 2")
    return EDITIONS[number]


def clip_seed(split: str, index: int, seed: int = 0) -> int:
    """Seed of a split's clip. Ranges of different splits never meet; within a split, `seed` names one of 1,000 worlds.

    >>> clip_seed("test", 3, seed=2)
    2002000003
    """
    if not 0 <= seed < 1000:
        raise LabError(f"world_seed is {seed}; give a whole number from 0 to 999")
    if not 0 <= index < 10**6:
        raise LabError(f"a split of the embedded world holds at most 1,000,000 clips, and clip {index} was asked for")
    return SPLITS[split] * SEEDS_PER_SPLIT + seed * 10**6 + index


def moments_file(folder: Path, split: str, task: Task = "grounding") -> Path:
    """Where a world's questions of a split stand: `train.jsonl`, or `train-gqa.jsonl`."""
    return folder / (f"{split}.jsonl" if task == "grounding" else f"{split}-{task}.jsonl")


def world_folder(values: Mapping[str, Any]) -> str:
    """Name of the folder that runs of these parameters share: worlds of one size and seed are written once."""
    counts = (values[f"world_{split}"] for split in ("train", "validation", "test"))
    return "-".join([values["data"], *map(str, counts), f"seed{values['world_seed']}"])


def draw_moments(split: str, index: int, seed: int, edition: int, task: Task = "grounding") -> list[Moment]:
    """The moments of a split's clip, as `write_world` writes them into a folder, without a clip."""
    world = find_edition(edition, task)
    number = clip_seed(split, index, seed)
    return world.clip_moments(world.draw(number), Path(f"/{split}-{index:05d}-{number}.mp4"), task)


def write_world(
    folder: str | Path,
    train: int,
    validation: int,
    test: int,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    task: Task = "grounding",
    edition: int = 2,
) -> dict[str, list[Moment]]:
    """Write clips (`clips/*.mp4`) and the moments file of each split, see `moments_file`; return the moments by split.

    A clip that is already there is kept, and each moments file is written after its clips: a call that was killed is
    finished by the same call.

    `train`, `validation` and `test` are clips in the split, about four queries each; `seed` is 0 to 999. `progress` is called with
    (clips done, clips in all). Of edition 1 queries take one look, of 2 half of them two, of 3 half of them are for two times.
    Raises LabError where a count or the seed is out of range, there is no such edition, or it has no such task.
    """
    folder, world = Path(folder).resolve(), find_edition(edition, task)
    counts = {"train": train, "validation": validation, "test": test}
    for split, count in counts.items():
        if count < 1:
            raise LabError(f"the embedded world's {split} split is to hold {count} clips; give at least 1")
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    done, moments = 0, {}

    def write_clip(split: str, index: int) -> list[Moment]:
        number = clip_seed(split, index, seed)
        clip, path = world.draw(number), folder / "clips" / f"{split}-{index:05d}-{number}.mp4"
        if not path.exists():
            with replacing(path) as draft:
                write_mp4(draft, world.render_frames(clip))
        return world.clip_moments(clip, path, task)

    with ThreadPoolExecutor(available_cores()) as pool:  # the encoder works without the interpreter's lock
        for split, count in counts.items():
            rows: list[Moment] = []
            for more in pool.map(functools.partial(write_clip, split), range(count)):
                rows += more
                done += 1
                if progress:
                    progress(done, sum(counts.values()))
            write_moments(rows, moments_file(folder, split, task))
            moments[split] = rows
    return moments


def facts(moment: Moment) -> first_edition.SceneFacts | second_edition.FilmFacts | None:
    """What the simulator knows of a moment's clip; None for a moment that is not of this world."""
    return first_edition.facts(moment) or second_edition.facts(moment)
