"""Which version, asked in which way, a caller of the inference protocol means; and every one that there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headrace_server.errors import Reason, Resource, ServingError, invalid_input, load_failed
from headrace_server.jobs.queries import ModelRef
from headrace_server.jobs.signatures import Signature, signature_of, split_name, view_name, views_of
from headrace_server.models.layout import version_key
from headrace_server.models.model import Model, Task
from headrace_server.rpc.codec.checks import require_text
from headrace_server.rpc.codec.inference import decode_ref
from headrace_server.rpc.codec.selector import MAX_NAME_BYTES
from headrace_server.rpc.listing import ModelListing, VersionStatus

__all__ = ["all_views", "find_versions", "known_view", "meant"]


def find_versions(models: ModelListing, name: str) -> tuple[Sequence[VersionStatus], Task | None]:
    """A model's versions, oldest first, and the task by which its name asks it. Raises MODEL_NOT_FOUND."""
    if not name:
        raise invalid_input("name", "required")
    require_text(name, "name", MAX_NAME_BYTES)
    statuses = models.status()
    base, task = split_name(name)
    for wanted, by in ((base, task), (name, None)):
        found = [status for status in statuses if status.name == wanted]
        if found:
            return sorted(found, key=lambda status: version_key(status.version)), by
    raise ServingError(
        Reason.MODEL_NOT_FOUND, f"model {name!r} is not in the repository", resource=Resource("model", name)
    )


def meant(versions: Sequence[VersionStatus], version: str) -> VersionStatus:
    """The version that is named, carries the label, or serves; else the newest. Raises VERSION_NOT_FOUND."""
    name = versions[0].name
    ref: ModelRef = decode_ref(name, version, field="version")
    if not version:
        return next((status for status in versions if status.serving), versions[-1])
    for status in versions:
        if status.version == ref.version or (ref.label and ref.label in status.labels):
            return status
    raise ServingError(
        Reason.VERSION_NOT_FOUND,
        f"model {name!r} has no {'version' if ref.version else 'label'} {version!r}",
        resource=Resource("model_version", f"{name}/{version}"),
    )


def known_view(status: VersionStatus, task: Task | None) -> tuple[Model, Signature]:
    """The model of a version and its signature.

    raises  ServingError MODEL_LOADING, MODEL_FAILED where it is not known yet or for good; WRONG_TASK
    """
    model = status.model
    if model is None or status.state == "failed":
        if status.state == "failed":
            raise load_failed(status.name, status.version, status.reason)
        raise ServingError(Reason.MODEL_LOADING, f"model {status.name!r} is not loaded", model=status.name)
    return model, signature_of(model, task)


def all_views(models: ModelListing) -> Iterator[tuple[str, VersionStatus]]:
    """(name, version) of everything that can be asked, by name, oldest version first; of a version whose model is not
    known, its own name."""
    found = [
        (view_name(status.name, task), status)
        for status in models.status()
        for task in (views_of(status.model) if status.model is not None else (None,))
    ]
    yield from sorted(found, key=lambda each: (each[0], version_key(each[1].version)))
