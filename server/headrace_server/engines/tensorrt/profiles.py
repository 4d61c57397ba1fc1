"""The shapes that a graph is compiled for, from the manifest or from what its model is asked; and which a run takes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from headrace_server.config import ShapeProfile
from headrace_server.engines.tensorrt.seam import Shape
from headrace_server.errors import Reason, ServingError, Violation
from headrace_server.models.image import ImageReader
from headrace_server.models.model import Model
from headrace_server.models.rows import GraphPipeline
from headrace_server.models.signature import TensorSpec

__all__ = ["choose_profile", "default_profiles", "is_empty", "profiles_for"]

_SHORT = 128  # tokens: shorter inputs get a profile of their own, as most requests are short


def profiles_for(model: Model, inputs: Sequence[TensorSpec], given: Sequence[ShapeProfile]) -> tuple[ShapeProfile, ...]:
    """The manifest's profiles, checked against the graph and completed by its fixed inputs; without any, the default.

    raises  ServingError MODEL_INVALID naming profile, input and what is wrong
    """
    if not given:
        return default_profiles(model, inputs)
    return tuple(_checked(index, profile, inputs) for index, profile in enumerate(given))


def default_profiles(model: Model, inputs: Sequence[TensorSpec]) -> tuple[ShapeProfile, ...]:
    """From one row to `batching.max_batch_size`; texts to 128 tokens, and to the model's longest; images of its size.

    raises  ServingError MODEL_INVALID for an axis that nothing gives a limit for
    """
    rows = model.batching.max_batch_size
    limits = [model.max_length] if model.max_length <= _SHORT else [_SHORT, model.max_length]
    varying = {axis for spec in inputs for axis, size in enumerate(spec.shape) if size < 0 and axis}
    sides = _image_sides(model) if model.max_length == 0 else {}
    profiles = []
    for longest in limits if varying and not sides else limits[:1]:
        shapes: dict[str, tuple[Shape, Shape, Shape]] = {}
        for spec in inputs:
            axes = [_axis(spec, axis, rows, longest, sides) for axis in range(len(spec.shape))]
            low, opt, high = (tuple(axis[at] for axis in axes) for at in range(3))
            shapes[spec.name] = low, opt, high
        profiles.append(
            ShapeProfile(
                min={name: each[0] for name, each in shapes.items()},
                opt={name: each[1] for name, each in shapes.items()},
                max={name: each[2] for name, each in shapes.items()},
            )
        )
    return tuple(profiles)


def choose_profile(profiles: Sequence[ShapeProfile], shapes: Mapping[str, Shape]) -> int:
    """The index of the smallest profile that all shapes fit.

    raises  ServingError INVALID_INPUT naming tensor, shape and limits where none does
    """
    fitting = [index for index, profile in enumerate(profiles) if _misfit(profile, shapes) == []]
    if fitting:
        return min(fitting, key=lambda index: _volume(profiles[index]))
    # Told by the widest profile: what does not fit there fits nowhere.
    widest = max(profiles, key=_volume)
    names = _misfit(widest, shapes) or list(shapes)
    violations = [
        Violation(
            f"tensors.{name}",
            f"shape {list(shapes[name])} is outside what this model is compiled for: "
            + " or ".join(f"{list(each.min[name])} to {list(each.max[name])}" for each in profiles),
        )
        for name in names
    ]
    raise ServingError(
        Reason.INVALID_INPUT, "; ".join(f"{v.field}: {v.description}" for v in violations), violations=violations
    )


def is_empty(shapes: Mapping[str, Shape]) -> bool:
    """Whether a batch has no rows."""
    return any(0 in shape for shape in shapes.values())


def _misfit(profile: ShapeProfile, shapes: Mapping[str, Shape]) -> list[str]:
    return [
        name
        for name, shape in shapes.items()
        if not all(a <= b <= c for a, b, c in zip(profile.min[name], shape, profile.max[name], strict=True))
    ]


def _volume(profile: ShapeProfile) -> int:
    return sum(math.prod(shape) for shape in profile.max.values())


def _axis(spec: TensorSpec, axis: int, rows: int, longest: int, sides: Mapping[int, int]) -> tuple[int, int, int]:
    size = spec.shape[axis]
    if size >= 0:
        return size, size, size
    if axis == 0:
        return 1, max(1, rows // 2), rows
    if axis in sides:
        return sides[axis], sides[axis], sides[axis]
    if not longest:
        raise ServingError(
            Reason.MODEL_INVALID,
            f"input {spec}: nothing says how long axis {axis} may be; give [[engine.tensorrt.profiles]]",
        )
    return 1, min(longest, max(16, longest // 2)), longest


def _image_sides(model: Model) -> dict[int, int]:
    """By axis, the sides of the images that the model's reader makes; {} where they vary or it reads none."""
    for pipeline in model.pipelines.values():
        reader = pipeline.reader if isinstance(pipeline, GraphPipeline) else None
        if isinstance(reader, ImageReader):
            size = reader.transform.crop or reader.transform.resize
            if isinstance(size, tuple):
                first = 2 if reader.transform.layout == "nchw" else 1
                return {first: size[0], first + 1: size[1]}
    return {}


def _checked(index: int, profile: ShapeProfile, inputs: Sequence[TensorSpec]) -> ShapeProfile:
    where = f"engine.tensorrt.profiles[{index}]"
    known = {spec.name: spec for spec in inputs}
    for name in profile.min:
        if name not in known:
            raise _invalid(f"{where}: {name!r} is no input of the graph, which has {', '.join(known)}")
    filled: dict[str, dict[str, Shape]] = {"min": {}, "opt": {}, "max": {}}
    for name, spec in known.items():
        fixed = -1 not in spec.shape
        if name not in profile.min and not fixed:
            raise _invalid(f"{where}: {name} is missing, and its shape varies: {spec}")
        for kind, shapes in filled.items():
            shape = spec.shape if name not in profile.min else tuple(getattr(profile, kind)[name])
            same = len(shape) == len(spec.shape) and all(
                own in (-1, given) for own, given in zip(spec.shape, shape, strict=True)
            )
            if not same:
                raise _invalid(f"{where}.{kind}: {name} {list(shape)} does not fit the graph's {spec}")
            shapes[name] = shape
    return ShapeProfile(**filled)


def _invalid(message: str) -> ServingError:
    return ServingError(Reason.MODEL_INVALID, message)
