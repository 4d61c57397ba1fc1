"""What Recommend is asked and what it answers, as plain values. Field names are those of the wire API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace_server.items.batch import Item
from headrace_server.items.filter import Filter
from headrace_server.items.open_catalog import ItemFields
from headrace_server.jobs.queries import ModelRef, Vectors
from headrace_server.models.inputs import Input

__all__ = [
    "ByHistory",
    "ByInputs",
    "ByItems",
    "ByUser",
    "ByVectors",
    "Diversity",
    "HistoryEvent",
    "Query",
    "RecommendQuery",
    "RecommendResult",
    "RecommendationList",
    "RecommendedItem",
]


@dataclass(frozen=True, slots=True)
class ByVectors:
    """Vectors f32[q, d], each a query; 1 … 256."""

    vectors: Vectors


@dataclass(frozen=True, slots=True)
class ByItems:
    """Items of the catalog, 1 … 256: their mean as one query, or each as a query of its own."""

    ids: Sequence[str]
    each: bool = False


@dataclass(frozen=True, slots=True)
class HistoryEvent:
    """An item and how much it counts; negative pushes away."""

    id: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ByHistory:
    """What a user did, as one query: 1 … 10000 events; items that are gone are passed over."""

    events: Sequence[HistoryEvent]


@dataclass(frozen=True, slots=True)
class ByUser:
    """A user whose factors stand in another catalog."""

    catalog: str
    id: str


@dataclass(frozen=True, slots=True)
class ByInputs:
    """Inputs that a model embeds, each a query, 1 … 256; model None: the catalog's own."""

    inputs: Sequence[Input]
    model: ModelRef | None = None


Query = ByVectors | ByItems | ByHistory | ByUser | ByInputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Diversity:
    """Maximal marginal relevance: weight of relevance 0 … 1; candidates, 0: 10 × k."""

    relevance_weight: float = 0.5
    num_candidates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendQuery:
    """The k best items for each query. `include_ids` None: any; `filter` None: all."""

    catalog: str
    query: Query
    k: int = 10
    filter: Filter | None = None
    exclude_ids: Sequence[str] = ()
    include_query_items: bool = False
    include_ids: Sequence[str] | None = None
    fields: ItemFields = field(default_factory=ItemFields)
    diversity: Diversity | None = None
    min_score: float | None = None


@dataclass(frozen=True, slots=True)
class RecommendedItem:
    """An item with its score under the catalog's metric."""

    item: Item
    score: float


@dataclass(frozen=True, slots=True)
class RecommendationList:
    """Items for one query, best first (with diversity: in the order of choice).

    exact  these are surely the best of all that pass, by exact scores; never so with diversity
    """

    items: tuple[RecommendedItem, ...]
    exact: bool


@dataclass(frozen=True, slots=True)
class RecommendResult:
    """One list a query, the catalog's revision that was searched, and the version that embedded, if one did."""

    results: tuple[RecommendationList, ...]
    revision: int
    model: ModelRef | None = None
