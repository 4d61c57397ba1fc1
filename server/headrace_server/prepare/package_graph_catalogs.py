"""The demo's catalogs, made of the package graph in seconds: what goes with what, and packages by the words of names.

packages         packages that Python packages need, by EASE: "who installs this also needs …"
packages.users   the Python packages themselves, as users: what each needs
package-names    Python packages by their names as MiniLM reads them, to be found by a text
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headrace_kernels import normalize_rows
from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.errors import Reason, ServingError
from headrace_server.items.catalog import CatalogSpec, FieldSpec, FieldType, ModelRef
from headrace_server.items.store import CatalogStore
from headrace_server.models.inputs import TextInput
from headrace_server.models.load import load_model
from headrace_server.models.model import Model, PrepareOptions, Task
from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.package_graph import GRAPH_PATH, PackageGraph
from headrace_server.prepare.recommend_catalogs import (
    CatalogContent,
    StoreAccess,
    item_catalog,
    user_catalog,
    write_catalog,
)
from headrace_server.prepare.recommend_interactions import Array, Interactions, interactions_of
from headrace_server.prepare.recommend_train import TrainOptions, train

__all__ = [
    "GRAPH_OPTIONS",
    "BuiltCatalog",
    "build_demo_catalogs",
    "graph_interactions",
    "package_name_catalog",
    "recommender_catalogs",
    "words_of",
]

GRAPH_OPTIONS = TrainOptions(model="ease", min_user_items=2, min_item_users=5, regularization=30.0)
"""λ is what training chooses by itself; given, the build is a second faster."""

_RECOMMENDER, _NAMES = "packages", "package-names"
_EMBEDDER = "minilm"
_PREFIX = "python3-"
_BATCH = 16
_MIN_NEEDS = 5  # so many others, or needed by as many: a third of all packages, for the build to take seconds
_MAX_NEEDS = 64  # of a package, in its payload


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltCatalog:
    """One of the catalogs: `kept` where it was there already and up to date, or is in use."""

    name: str
    num_items: int
    dimension: int
    kept: bool
    seconds: float


def build_demo_catalogs(
    directory: Path, *, models: Path, report: Callable[[str], None] = print
) -> tuple[BuiltCatalog, ...]:
    """Make `directory` hold the demo's catalogs; what is up to date is kept, and so are catalogs of other names.

    A catalog is up to date where its description names the digest of all that it was made of. While a server has the
    directory open nothing is touched, and () is answered.

    raises  PrepareError where the embedder is not built; ServingError of the store
    """
    try:
        store = CatalogStore(directory)
    except ServingError as error:
        if error.reason is not Reason.STORAGE_LOCKED:
            raise
        report(f"{directory}: left as it is ({error.message})")
        return ()
    try:
        graph = PackageGraph.read()
        recommender = _Recipe(_RECOMMENDER, _digest(), lambda: recommender_catalogs(graph))
        embedder = _embedder(models)
        names = _Recipe(_NAMES, _digest(embedder.digest), lambda: (package_name_catalog(graph, embedder),))
        return tuple(built for recipe in (recommender, names) for built in recipe.build(store, report))
    finally:
        store.close()


def graph_interactions(graph: PackageGraph) -> Interactions:
    """The graph as interactions: packages are users, what they need are items."""
    users, items = zip(*graph.pairs(), strict=True)
    return interactions_of(users, items)[0]


def recommender_catalogs(graph: PackageGraph) -> tuple[CatalogContent, ...]:
    """`packages` and `packages.users`."""
    trained = train(graph_interactions(graph), GRAPH_OPTIONS, report=lambda _: None)
    known = {item: {"kind": "python" if item.startswith(_PREFIX) else "other"} for item in trained.table.items}
    hits = trained.report.qualities[0]
    said = f"what goes with what in {graph.snapshot}; HR@{trained.report.k} {hits.hit_rate:.3f}"
    return (
        item_catalog(_RECOMMENDER, trained, known=known, description=said),
        user_catalog(f"{_RECOMMENDER}.users", trained, description=f"users of catalog {_RECOMMENDER}"),
    )


def package_name_catalog(graph: PackageGraph, embedder: Model) -> CatalogContent:
    """`package-names`: Python packages of the graph with several edges, the words of their names as vectors."""
    needing = {name for name, needed in graph.needs.items() if len(needed) >= _MIN_NEEDS}
    needed = {name for name, count in graph.num_needed_by.items() if count >= _MIN_NEEDS and name.startswith(_PREFIX)}
    ids = sorted(needing | needed)
    vectors = _embedded(embedder, [words_of(name) for name in ids])
    payloads = [
        {
            "needs": [other for other in graph.needs.get(name, ()) if other.startswith(_PREFIX)][:_MAX_NEEDS],
            "num_needed_by": graph.num_needed_by.get(name, 0),
        }
        for name in ids
    ]
    spec = CatalogSpec(
        name=_NAMES,
        dimension=int(vectors.shape[1]),
        metric="cosine",
        fields=(
            FieldSpec(name="needs", type=FieldType.STRING_LIST),
            FieldSpec(name="num_needed_by", type=FieldType.INTEGER),
        ),
        embedding_model=ModelRef(name=_EMBEDDER),
        description=f"Python packages of {graph.snapshot}, by the words of their names",
    )
    return CatalogContent(spec=spec, ids=ids, vectors=lambda places: vectors[places], payloads=payloads)


def words_of(name: str) -> str:
    """ "python3-flask-login" as "flask login"."""
    return name.removeprefix(_PREFIX).replace("-", " ").replace(".", " ").replace("+", " ").strip()


@dataclass(frozen=True, slots=True)
class _Recipe:
    """Catalogs that are made together: the first one's name, the digest of what they are made of, and how."""

    name: str
    digest: str
    contents: Callable[[], Sequence[CatalogContent]]

    def build(self, store: CatalogStore, report: Callable[[str], None]) -> list[BuiltCatalog]:
        mark = f"[{self.digest[:16]}]"
        there = [info for info in store.list_catalogs(page_size=1000)[0] if mark in info.spec.description]
        if any(info.spec.name == self.name for info in there):
            return [
                BuiltCatalog(
                    name=info.spec.name,
                    num_items=info.num_items,
                    dimension=info.spec.dimension,
                    kept=True,
                    seconds=0.0,
                )
                for info in there
            ]
        report(f"building catalog {self.name}")
        built = []
        # The first is what tells that all are there: it is written last.
        for content in reversed(self.contents()):
            started = time.monotonic()
            spec = replace(content.spec, description=f"{content.spec.description} {mark}")
            write_catalog(StoreAccess(store), replace(content, spec=spec), overwrite=True)
            built.append(
                BuiltCatalog(
                    name=spec.name,
                    num_items=len(content.ids),
                    dimension=spec.dimension,
                    kept=False,
                    seconds=time.monotonic() - started,
                )
            )
        return built[::-1]


def _digest(*parts: str) -> str:
    """SHA-256 of the graph, of the code that makes catalogs of it, and of `parts`."""
    total = hashlib.sha256(GRAPH_PATH.read_bytes())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.name.startswith(("recommend_", "package_graph")):
            total.update(b"\0" + path.read_bytes())
    for part in parts:
        total.update(b"\0" + part.encode())
    return total.hexdigest()


def _embedder(models: Path) -> Model:
    """The version of the embedder that a server serves by default: the highest."""
    versions = [path for path in (models / _EMBEDDER).glob("*") if path.name.isdecimal()]
    if not versions:
        raise PrepareError(f"the sentence embedder {_EMBEDDER} is not built", cure="run: headrace demo build")
    folder = max(versions, key=lambda path: int(path.name))
    return load_model(folder, name=_EMBEDDER, version=folder.name)


def _embedded(model: Model, texts: Sequence[str]) -> Array:
    """f32[n, d]: the vectors that a server would answer, normalised."""
    pipeline = model.pipelines[Task.EMBED]
    rows = pipeline.prepare([TextInput(text) for text in texts], PrepareOptions())
    vectors: Array = np.zeros((len(texts), model.embedding_dimension), np.float32)
    by_length = sorted(range(len(rows)), key=lambda index: rows[index].length)
    engine = create_engine(model, EngineOptions(device="cpu"), ThreadBudget(num_workers=1, intra_op_threads=1))
    try:
        for start in range(0, len(rows), _BATCH):
            chosen: Any = by_length[start : start + _BATCH]
            feeds = pipeline.collate([rows[index] for index in chosen])
            outputs = engine.run(feeds, list(pipeline.graph_outputs))
            vectors[chosen] = pipeline.reduce(outputs, feeds)["embedding"]
    finally:
        engine.close()
    return normalize_rows(vectors)
