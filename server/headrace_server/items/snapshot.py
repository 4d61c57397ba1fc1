"""What a search sees: a catalog's items as of one revision. Immutable; taking one costs nothing and blocks nobody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from headrace_server.errors import invalid_input
from headrace_server.items.catalog import CatalogSpec
from headrace_server.items.columns import Vocabulary
from headrace_server.items.filter import Filter, check_filter
from headrace_server.items.filter_mask import filter_mask
from headrace_server.items.scanner import Ranking, Vectors
from headrace_server.items.segment import Part

__all__ = ["Hits", "Known", "Selection", "Snapshot"]

Known = Mapping[str, int | tuple[int, ...]]
"""Of each id the sequences it ever had, oldest first; which of them are there, a snapshot's parts say."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a snapshot may be answered: a mask a part, None for all. Of that snapshot alone."""

    masks: tuple[Mask | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """The best items for one query, best first, ties by insertion; as many as there are, never padded."""

    ids: tuple[str, ...]
    scores: NDArray[np.float32]
    sequences: NDArray[np.int64]
    places: NDArray[np.int64]  # [n, 2]: part and row, for `Snapshot.vectors_at`


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Snapshot:
    """The items of a catalog as of `revision`, and everything that is asked of them."""

    spec: CatalogSpec
    revision: int
    num_items: int
    parts: tuple[Part, ...]
    known: Known
    vocabulary: Vocabulary

    @property
    def memory_bytes(self) -> int:
        """Bytes of its arrays; of ids about 200 each."""
        return sum(part.segment.size_bytes + (0 if part.alive is None else part.alive.nbytes) for part in self.parts)

    def select(
        self,
        condition: Filter | None = None,
        *,
        exclude_ids: Sequence[str] = (),
        include_ids: Sequence[str] | None = None,
        field: str = "filter",
    ) -> Selection:
        """The items that pass the filter, are none of the excluded, and are among the included where those are given.

        raises  ServingError INVALID_INPUT where the filter is wrong, its part named below `field`
        """
        if condition is not None:
            condition = check_filter(condition, self.spec.fields, field)
        excluded = self.places(exclude_ids)
        included = None if include_ids is None else self.places(include_ids)
        masks = []
        for index, part in enumerate(self.parts):
            mask = part.alive
            if condition is not None:
                passing = filter_mask(condition, self.spec.fields, part.segment.rows.columns, self.vocabulary)
                mask = passing if mask is None else mask & passing
            if included is not None:
                wanted = np.zeros(part.num_rows, dtype=np.bool_)
                wanted[_rows_in(included, index)] = True
                mask = wanted if mask is None else mask & wanted
            rows = _rows_in(excluded, index)
            if len(rows):
                mask = np.ones(part.num_rows, dtype=np.bool_) if mask is None else mask.copy()
                mask[rows] = False
            masks.append(mask)
        return Selection(tuple(masks))

    def search(
        self,
        queries: Vectors,
        k: int,
        *,
        selection: Selection | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
        min_score: float | None = None,
    ) -> list[Hits]:
        """The k best items for each of queries f32[q, d], exactly, under the catalog's metric.

        selection  of this snapshot, for all queries; None: all items
        exclude    for each query, ids that it alone must not be answered
        raises     ServingError INVALID_INPUT for another dimension, or values not finite
        """
        if queries.ndim != 2 or queries.shape[1] != self.spec.dimension:
            raise invalid_input("query", f"dimension {queries.shape[-1]}, the catalog's is {self.spec.dimension}")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        if not np.isfinite(queries).all():
            raise invalid_input("query", "an element is not finite")
        if not self.parts:
            none = np.empty(0, dtype=np.int64)
            empty = Hits(ids=(), scores=none.astype(np.float32), sequences=none, places=none.reshape(0, 2))
            return [empty] * len(queries)
        own = None if exclude is None else [self.places(ids) for ids in exclude]
        masks = selection.masks if selection is not None else tuple(part.alive for part in self.parts)
        try:
            rankings = [
                part.segment.packed.topk(
                    queries,
                    k,
                    allowed=mask,
                    exclude=None if own is None else [_rows_in(places, number) for places in own],
                    min_score=min_score,
                )
                for number, (part, mask) in enumerate(zip(self.parts, masks, strict=True))
            ]
        except OverflowError:
            raise invalid_input("query", "a score would pass the largest float32, 3.4e38") from None
        return self._merged(rankings, k)

    def places(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """[m, 2]: part and row of those of `ids` that are there."""
        places, found = self._lookup(ids)
        return places[found]

    def find(self, ids: Sequence[str]) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
        """Which of `ids` are there bool[n], and their sequences i64[n], -1 where not."""
        places, found = self._lookup(ids)
        sequences = np.full(len(ids), -1, dtype=np.int64)
        for index, part in enumerate(self.parts):
            here = places[:, 0] == index
            sequences[here] = part.segment.rows.sequences[places[here, 1]]
        return found, sequences

    def vectors(self, ids: Sequence[str]) -> tuple[NDArray[np.bool_], Vectors]:
        """Which of `ids` are there bool[n], and the vectors of those f32[m, d], as they were sent."""
        places, found = self._lookup(ids)
        return found, self.vectors_at(places[found])

    def vectors_at(self, places: NDArray[np.int64]) -> Vectors:
        """f32[n, d] at the `places` of hits of this snapshot."""
        answer = np.empty((len(places), self.spec.dimension), dtype=np.float32)
        for index, part in enumerate(self.parts):
            here = places[:, 0] == index
            answer[here] = part.segment.rows.vectors[places[here, 1]]
        return answer

    def ids_where(self, condition: Filter, field: str = "filter") -> tuple[str, ...]:
        """Ids of the items that pass."""
        masks = self.select(condition, field=field).masks
        passing = (p.segment.rows.ids[mask].tolist() for p, mask in zip(self.parts, masks, strict=True))
        return tuple(chain.from_iterable(passing))

    def _lookup(self, ids: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        places = np.full((len(ids), 2), -1, dtype=np.int64)
        known = self.known
        latest = np.full(len(ids), -1, dtype=np.int64)
        again: list[tuple[int, tuple[int, ...]]] = []
        for index, id_ in enumerate(ids):
            sequences = known.get(id_, -1)
            if isinstance(sequences, tuple):
                again.append((index, sequences))
            else:
                latest[index] = sequences
        self._place(places, np.arange(len(ids)), latest)
        for index, sequences in again:
            self._place(places, np.full(len(sequences), index), np.array(sequences))
        return places, places[:, 0] >= 0

    def _place(self, places: NDArray[np.int64], indices: NDArray[np.int64], sequences: NDArray[np.int64]) -> None:
        for number, part in enumerate(self.parts):
            rows = part.find(sequences)
            here = rows >= 0
            places[indices[here], 0] = number
            places[indices[here], 1] = rows[here]

    def _merged(self, rankings: Sequence[Ranking], k: int) -> list[Hits]:
        """Of every query the best of all parts. Arrays of all queries at once: a query by itself costs ten times it."""
        widths = [ranking[0].shape[1] for ranking in rankings]
        counts = np.sum([ranking[2] for ranking in rankings], axis=0)
        scores = np.concatenate([ranking[1] for ranking in rankings], axis=1)
        places = np.zeros((*scores.shape, 2), dtype=np.int64)
        sequences = np.empty(scores.shape, dtype=np.int64)
        ids = np.empty(scores.shape, dtype=np.object_)
        start = 0
        for number, (part, ranking, width) in enumerate(zip(self.parts, rankings, widths, strict=True)):
            here = slice(start, start + width)
            past = np.arange(width) >= ranking[2][:, None]
            rows = np.where(past, 0, ranking[0])
            scores[:, here][past] = -np.inf
            places[:, here, 0], places[:, here, 1] = number, rows
            sequences[:, here] = part.segment.rows.sequences[rows]
            ids[:, here] = part.segment.rows.ids[rows]
            start += width
        if len(rankings) > 1:
            best = np.lexsort((sequences, -scores), axis=1)[:, :k]
            scores, sequences = np.take_along_axis(scores, best, 1), np.take_along_axis(sequences, best, 1)
            places, ids = np.take_along_axis(places, best[:, :, None], 1), np.take_along_axis(ids, best, 1)
        listed = zip(ids.tolist(), scores, sequences, places, np.minimum(counts, k).tolist(), strict=True)
        return [
            Hits(ids=tuple(names[:n]), scores=values[:n], sequences=numbers[:n], places=at[:n])
            for names, values, numbers, at, n in listed
        ]


def _rows_in(places: NDArray[np.int64], part: int) -> NDArray[np.int64]:
    rows: NDArray[np.int64] = places[places[:, 0] == part, 1]
    return rows
