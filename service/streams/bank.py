"""The streams of one version of one model in memory: which row is whose, and which was used last."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forecasting.stream import NOTHING, Layout, NotePass, RowArray, Streams
from service.model_slot import LoadedModel
from service.streams.store import Kept, Origin, Store

IntArray = NDArray[np.int64]

FIRST_ROWS = 64


class Bank:
    """Rows by the name of their series."""

    def __init__(self, model: LoadedModel, *, rewind: int, gap: int, note_pass: NotePass) -> None:
        self.model = model
        self.streams = Streams(model.forecaster, rewind=rewind, gap=gap, capacity=FIRST_ROWS, note_pass=note_pass)
        self._slots: dict[str, int] = {}
        self._names: list[str | None] = [None] * FIRST_ROWS
        self._free = list(range(FIRST_ROWS))
        self._used = np.zeros(FIRST_ROWS, dtype=np.int64)
        self._saved = np.full(FIRST_ROWS, NOTHING)
        self.origin = Origin(model.version, model.digest, self.streams.layout, _categories(model))

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def nbytes(self) -> int:
        """Return the bytes of all rows, those included that are free."""
        return len(self.streams.rows) * self.streams.bytes_each

    @property
    def n_free(self) -> int:
        """Return how many series more can be held as it is."""
        return len(self._free)

    def names(self) -> list[str]:
        """Return the series that are held."""
        return list(self._slots)

    def missing(self, unique_ids: Sequence[str]) -> list[str]:
        """Return the series that are not held, each once."""
        return [name for name in dict.fromkeys(unique_ids) if name not in self._slots]

    def slots(self, unique_ids: Sequence[str], group: int) -> IntArray:
        """Return the rows of series that are held, which are thereby used."""
        slots_B = np.array([self._slots[name] for name in unique_ids], dtype=np.int64)
        self._used[slots_B] = group
        return slots_B

    def admit(self, unique_ids: Sequence[str], group: int) -> IntArray:
        """Give series rows that hold nothing yet; there is room for them."""
        slots = [self._free.pop() for _ in unique_ids]
        for name, slot in zip(unique_ids, slots, strict=True):
            self._slots[name], self._names[slot] = slot, name
        slots_B = np.array(slots, dtype=np.int64)
        self.streams.clear(slots_B)
        self._used[slots_B], self._saved[slots_B] = group, NOTHING
        return slots_B

    def resize(self, capacity: int) -> None:
        """Have another number of rows, at least as many as series; fewer rows move together."""
        before = len(self.streams.rows)
        if capacity < before:
            self._compact()
        self.streams.resize(capacity)
        self._names = (self._names + [None] * capacity)[:capacity]
        self._used = np.resize(self._used, capacity)
        self._saved = np.resize(self._saved, capacity)
        self._free = [slot for slot in range(capacity) if self._names[slot] is None]

    def _compact(self) -> None:
        held = np.array(sorted(self._slots.values()), dtype=np.int64)
        n = len(held)
        names = [self._names[slot] for slot in held]
        self.streams.rows[:n] = self.streams.rows[held]
        self._used[:n], self._saved[:n] = self._used[held], self._saved[held]
        self._names = names + [None] * (len(self._names) - n)
        self._slots = {name: slot for slot, name in enumerate(names) if name is not None}

    def oldest(self, n: int, group: int) -> list[str]:
        """Return up to n series, the least recently used first, none of them used in this group."""
        held = np.array([slot for slot in self._slots.values() if self._used[slot] < group], dtype=np.int64)
        oldest = held[np.argsort(self._used[held], kind="stable")[:n]]
        return [name for slot in oldest if (name := self._names[slot]) is not None]

    def release(self, unique_ids: Sequence[str], store: Store | None) -> None:
        """Hold series no longer; what changed since it was saved goes to the store."""
        slots_B = np.array([self._slots[name] for name in unique_ids], dtype=np.int64)
        if store is not None:
            self.save(slots_B[self._is_changed(slots_B)], store)
        for name, slot in zip(unique_ids, slots_B.tolist(), strict=True):
            del self._slots[name]
            self._names[slot] = None
            self._free.append(slot)

    def save(self, slots_B: IntArray, store: Store) -> None:
        """Bring rows to the store."""
        if len(slots_B) == 0:
            return
        rows = self.streams.rows[slots_B]
        kept = [
            Kept(name, row.tobytes(), int(used))
            for slot, row, used in zip(slots_B.tolist(), rows, self._used[slots_B], strict=True)
            if (name := self._names[slot]) is not None
        ]
        store.save(self.model.name, self.origin, kept)
        self._saved[slots_B] = rows["group"]

    def mark_saved(self, slots_B: IntArray) -> None:
        """Note that the store has these rows as they are."""
        self._saved[slots_B] = self.streams.rows["group"][slots_B]

    def unsaved(self, group: int, n: int) -> IntArray:
        """Return up to n rows that changed since they were saved, which was before a group's end."""
        held = np.fromiter(self._slots.values(), dtype=np.int64, count=len(self._slots))
        return held[self._is_changed(held) & (self._saved[held] < group)][:n]

    def _is_changed(self, slots_B: IntArray) -> NDArray[np.bool_]:
        changed_B: NDArray[np.bool_] = self.streams.rows["group"][slots_B] > self._saved[slots_B]
        return changed_B


def _categories(model: LoadedModel) -> dict[str, tuple[str, ...]]:
    statics = model.spec.covariates.static
    return {static.name: static.categories for static in statics if static.name != "unique_id"}


def names_of(rows: RowArray, layout: Layout, origin: Origin, unique_ids: list[str]) -> dict[str, list[str]]:
    """Return the statics of rows by name, as whoever made them told them apart."""
    found: dict[str, list[str]] = {}
    for s, name in enumerate(layout.static):
        known = origin.categories.get(name)
        codes = rows["static"][:, s].tolist()
        found[name] = unique_ids if known is None else [known[code - 1] if code > 0 else "" for code in codes]
    return found
