"""Which graph outputs mean what: the heads that a folder's graph can bear, and the tasks that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace_server.models.folder import model_invalid
from headrace_server.models.heads import ClassifierHead, EmbeddingHead, RelevanceHead
from headrace_server.models.labels import find_labels
from headrace_server.models.manifest import MANIFEST_NAME, Activation, PoolingMode
from headrace_server.models.model import Task
from headrace_server.models.rows import Head
from headrace_server.models.signature import TensorSpec
from headrace_server.models.source import Source, integer

__all__ = ["Heads", "choose_heads"]

_FLOATS = ("float32", "float16", "float64")
_CLASS_NAMES = (
    "logits",
    "probabilities",
    "probs",
    "scores",
    "output_probability",
    "class_logits",
    "predictions",
    "softmax",
    "target_label",
)
_VECTOR_NAMES = (
    "sentence_embedding", "image_embeds", "text_embeds", "embedding", "embeddings", "image_features", "features",
    "last_hidden_state", "token_embeddings", "pooler_output",
)  # fmt: skip
_PASS_THROUGH = ("Identity", "Cast", "Reshape", "Squeeze", "Flatten")


@dataclass(slots=True)
class Heads:
    """The tasks' heads, and what a caller is told about their results."""

    by_task: dict[Task, Head] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    multi_label: bool = False
    embedding_dimension: int = 0
    normalized: bool = True


def choose_heads(source: Source, kind: str, pooling: tuple[PoolingMode, ...] | None, normalized: bool | None) -> Heads:
    """The heads of a text, image or bytes graph.

    pooling, normalized  what the folder says of pooling (modules.json), None where it says nothing
    raises               MODEL_INVALID when the manifest asks for a task that no output can bear
    """
    heads = Heads()
    tasks = _tasks(source, pooling is not None)
    if Task.RERANK in tasks:
        spec = _relevance_output(source)
        heads.by_task[Task.RERANK] = RelevanceHead(output=spec.name)
        source.notes.append(
            f"a cross-encoder: {spec.name} is the relevance of a pair, a logit whose sigmoid is a probability"
        )
    if Task.CLASSIFY in tasks:
        _add_classifier(heads, source)
    if Task.EMBED in tasks:
        _add_embedder(heads, source, kind, pooling, normalized)
    return heads


def _tasks(source: Source, pools: bool) -> frozenset[Task]:
    written = source.manifest.tasks
    if written is not None:
        return frozenset(Task(name) for name in written)
    named = source.manifest.output
    architecture = source.architecture
    if pools:
        return frozenset({Task.EMBED})
    if architecture.endswith(
        ("ForSequenceClassification", "ForImageClassification", "ForImageClassificationWithTeacher")
    ):
        task = Task.RERANK if _is_cross_encoder(source) else Task.CLASSIFY
        vectors = _vector_output(source)
        # A vector an input was exported on purpose; token vectors come along with many classifiers.
        also = vectors is not None and len(vectors.shape) == 2 and vectors.name != "pooler_output"
        return frozenset({task, Task.EMBED} if also else {task})
    found = set()
    if named.relevance:
        found.add(Task.RERANK)
    if _class_output(source) is not None:
        found.add(Task.CLASSIFY)
    if _vector_output(source) is not None:
        found.add(Task.EMBED)
    if "For" in architecture and not found:
        source.notes.append(f"{architecture}: no head for its outputs, served as tensors only")
    return frozenset(found)


def _is_cross_encoder(source: Source) -> bool:
    if "Image" in source.architecture or source.config.get("problem_type") == "regression":
        return False
    num_labels = integer(source.config, "num_labels", "config.json")
    id2label = source.config.get("id2label")
    if num_labels is None and isinstance(id2label, Mapping):
        num_labels = len(id2label)
    if num_labels is None:
        spec = _class_output(source)
        num_labels = spec.shape[-1] if spec is not None and spec.shape else None
    return num_labels == 1


def _add_classifier(heads: Heads, source: Source) -> None:
    spec = _class_output(source)
    if spec is None:
        raise model_invalid(
            f"{MANIFEST_NAME}: tasks: classify, but no output is [batch, classes]; name one as output.logits"
        )
    num_classes = spec.shape[1] if len(spec.shape) >= 2 else -1
    regression = source.config.get("problem_type") == "regression"
    heads.labels = find_labels(source, num_classes)
    activation, why = _activation(source, spec, regression)
    many = source.manifest.multi_label
    heads.multi_label = many if many is not None else activation == "sigmoid" or why == "Sigmoid"
    if num_classes == 1 and len(heads.labels) == 2:
        heads.multi_label = False
    heads.by_task[Task.CLASSIFY] = ClassifierHead(output=spec.name, num_labels=len(heads.labels), activation=activation)
    if why:
        source.notes.append(f"{spec.name} comes out of {why}: its values are the scores")
    elif regression:
        source.notes.append(f"{spec.name} is a regression: its values are the scores")
    else:
        source.notes.append(
            f"scores are {activation} of {spec.name}" if activation != "none" else f"scores are {spec.name} as it is"
        )


def _activation(source: Source, spec: TensorSpec, regression: bool) -> tuple[Activation, str]:
    """The activation still to apply, and the node that has already done it ("" for none)."""
    if source.manifest.output.activation is not None:
        return source.manifest.output.activation, ""
    done = _last_activation(source, spec.name)
    if done:
        return "none", done
    if regression:
        return "none", ""
    if source.manifest.multi_label or source.config.get("problem_type") == "multi_label_classification":
        return "sigmoid", ""
    # One number for a class has no distribution to be part of.
    return ("sigmoid" if spec.shape[1:] == (1,) else "softmax"), ""


def _last_activation(source: Source, output: str) -> str:
    node = source.header.producer_of(output)
    for _ in range(8):
        if node is None:
            return ""
        if node.op_type in ("Softmax", "Sigmoid"):
            return node.op_type
        if node.op_type not in _PASS_THROUGH or not node.inputs:
            return ""
        node = source.header.producer_of(node.inputs[0])
    return ""


def _add_embedder(
    heads: Heads, source: Source, kind: str, pooling: tuple[PoolingMode, ...] | None, normalized: bool | None
) -> None:
    spec = _vector_output(source)
    if spec is None:
        raise model_invalid(
            f"{MANIFEST_NAME}: tasks: embed, but no output is a vector or token vectors; name one as output.embedding"
        )
    chosen = source.manifest.pooling
    modes: tuple[PoolingMode, ...] = ("mean",) if kind == "text" else ("cls",)
    if chosen.mode is not None:
        modes = (chosen.mode,)
    elif pooling is not None:
        modes = pooling
    if len(spec.shape) == 2:
        modes = ("none",)
        source.notes.append(f"vectors are {spec.name}, one an input")
    elif len(spec.shape) == 4:
        modes = ("none",)
        source.notes.append(f"vectors are the mean of {spec.name} over the picture")
    else:
        default = (
            ""
            if chosen.mode is not None or pooling is not None
            else f", the default (set pooling.mode in {MANIFEST_NAME})"
        )
        source.notes.append(f"vectors are {spec.name}, pooled by {' + '.join(modes)}{default}")
    heads.by_task[Task.EMBED] = EmbeddingHead(output=spec.name, pooling=modes)
    axis = 1 if len(spec.shape) in (2, 4) else 2
    width = spec.shape[axis] if len(spec.shape) > axis else -1
    if width < 0:
        width = integer(source.config, "hidden_size", "config.json") or 0
    heads.embedding_dimension = width * len(modes)
    if chosen.normalize is not None:
        heads.normalized = chosen.normalize
    elif normalized is not None:
        heads.normalized = normalized


def _class_output(source: Source) -> TensorSpec | None:
    named = source.manifest.output
    if named.logits is not None:
        return source.output(named.logits, "output.logits")
    taken = {named.embedding, named.relevance}
    flat = [
        spec
        for spec in source.outputs
        if spec.dtype in _FLOATS
        and spec.name not in taken
        and (len(spec.shape) <= 2 or spec.shape[2:] == (1,) * (len(spec.shape) - 2))
    ]
    for name in _CLASS_NAMES:
        for spec in flat:
            if spec.name.lower() == name:
                return spec
    rest = [spec for spec in flat if spec.name.lower() not in _VECTOR_NAMES]
    return rest[0] if len(rest) == 1 and len(source.outputs) <= 2 and rest[0].shape else None


def _vector_output(source: Source) -> TensorSpec | None:
    named = source.manifest.output
    if named.embedding is not None:
        return source.output(named.embedding, "output.embedding")
    floats = [spec for spec in source.outputs if spec.dtype in _FLOATS and 2 <= len(spec.shape) <= 4]
    for name in _VECTOR_NAMES:
        for spec in floats:
            if spec.name.lower() == name and spec.name not in (named.logits, named.relevance):
                return spec
    return None


def _relevance_output(source: Source) -> TensorSpec:
    name = source.manifest.output.relevance
    if name is not None:
        return source.output(name, "output.relevance")
    spec = _class_output(source)
    if spec is None:
        raise model_invalid(
            f"{MANIFEST_NAME}: tasks: rerank, but no output of the graph is [batch, 1]; name one as output.relevance"
        )
    if len(spec.shape) >= 2 and spec.shape[1] not in (-1, 1):
        raise model_invalid(f"{spec.name}: {spec.shape[1]} values a pair; a cross-encoder gives one")
    return spec
