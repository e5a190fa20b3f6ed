"""Rollouts of any number outside of memory: where the explorer and the funnel put what they go back to."""

from __future__ import annotations

import tempfile
import threading
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, islice
from typing import TYPE_CHECKING, Any

from labkit.errors import LabError
from labkit.stages.rollouts import ROWS, Rollout, rollouts_of, table_of

if TYPE_CHECKING:
    import pyarrow


class RolloutSpool:
    """Rollouts by their places, in a file without a name that is gone with the object.

    As long as they take less than 32 MB they stay in memory. What becomes of the store that they come from doesn't matter.
    """

    def __init__(self) -> None:
        """Hold none yet."""
        self._file = tempfile.SpooledTemporaryFile(max_size=1 << 25)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()
        self._begins, self._ends = [0], [0]
        """Where each part begins in the file, and how many rollouts stand before it; then where the next one does."""
        self._last: tuple[int, Any] = (-1, None)

    def __len__(self) -> int:
        return self._ends[-1]

    def append(self, table: pyarrow.Table) -> None:
        """Put some thousand behind the others, a table that a store gave. Raises LabError where the disk has no room for them."""
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer:
            writer.write_table(table)
        try:
            with self._lock:
                self._file.seek(self._begins[-1])
                self._file.write(sink.getvalue())
                self._begins.append(self._file.tell())
        except OSError as error:
            raise LabError(
                f"{len(self):,} rollouts and more need room in '{tempfile.gettempdir()}' ({error.strerror}); make some, or set "
                "TMPDIR to a folder that has it"
            ) from error
        self._ends.append(self._ends[-1] + len(table))

    def extend(self, rollouts: Iterable[Rollout]) -> None:
        """Put these behind the others."""
        for _, alike in groupby(rollouts, key=lambda rollout: id(rollout.spec)):
            while batch := list(islice(alike, ROWS)):
                self.append(table_of(batch))

    def take(self, places: Iterable[int]) -> Iterator[Rollout]:
        """The rollouts at these places, in their order; quick where neighbours are asked for together."""
        for part, wanted in self._parted(places):
            last = self._last  # which another thread may replace at any moment
            if last[0] != part:
                last = self._last = (part, self._read(part))
            yield from rollouts_of(last[1].take(wanted))

    def texts(self, places: Iterable[int]) -> Iterator[str]:
        """The texts of the same."""
        for part, wanted in self._parted(places):
            yield from self._read(part, "text")["text"].take(wanted).to_pylist()

    def _parted(self, places: Iterable[int]) -> Iterator[tuple[int, list[int]]]:
        """Each part in its turn, and which of its rollouts are wanted."""
        for part, wanted in groupby(places, key=lambda place: bisect_right(self._ends, place) - 1):
            yield part, [place - self._ends[part] for place in wanted]

    def _read(self, part: int, *names: str) -> pyarrow.Table:
        import pyarrow as pa

        begin, end = self._begins[part : part + 2]
        with self._lock:
            self._file.seek(begin)
            packed = self._file.read(end - begin)
        schema = pa.ipc.open_file(packed).schema
        only = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
        return pa.ipc.open_file(packed, options=only).read_all()


class SpooledRollouts(Sequence[Rollout]):
    """Some of a spool's rollouts in an order of their own, each read when it is asked for."""

    def __init__(self, spool: RolloutSpool, places: Sequence[int]) -> None:
        """Those at these places."""
        self._spool, self._places = spool, array("q", places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, place: Any) -> Any:
        found = self._spool.take(self._places[place] if isinstance(place, slice) else [self._places[place]])
        return list(found) if isinstance(place, slice) else next(found)

    def __iter__(self) -> Iterator[Rollout]:
        return self._spool.take(self._places)
