"""Slots: who holds which slot of a DecodeState. Running rows stand in 0 … n−1, the one that reads its prompt behind.

    0    1    2    3          4
    run  run  run  run  ...   prefilling

When a running row leaves, the last one moves into its place; the prefilling one stays where it is, and takes its place
behind the running ones when its prompt is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from headrace_server.engines.decode import DecodeState

__all__ = ["Row", "Slots"]

OwnerT = TypeVar("OwnerT")


class Row(Generic[OwnerT]):
    """One slot in use.

    slot     where it is now; −1 when it has left
    pending  its last token, chosen and not yet computed
    """

    __slots__ = ("owner", "pending", "slot")

    def __init__(self, owner: OwnerT, slot: int) -> None:
        self.owner = owner
        self.slot = slot
        self.pending = -1


class Slots(Generic[OwnerT]):
    """The rows of one DecodeState. Not thread-safe: the decoder's thread uses it."""

    __slots__ = ("_state", "num_slots", "prefilling", "running")

    def __init__(self, state: DecodeState) -> None:
        self._state = state
        self.num_slots = state.decode_info.num_slots
        self.running: list[Row[OwnerT]] = []
        self.prefilling: Row[OwnerT] | None = None

    @property
    def num_free(self) -> int:
        return self.num_slots - len(self.running) - (self.prefilling is not None)

    @property
    def num_tokens(self) -> int:
        """Tokens that all slots in use hold."""
        length = self._state.length
        tokens = sum(length(slot) for slot in range(len(self.running)))
        return tokens + (length(self.prefilling.slot) if self.prefilling is not None else 0)

    def open(self, owner: OwnerT) -> Row[OwnerT]:
        """An empty slot behind the running ones, to read a prompt into. There is one at a time."""
        slot = len(self.running)
        self._state.clear(slot)
        self.prefilling = Row(owner, slot)
        return self.prefilling

    def run(self, row: Row[OwnerT]) -> None:
        """The prompt of the prefilling row is read: from now on it runs."""
        target = len(self.running)
        if row.slot != target:
            self._state.clear(target)
            self._state.move(row.slot, target)
            row.slot = target
        self.prefilling = None
        self.running.append(row)

    def fork(self, source: Row[OwnerT], owner: OwnerT, length: int) -> Row[OwnerT]:
        """A running row that holds the first `length` tokens of a running one. Nobody may be prefilling."""
        row = Row(owner, len(self.running))
        self._state.clear(row.slot)
        self._state.copy(source.slot, row.slot, length)
        self.running.append(row)
        return row

    def overwrite(self, source: Row[OwnerT], target: Row[OwnerT], length: int) -> None:
        """The target row holds the first `length` tokens of the source."""
        self._state.clear(target.slot)
        self._state.copy(source.slot, target.slot, length)

    def rearrange(self, rows: Sequence[Row[OwnerT]], sources: Sequence[int]) -> list[Row[OwnerT]]:
        """Rows of one owner, row i holding what `rows[sources[i]]` held; those that are no source are used again."""
        spare = [row for index, row in enumerate(rows) if index not in sources]
        used: set[int] = set()
        arranged = []
        for source in sources:
            row = rows[source]
            if source in used:
                length = self._state.length(row.slot)
                if spare:
                    target = spare.pop()
                    self.overwrite(row, target, length)
                    row = target
                else:
                    row = self.fork(row, row.owner, length)
            used.add(source)
            arranged.append(row)
        for row in spare:
            self.release(row)
        return arranged

    def release(self, row: Row[OwnerT]) -> None:
        """Frees the row's slot; the last running one moves into the hole."""
        slot, row.slot = row.slot, -1
        self._state.clear(slot)
        if row is self.prefilling:
            self.prefilling = None
            return
        last = self.running.pop()
        if last is not row:
            self._state.move(last.slot, slot)
            self.running[slot] = last
            last.slot = slot

    def clear(self) -> None:
        """Empties every slot."""
        for row in self.running:
            row.slot = -1
        self.running.clear()
        self.prefilling = None
        for slot in range(self.num_slots):
            self._state.clear(slot)
