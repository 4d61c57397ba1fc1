"""Whether an answer is the one that was recorded, and if not, where it differs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from headrace_server.jobs.recorded_request import Tolerance

__all__ = ["difference"]


def difference(task: str, expected: Any, got: Any, tolerance: Tolerance) -> str:
    """Where `got` differs by more than `tolerance`: what was expected and what came; "": it does not.

    expected, got  plain values, as the file holds them
    """
    try:
        if task == "infer":
            return _tensors(expected, got, tolerance)
        if len(expected) != len(got):
            return f"expected {len(expected)} answers, got {len(got)}"
        for index, (one, other) in enumerate(zip(expected, got, strict=True)):
            found = _COMPARED[task](one, other, tolerance)
            if found:
                return f"[{index}]: {found}"
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        return f"expected is not what {task} answers ({error!r}); record it again"
    return ""


def _labels(expected: Sequence[Mapping[str, Any]], got: Sequence[Mapping[str, Any]], tolerance: Tolerance) -> str:
    scores = {each["label"]: each["score"] for each in got}
    for each in expected:
        found = scores.get(each["label"])
        if found is None:
            given = f"{got[0]['label']!r} {_shown(got[0]['score'])} first" if got else "no label"
            return f"expected {each['label']!r} {_shown(each['score'])}, not among those given: {given}"
        if not _near(each["score"], found, tolerance):
            return f"expected {each['label']!r} {_shown(each['score'])}, got {_shown(found)}"
    if expected and got and expected[0]["label"] != got[0]["label"]:
        first, best = expected[0], got[0]
        if not _near(first["score"], best["score"], tolerance):
            return f"expected {first['label']!r} first, got {best['label']!r} {_shown(best['score'])}"
    return ""


def _documents(expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: Tolerance) -> str:
    same = expected["index"] == got["index"] or _near(expected["score"], got["score"], tolerance)
    if same and _near(expected["score"], got["score"], tolerance):
        return ""
    return (
        f"expected document {expected['index']} {_shown(expected['score'])},"
        f" got document {got['index']} {_shown(got['score'])}"
    )


def _vectors(expected: Sequence[float], got: Sequence[float], tolerance: Tolerance) -> str:
    one, other = np.asarray(expected, np.float64), np.asarray(got, np.float64)
    if one.shape != other.shape:
        return f"expected {one.size} elements, got {other.size}"
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    cosine = float(one @ other) / lengths if lengths else float(not one.any() and not other.any())
    return "" if cosine >= tolerance.cosine else f"expected a cosine of at least {tolerance.cosine}, got {cosine:.4f}"


def _texts(expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: Tolerance) -> str:
    for name in ("text", "finish_reason"):
        if name in expected and expected[name] != got[name]:
            return f"{name}: expected {str(expected[name])[:80]!r}, got {str(got[name])[:80]!r}"
    return ""


def _tensors(expected: Mapping[str, Any], got: Mapping[str, Any], tolerance: Tolerance) -> str:
    for name, values in expected.items():
        if name not in got:
            return f"{name}: expected, and not among {', '.join(got)}"
        one, other = np.asarray(values), np.asarray(got[name])
        if one.shape != other.shape:
            return f"{name}: expected shape {list(one.shape)}, got {list(other.shape)}"
        if one.dtype.kind != "f" and other.dtype.kind != "f":
            differs = one != other
        else:
            limits = {"atol": tolerance.absolute, "rtol": tolerance.relative}
            differs = ~np.isclose(other.astype(np.float64), one.astype(np.float64), equal_nan=True, **limits)
        if differs.any():
            place = tuple(int(index) for index in np.argwhere(differs)[0])
            return f"{name}{list(place)}: expected {_shown(one[place])}, got {_shown(other[place])}"
    return ""


_COMPARED: dict[str, Callable[[Any, Any, Tolerance], str]] = {
    "classify": _labels,
    "rerank": _documents,
    "embed": _vectors,
    "generate": _texts,
}


def _near(expected: float, got: float, tolerance: Tolerance) -> bool:
    return bool(abs(got - expected) <= tolerance.absolute + tolerance.relative * abs(expected))


def _shown(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float | np.floating) else "none" if value is None else repr(value)
