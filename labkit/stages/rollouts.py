"""Rollouts: the one record of a chain that training, harvest and evaluation write, and that filters, scores and views read.

A store is a folder of parquet files. Each training step is a part of its own, written whole or not at all, so that a
killed run neither loses nor doubles a rollout: the resumed run writes the same step over it. An evaluation writes a part
for each batch, all of step 0. What reads a whole store does so some thousand rows at a time, so that its size is bounded
by the disk.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.chain.rewards import OwnValue, RewardSpec
from labkit.data.rows import gc_paused
from labkit.errors import LabError
from labkit.files import replacing

if TYPE_CHECKING:
    import pandas
    import pyarrow
    import pyarrow.parquet as parquet

PART = re.compile(r"part-(\d{6,})(?:-\w+)?\.parquet")
JOINED = "rollouts.parquet"
ROWS = 4096
"""Rows that are read, and joined, at a time."""
PROVENANCE = b"labkit.origin"
"""Key of a file's metadata for what its rollouts depend on (`labkit.stages.completions.Provenance`)."""
REWARD = b"labkit.reward"
"""Key of a file's metadata for the reward that its rollouts were scored with."""
CPU_SECONDS = b"labkit.cpu_seconds"
"""Key of a file's metadata for the processor time that its rollouts took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """One chain as a model wrote it, where it comes from and what it earned.

    An evaluation pays nothing, nor does a probe: its rewards, total and advantage are NaN (`UNPAID`), and an evaluation's step is 0.
    """

    run: str
    """Name of the run that sampled it."""
    stage: str
    """base, harvester, grpo, distill, sft or grpo_final."""
    step: int
    """Training step, from 1; the policy that sampled it had seen `step - 1` updates. The part of a harvest; 0 in an evaluation.
    Of a probe the updates that the policy had seen, 0 before the first."""
    qid: str
    """The moment that the prompt asks for."""
    sample: int
    """Place in the group, from 0."""
    seed: int
    """Seed of the run."""
    checkpoint: str
    """The weights that sampled it, or the weights it started from while training changes them."""
    text: str
    """The completion as written, special tokens removed."""
    status: str
    """How the parser read it, one of `labkit.chain.anchors.STATUSES`."""
    reward_format: float
    reward_answer: float
    reward_anchors: float
    reward_progress: float
    reward_option: float = 0.0
    """0 where the moment has no options."""
    total: float
    """Weighted sum of the five terms."""
    advantage: float
    """What the update used: the total relative to its group."""
    prompt_tokens: int
    """Length of the prompt, video tokens included."""
    completion_tokens: int
    finished: bool
    """False when the token limit cut the text off."""
    question: str = ""
    """Of an evaluation: `labkit.stages.completions.question_digest` of the moment, by which a changed question is asked again."""
    spec: RewardSpec | None = field(default=None, compare=False, repr=False)
    """What it was paid by; None where that was not recorded. A store keeps it once a file."""
    own: Mapping[str, OwnValue] = field(default_factory=dict, hash=False)
    """What the user's own terms said, by name; in a store columns `reward_NAME` and `reason_NAME`."""

    @property
    def key(self) -> tuple[int, str, int]:
        """The key of this rollout in its store: (step, qid, sample)."""
        return (self.step, self.qid, self.sample)


_COLUMNS = tuple(each for each in fields(Rollout) if each.name not in ("spec", "own"))
NAMES = tuple(each.name for each in _COLUMNS)
_SHARED = frozenset(each.name for each in _COLUMNS if each.type == "str") - {"text"}
LATER: dict[str, float | str] = {"reward_option": 0.0, "question": ""}
"""Columns that stores of earlier versions lack, and their values then."""
UNPAID: dict[str, Any] = {
    name: math.nan for name in NAMES if name.startswith("reward_") or name in ("total", "advantage")
}
"""Values of the fields of a reward where there is none."""
OWN = ("reward_", "reason_")
"""How the two columns of a user's own term begin."""
_NONE: Mapping[str, OwnValue] = {}


class RolloutStore:
    """The rollouts of one stage, or of one evaluation, in a folder."""

    def __init__(self, folder: str | Path) -> None:
        """Nothing is read or made yet."""
        self.folder = Path(folder)

    def __repr__(self) -> str:
        return f"RolloutStore('{self.folder}', {len(self.steps())} steps)"

    def write(
        self,
        step: int,
        rollouts: Iterable[Rollout],
        provenance: Mapping[str, Any] | None = None,
        batch: str = "",
        cpu_seconds: float | None = None,
    ) -> Path:
        """Write a step's rollouts; a step that was there before is replaced, or of a step in batches the batch of that name.

        `provenance`, plain data, is kept in the file's metadata; `provenances` reads it back. So is the reward spec of the
        rollouts, which those that are read have again, and `cpu_seconds`, the processor time that they took.
        Raises ValueError when a rollout belongs to another step, two of them have the same key, or they differ in their spec.
        """
        import pyarrow.parquet as parquet

        rollouts = list(rollouts)
        seen = set()
        for rollout in rollouts:
            if rollout.step != step:
                raise ValueError(f"rollout {rollout.key} (step, qid, sample) cannot be written as step {step}")
            if rollout.key in seen:
                raise ValueError(f"step {step} holds rollout {rollout.key} (step, qid, sample) twice")
            seen.add(rollout.key)
            if rollout.spec != rollouts[0].spec:
                raise ValueError(f"step {step}: rollout {rollout.key} was paid by another spec than {rollouts[0].key}")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"part-{step:06d}{'-' * bool(batch)}{batch}.parquet"
        table = table_of(rollouts)
        table = table.replace_schema_metadata(
            (table.schema.metadata or {})
            | ({} if provenance is None else {PROVENANCE: _plain(provenance)})
            | ({} if cpu_seconds is None else {CPU_SECONDS: str(cpu_seconds)})
        )
        with replacing(path) as temporary:
            parquet.write_table(table, temporary)
        return path

    def steps(self) -> list[int]:
        """The steps that have rollouts, in order."""
        return sorted({*self._parts(), *self._joined_steps()})

    def truncate(self, after_step: int) -> None:
        """Forget every step behind `after_step`: a run resumed from that checkpoint samples them again."""
        import pyarrow as pa
        import pyarrow.compute as compute
        import pyarrow.parquet as parquet

        for step, paths in self._parts().items():
            for path in paths if step > after_step else ():
                path.unlink()
        if any(step > after_step for step in self._joined_steps()):
            table = pa.concat_tables(_batches(self.folder / JOINED))
            table = table.filter(compute.less_equal(table["step"], after_step))
            with replacing(self.folder / JOINED) as temporary:
                parquet.write_table(table.replace_schema_metadata(_notes(self.folder / JOINED)), temporary)

    def provenances(self) -> list[dict[str, Any]]:
        """The different provenances of the rollouts; steps without one are passed over."""
        notes = dict.fromkeys(_notes(path).get(PROVENANCE) for path in self.files())
        return [json.loads(note) for note in notes if note is not None]

    def specs(self) -> list[RewardSpec | None]:
        """The different specs that the rollouts were paid by; None among them where some have no record of it."""
        return [_spec(note) for note in dict.fromkeys(_notes(path).get(REWARD) for path in self.files())]

    def cpu_seconds(self) -> float | None:
        """Processor time of all rollouts; None where that of any was not recorded."""
        files = self.files()
        if set(self._parts()) <= set(self._joined_steps()):  # what a kill between joining and removing leaves twice
            files = files[:1]
        noted = [_notes(path).get(CPU_SECONDS) for path in files]
        return math.fsum(map(float, filter(None, noted))) if noted and all(noted) else None

    def qid_counts(self) -> dict[int, dict[str, int]]:
        """By step and qid, how many rollouts there are; no text is read."""
        counts: dict[int, dict[str, int]] = {}
        for table in self.tables(("step", "qid")):
            for step, qid in zip(table["step"].to_pylist(), table["qid"].to_pylist(), strict=True):
                qids = counts.setdefault(step, {})
                qids[qid] = qids.get(qid, 0) + 1
        return counts

    def read(self) -> list[Rollout]:
        """Every rollout, ordered by step and, inside a step, as written; batches of a step in the order of their names."""
        with gc_paused():
            return list(self.stream())

    def stream(self) -> Iterator[Rollout]:
        """The same as an iterator, which holds some thousand at most."""
        for table in self.tables():
            yield from rollouts_of(table)

    def newest(self) -> list[Rollout]:
        """The rollouts of the last step; while a stage goes on, no other step is read."""
        import pyarrow.compute as compute

        if parts := self._parts():  # what has been joined is never newer
            return [each for path in parts[max(parts)] for each in read_file(path)]
        last = max(self._joined_steps(), default=0)
        newest = [table.filter(compute.equal(table["step"], last)) for table in self.tables()]
        return [each for table in newest for each in rollouts_of(table)]

    def frame(self) -> pandas.DataFrame:
        """The same as a pandas table, one row a rollout."""
        return self.table().to_pandas()

    def table(self) -> pyarrow.Table:
        """The same as a pyarrow table."""
        import pyarrow as pa

        return pa.concat_tables([table_of([], self._own_names()), *self.tables()], promote_options="default")

    def compact(self) -> None:
        """Join all parts into one file, when a stage has ended. A kill in between loses and doubles nothing."""
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parts = self._parts()
        if not parts:
            return
        provenances, specs = self.provenances(), self.specs()
        notes = {PROVENANCE: _plain(provenances[-1])} if provenances else {}
        if len(specs) == 1 and specs[0] is not None:  # of several none is true of all
            notes[REWARD] = _plain(specs[0].as_dict())
        if (cpu_seconds := self.cpu_seconds()) is not None:
            notes[CPU_SECONDS] = str(cpu_seconds)
        empty = table_of([], self._own_names())
        schema = empty.schema.with_metadata(notes)

        def joined(tables: list[pa.Table]) -> pa.Table:
            return pa.concat_tables([empty, *tables], promote_options="default").combine_chunks()

        with replacing(self.folder / JOINED) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
            waiting: list[pa.Table] = []
            for table in self.tables():
                waiting.append(table)
                if sum(map(len, waiting)) >= ROWS:
                    writer.write_table(joined(waiting))
                    waiting = []
            if waiting:
                writer.write_table(joined(waiting))
        for path in (path for paths in parts.values() for path in paths):
            path.unlink()

    def files(self) -> list[Path]:
        """The parquet files that are there, in the order in which they are read."""
        joined = self.folder / JOINED
        return ([joined] if joined.exists() else []) + [
            path for _, paths in sorted(self._parts().items()) for path in paths
        ]

    def tables(self, names: Sequence[str] = ()) -> Iterator[pyarrow.Table]:
        """All rows, some thousand at a time, by step; `names` are the columns to read, `step` among them."""
        import pyarrow.compute as compute

        parts = self._parts()
        waiting = sorted(parts, reverse=True)
        joined = self.folder / JOINED
        # A part is newer than the joined file, or the same where a kill came between joining and removing.
        for table in _batches(joined, names) if joined.exists() else ():
            steps = compute.unique(table["step"]).to_pylist()
            if parts.keys().isdisjoint(steps) and not (waiting and waiting[-1] < steps[-1]):
                yield table
                continue
            for step in steps:
                while waiting and waiting[-1] <= step:
                    for path in parts[waiting.pop()]:
                        yield from _batches(path, names)
                if step not in parts:
                    yield table.filter(compute.equal(table["step"], step))
        for step in reversed(waiting):
            for path in parts[step]:
                yield from _batches(path, names)

    def _own_names(self) -> list[str]:
        """The user's own terms that any file has a column of."""
        found: dict[str, None] = {}
        for path in self.files():
            with _open(path) as file:
                found |= dict.fromkeys(_own_names(file.schema_arrow.names))
        return list(found)

    def _parts(self) -> dict[int, list[Path]]:
        parts: dict[int, list[Path]] = {}
        for path in sorted(self.folder.glob("part-*.parquet")):
            if match := PART.fullmatch(path.name):
                parts.setdefault(int(match[1]), []).append(path)
        return parts

    def _joined_steps(self) -> list[int]:
        joined = self.folder / JOINED
        if not joined.exists():
            return []
        return sorted({step for table in _batches(joined, ("step",)) for step in table["step"].to_pylist()})


def read_file(path: Path) -> list[Rollout]:
    """The rollouts of one file of a store."""
    return [each for table in _batches(path) for each in rollouts_of(table)]


def _open(path: Path) -> parquet.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    try:
        # Read ahead, all columns of a file would be held until its last row.
        return parquet.ParquetFile(path, pre_buffer=False)
    except (pa.ArrowInvalid, OSError) as error:
        raise LabError(f"'{path}' cannot be read as parquet ({error}); remove it, run the stage again") from error


def _notes(path: Path) -> dict[bytes, bytes]:
    """A file's metadata: provenance, reward spec and processor time, where it has them."""
    keys = (PROVENANCE, REWARD, CPU_SECONDS)
    with _open(path) as file:
        return {key: note for key, note in (file.schema_arrow.metadata or {}).items() if key in keys}


def _plain(note: Mapping[str, Any]) -> str:
    return json.dumps(dict(note), sort_keys=True)


@functools.cache
def _spec(note: bytes | None) -> RewardSpec | None:
    """A spec from metadata; None where there is none, or one of another version of labkit that means nothing here."""
    try:
        return None if note is None else RewardSpec(**json.loads(note))
    except (TypeError, ValueError, LabError):
        return None


def _batches(path: Path, names: Sequence[str] = ()) -> Iterator[pyarrow.Table]:
    """Rows of a file, some thousand at a time, with every column that a rollout has today or with `names` alone."""
    import pyarrow as pa

    with _open(path) as file:
        there = set(file.schema_arrow.names)
        wanted = names or (*NAMES, *_own_columns(_own_names(file.schema_arrow.names)))
        note = (file.schema_arrow.metadata or {}).get(REWARD)
        missing = [name for name in wanted if name not in there and name not in LATER]
        if missing:
            raise LabError(
                f"'{path}' has no column {', '.join(missing)}: it does not hold rollouts; remove it from the folder"
            )
        batches = file.iter_batches(ROWS, columns=[name for name in wanted if name in there])
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowInvalid, OSError) as error:
                raise LabError(f"'{path}' is damaged ({error}); remove it, run the stage again") from error
            if batch is None:
                return
            table = pa.Table.from_batches([batch]).replace_schema_metadata({} if note is None else {REWARD: note})
            for name, value in LATER.items():
                if name in wanted and name not in there:
                    table = table.append_column(name, pa.array([value] * len(table)))
            yield table.select(wanted)


def _own_names(columns: Sequence[str]) -> list[str]:
    """The user's own terms among the columns of a file."""
    value, reason = OWN
    names = [name.removeprefix(value) for name in columns if name.startswith(value) and name not in NAMES]
    return [name for name in names if reason + name in columns]


def _own_columns(own: Iterable[str]) -> list[str]:
    return [prefix + name for name in own for prefix in OWN]


def _own_values(columns: Mapping[str, Sequence[Any]], rows: int) -> list[Mapping[str, OwnValue]]:
    """What the user's own terms said of each row; a row of a file without a term has nothing of it."""
    if not (own := _own_names(list(columns))):
        return [_NONE] * rows
    pairs = [zip(*(columns[prefix + name] for prefix in OWN), strict=True) for name in own]
    return [
        {name: OwnValue(*pair) for name, pair in zip(own, row, strict=True) if pair[0] is not None}
        for row in zip(*pairs, strict=True)
    ]


def rollouts_of(table: pyarrow.Table) -> list[Rollout]:
    """The rollouts of some rows of a store."""
    columns = table.to_pydict()
    columns["own"] = _own_values(columns, len(table))
    columns["spec"] = [_spec((table.schema.metadata or {}).get(REWARD))] * len(table)
    # Slot by slot, which takes half the time of `Rollout(**...)`; a rollout has nothing to check.
    rollouts = [object.__new__(Rollout) for _ in range(len(table))]
    same: dict[Any, Any] = {}
    for name in (*NAMES, "spec", "own"):
        put = getattr(Rollout, name).__set__
        # Names that many rollouts share are held once: a fifth of the memory that they take.
        values = [same.setdefault(each, each) for each in columns[name]] if name in _SHARED else columns[name]
        for rollout, value in zip(rollouts, values, strict=True):
            put(rollout, value)
    return rollouts


def table_of(rollouts: Sequence[Rollout], own: Iterable[str] = ()) -> Any:
    """Rollouts that were paid by one spec as a table, with the columns of their own terms and of `own`."""
    import pyarrow as pa

    types = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    named = list(dict.fromkeys([*own, *(name for rollout in rollouts for name in rollout.own)]))
    fields_ = [(each.name, types[str(each.type)]) for each in _COLUMNS]
    columns = [[getattr(rollout, name) for rollout in rollouts] for name in NAMES]
    for name in named:
        values = [rollout.own.get(name) for rollout in rollouts]
        columns += [[each and each.value for each in values], [each and each.reason for each in values]]
        fields_ += zip(_own_columns([name]), (pa.float64(), pa.string()), strict=True)
    spec = rollouts[0].spec if rollouts else None
    schema = pa.schema(fields_, None if spec is None else {REWARD: _plain(spec.as_dict())})
    return pa.table([pa.array(column, type=kind) for column, kind in zip(columns, schema.types, strict=True)], schema)
