"""`headrace tour`: asks a running server one real question of each job, as any client would, and prints the answers."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace_server.cli.faults import FAILURE, fail, plain_failures
from headrace_server.cli.tour_generation import FACT, chat, finish, form, romanize
from headrace_server.cli.tour_packages import HISTORY, WISH, also_needed, by_text

if TYPE_CHECKING:
    from headrace_client import Classifications, Client, ModelInfo

__all__ = ["take_tour", "tour"]

_MAILS = (
    "Congratulations! You have won $1,000,000. Click here now to claim your FREE prize, this offer ends today!!!",
    "Hi Anna, the build of the branch fails on my machine since the last merge; could you have a look at the log?",
)
_FILES = {
    "a Python function": b"import sys\n\n\ndef total(rows):\n    return sum(row.price for row in rows)\n",
    "a JSON document": b'{\n  "name": "headrace",\n  "listen": ["127.0.0.1:50051"],\n  "models": {"spam": 1}\n}\n',
    "a shell script": b'#!/bin/sh\nset -eu\nfor file in *.log; do\n  gzip -9 "$file" && echo "$file"\ndone\n',
}
_SUBSCRIBERS: Sequence[dict[str, str | float]] = (
    {"plan": "basic", "payment": "invoice", "country": "DE", "tenure_months": 1, "visits_last_30_days": 0,
     "days_since_last_visit": 40, "minutes_per_visit": 3.5, "tickets_last_90_days": 3, "discount_percent": 0},
    {"plan": "premium", "payment": "card", "country": "JP", "tenure_months": 48, "visits_last_30_days": 22,
     "days_since_last_visit": 1, "minutes_per_visit": 18.0, "tickets_last_90_days": 0, "discount_percent": 10},
)  # fmt: skip
_CATALOG = "headrace-tour"
_WISH = "something to keep me dry on a rainy walk"
_WARES = {
    "raincoat": "A raincoat that keeps you dry in heavy rain.",
    "umbrella": "A folding umbrella for wet days.",
    "tent": "A tent for two people, for camping in the mountains.",
    "sleeping bag": "A warm sleeping bag for cold nights outdoors.",
    "frying pan": "A cast-iron frying pan for the kitchen.",
    "desk lamp": "A desk lamp with a dimmer.",
}
_QUESTION = "How do I get my money back?"
_DOCUMENTS = (
    "Our office is open from nine to five on weekdays.",
    "Refunds are paid to the original card within five working days of our receiving the goods.",
    "The bank of the river was flooded after the rain.",
    "You can change the language in the settings menu.",
)


def tour(
    address: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", envvar="HEADRACE_ADDRESS", help="host:port or unix:PATH")
    ] = ("127.0.0.1:50051"),
) -> None:
    """Ask a running server one real question of each job, and print the answers."""
    with plain_failures():
        if take_tour(address):
            raise typer.Exit(FAILURE)


def take_tour(address: str) -> int:
    """Asks and prints; how many questions failed. What the server has no model for is said, and is no failure."""
    try:
        from headrace_client import Client, HeadraceError
    except ImportError:
        cure = "pip install headrace-client"
        raise fail("the tour asks through headrace-client, which is not installed", cure=cure) from None
    with Client(address, timeout_s=30) as client:
        try:
            models = [model for model in client.models() if model.state == "ready"]
        except HeadraceError as error:
            raise fail(
                f"no answer from {address}: {error.message}", cure="`headrace serve DIR` starts a server"
            ) from None
        stops = _Tour(client, models).stops()
        failed = 0
        for title, ask in stops:
            print(f"\n── {title}")
            started = time.perf_counter()
            try:
                said = ask()
            except HeadraceError as error:
                failed += 1
                said = [f"FAILED: {error.message}"]
            for line in said:
                print(f"   {line}")
            if said and not said[0].startswith("("):
                print(f"   {(time.perf_counter() - started) * 1e3:.1f} ms", flush=True)
    print(f"\n{len(stops) - failed} of {len(stops)} questions answered", flush=True)
    return failed


class _Tour:
    """The questions, each to the first model that can answer it."""

    def __init__(self, client: Client, models: Sequence[ModelInfo]) -> None:
        self._client = client
        self._models = models

    def stops(self) -> list[tuple[str, Callable[[], list[str]]]]:
        """What is asked, in order."""
        return [
            ("Which models are served?", self._list),
            ("Classify texts: are these mails spam?", self._texts),
            ("Classify images: what is in these photos?", self._photos),
            ("Classify raw bytes: what kind of file is this?", self._bytes),
            ("Classify table rows: will this (synthetic) subscriber leave?", self._rows),
            ("Embed texts", self._embed),
            ("Compare texts by meaning", self._compare),
            ("Compare images by content", self._compare_photos),
            (f"Order documents by relevance: {_QUESTION!r}", self._rerank),
            (f"Recommend from a catalog of wares: {_WISH!r}", self._recommend),
            (f"Recommend: who installs {' and '.join(HISTORY)} also needs …", lambda: also_needed(self._client)),
            (
                f"Recommend by a text: {WISH!r}, among what needs numpy, matplotlib left out",
                lambda: by_text(self._client),
            ),
            ("Tokenise a text", self._tokenize),
            ("Stream: 256 texts in messages of 16", self._stream),
            (f"Generate: how does {FACT!r} go on?", lambda: self._generate("smollm2", finish)),
            ("Generate: a chat of two turns, streamed", lambda: self._generate("smollm2", chat)),
            ("Generate: an answer that a JSON schema lets through", lambda: self._generate("smollm2", form)),
            ("Generate: an Arabic name in Latin letters", lambda: self._generate("romanizer", romanize)),
        ]

    def _find(self, task: str, kind: str, *, columns: Sequence[str] = ()) -> ModelInfo | None:
        """A serving model for the task and kind of input, the demo's own first."""
        fitting = [
            model
            for model in self._models
            if model.serving
            and task in model.tasks
            and kind in model.input_kinds
            and set(columns) <= set(model.features)
        ]
        demo = ("spam", "minilm", "efficientnet-lite0", "magika", "synthetic-churn")
        return min(fitting, key=lambda model: model.name not in demo, default=None)

    def _list(self) -> list[str]:
        return [
            f"{model.name}/{model.version}: {', '.join(task for task in model.tasks if task != 'infer')}; reads "
            f"{', '.join(kind for kind in model.input_kinds if kind != 'tensors')}; {model.precision} on {model.device}"
            for model in self._models
        ]

    def _texts(self) -> list[str]:
        model = self._find("classify", "text")
        if model is None:
            return _NOBODY
        return _ranked(_MAILS, self._client.classify(model.name, list(_MAILS), top_k=2))

    def _photos(self) -> list[str]:
        from headrace_client import Image

        model, photos = self._find("classify", "image"), _photos()
        if model is None or not photos:
            return _NOBODY if model is None else _NO_PHOTOS
        found = self._client.classify(model.name, [Image(path) for path in photos], top_k=3)
        return _ranked([path.name for path in photos], found)

    def _bytes(self) -> list[str]:
        from headrace_client import Raw

        model = self._find("classify", "raw")
        if model is None:
            return _NOBODY
        found = self._client.classify(model.name, [Raw(data) for data in _FILES.values()], top_k=2)
        return _ranked(list(_FILES), found)

    def _rows(self) -> list[str]:
        model = self._find("classify", "features", columns=list(_SUBSCRIBERS[0]))
        if model is None:
            return _NOBODY
        shown = [
            f"{row['plan']}, {row['tenure_months']} months, {row['visits_last_30_days']} visits" for row in _SUBSCRIBERS
        ]
        return _ranked(shown, self._client.classify(model.name, list(_SUBSCRIBERS), top_k=1))

    def _embed(self) -> list[str]:
        model = self._find("embed", "text")
        if model is None:
            return _NOBODY
        vectors = self._client.embed(model.name, list(_DOCUMENTS)).vectors
        head = ", ".join(f"{value:+.3f}" for value in vectors[0][:4])
        return [f"{model.name}: {vectors.shape[0]} vectors of {vectors.shape[1]}; the first begins {head}, …"]

    def _compare(self) -> list[str]:
        model = self._find("embed", "text")
        if model is None:
            return _NOBODY
        left, right = ["I forgot my password"], ["How do I reset my login?", "The cat sleeps on the sofa"]
        scores = self._client.similarity(left, right, model=model.name).scores
        return [f"{score:+.3f}  {left[0]!r} and {text!r}" for text, score in zip(right, scores[0], strict=True)]

    def _compare_photos(self) -> list[str]:
        from headrace_client import Image

        model, photos = self._find("embed", "image"), _photos()
        if model is None or not photos:
            return _NOBODY if model is None else _NO_PHOTOS
        scores = self._client.similarity([Image(path) for path in photos], model=model.name).scores
        names = [path.name for path in photos]
        return [
            f"{scores[row, column]:+.3f}  {names[row]} and {names[column]}"
            for row in range(len(names))
            for column in range(row, len(names))
        ]

    def _rerank(self) -> list[str]:
        model = self._find("rerank", "text_pair") or self._find("embed", "text")
        if model is None:
            return _NOBODY
        ranking = self._client.rerank(model.name, _QUESTION, list(_DOCUMENTS), return_documents=True)
        return [f"{each.score:+.3f}  {each.document}" for each in ranking.documents]

    def _recommend(self) -> list[str]:
        """Wares kept in a catalog of the tour's own, which it makes and removes."""
        from headrace_client import Unimplemented

        model = self._find("embed", "text")
        if model is None:
            return _NOBODY
        try:
            self._client.drop_catalog(_CATALOG, allow_missing=True)
        except Unimplemented:
            return _NO_CATALOGS
        self._client.create_catalog(_CATALOG, model.embedding_dimension, embedding_model=model.name)
        try:
            self._client.upsert(_CATALOG, list(_WARES), inputs=list(_WARES.values()))
            by_text = self._client.recommend(_CATALOG, inputs=_WISH, k=2).results[0]
            by_item = self._client.recommend(_CATALOG, items=["tent"], k=2).results[0]
        finally:
            self._client.drop_catalog(_CATALOG, allow_missing=True)
        return [
            "by the text      " + "; ".join(f"{item.id} {item.score:.3f}" for item in by_text),
            "by the item tent " + "; ".join(f"{item.id} {item.score:.3f}" for item in by_item),
        ]

    def _tokenize(self) -> list[str]:
        model = self._find("embed", "text") or self._find("classify", "text")
        if model is None:
            return _NOBODY
        (text,) = self._client.tokenize(model.name, "Turbines turn water into electricity.")
        return [" ".join(token.piece for token in text.tokens)]

    def _generate(self, name: str, ask: Callable[[Client, str], list[str]]) -> list[str]:
        """Asks the demo's own model: another would have another template, or none, and other letters."""
        found = any(model.name == name and model.serving and "generate" in model.tasks for model in self._models)
        return ask(self._client, name) if found else _NOBODY

    def _stream(self) -> list[str]:
        model = self._find("embed", "text")
        if model is None:
            return _NOBODY
        texts = [f"{document} ({number})" for number in range(64) for document in _DOCUMENTS]
        batches = [texts[start : start + 16] for start in range(0, len(texts), 16)]
        started = time.perf_counter()
        count = sum(len(answer.vectors) for answer in self._client.embed_stream(model.name, batches))
        return [f"{count} vectors, {count / (time.perf_counter() - started):.0f} a second"]


_NOBODY = ["(no model here does that)"]
_NO_CATALOGS = ["(no catalogs here: serve with --catalogs DIR)"]
_NO_PHOTOS = ["(no photos here: they come with scikit-learn, pip install 'headrace[demo]')"]


def _photos() -> list[Path]:
    """The sample photos that scikit-learn carries, where it is installed; it is not imported."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        return []
    folder = Path(spec.origin).parent / "datasets" / "images"
    return [path for path in (folder / "china.jpg", folder / "flower.jpg") if path.is_file()]


def _ranked(asked: Sequence[str], found: Classifications) -> list[str]:
    lines = []
    for title, result in zip(asked, found.results, strict=True):
        labels = "; ".join(f"{label.label} {label.score:.3f}" for label in result.labels)
        lines.append(f"{title[:60]}{'…' if len(title) > 60 else ''}  →  {labels}")
    return lines
