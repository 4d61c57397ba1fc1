"""Weights out of an old PyTorch checkpoint, without PyTorch and without trusting its pickle.

The legacy file is five pickles and then raw numbers: a magic number, a protocol, a note on sizes, the tensors (each a
view of a storage named by a key), and the keys in the order in which the storages' bytes follow. A pickle can call
anything it can name; this reader lets it name tensors, storages and OrderedDict, and nothing else.
"""

from __future__ import annotations

import collections
import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace_server.prepare.fault import PrepareError

__all__ = ["read_torch_weights"]

Array = npt.NDArray[Any]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_CURE = "use the file that the pinned package carries; this one is not a plain table of weights"

_STORAGES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "<i1",
    "ByteStorage": "<u1",
}


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    size: int


@dataclass(frozen=True, slots=True)
class _View:
    """A tensor as the pickle says it: some of a storage's numbers, in a shape."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def read_torch_weights(content: bytes) -> dict[str, Array]:
    """Every tensor by name, from the bytes of a legacy `torch.save` of a state dict.

    raises  PrepareError for another format, a pickle that names anything but tensors, a view that leaves its storage,
            or bytes that are missing or left over
    """
    file = io.BytesIO(content)
    try:
        if _load(file) != _MAGIC or _load(file) != _PROTOCOL:
            raise PrepareError("not a legacy PyTorch checkpoint", cure=_CURE)
        if not _load(file).get("little_endian", False):
            raise PrepareError("the checkpoint's numbers are not little-endian", cure=_CURE)
        views = _load(file)
        keys = _load(file)
    except (pickle.UnpicklingError, EOFError, ValueError, TypeError, AttributeError, IndexError, KeyError) as error:
        raise PrepareError(f"the checkpoint cannot be read ({error})", cure=_CURE) from error
    if not isinstance(views, dict) or not all(isinstance(view, _View) for view in views.values()):
        raise PrepareError("the checkpoint holds more than tensors by name", cure=_CURE)
    storages = _read_storages(file, keys, {view.storage.key: view.storage for view in views.values()})
    return {str(name): _array(name, view, storages[view.storage.key]) for name, view in views.items()}


class _TensorsOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _rebuild
        if module == "torch" and name in _STORAGES:
            return np.dtype(_STORAGES[name])
        raise pickle.UnpicklingError(f"{module}.{name} is not a tensor")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, size, view = pid
        if kind != "storage" or not isinstance(dtype, np.dtype) or view is not None:
            raise pickle.UnpicklingError("a reference to something that is no plain storage")
        return _Storage(str(key), dtype, int(size))


def _load(file: io.BytesIO) -> Any:
    return _TensorsOnly(file).load()


def _rebuild(
    storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_grad_and_hooks: Any
) -> _View:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _View(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _read_storages(file: io.BytesIO, keys: Any, expected: dict[str, _Storage]) -> dict[str, Array]:
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(expected):
        raise PrepareError("the checkpoint's list of storages is not that of its tensors", cure=_CURE)
    storages = {}
    for key in keys:
        storage = expected[str(key)]
        size = int.from_bytes(file.read(8), "little")
        content = file.read(storage.size * storage.dtype.itemsize)
        if size != storage.size or len(content) != storage.size * storage.dtype.itemsize:
            raise PrepareError(f"storage {key} does not hold the {storage.size} numbers it should", cure=_CURE)
        storages[storage.key] = np.frombuffer(content, storage.dtype)
    if file.read(1):
        raise PrepareError("the checkpoint has bytes after its last storage", cure=_CURE)
    return storages


def _array(name: str, view: _View, numbers: Array) -> Array:
    if len(view.shape) != len(view.strides) or min((0, *view.shape, *view.strides, view.offset)) < 0:
        raise PrepareError(f"tensor {name} has an impossible shape", cure=_CURE)
    empty = 0 in view.shape
    last = sum((size - 1) * stride for size, stride in zip(view.shape, view.strides, strict=True))
    if not empty and view.offset + last >= len(numbers):
        raise PrepareError(f"tensor {name} reaches beyond its storage", cure=_CURE)
    if empty:
        return np.zeros(view.shape, numbers.dtype)
    bytes_strides = tuple(stride * numbers.itemsize for stride in view.strides)
    strided = np.lib.stride_tricks.as_strided(numbers[view.offset :], view.shape, bytes_strides, writeable=False)
    return np.ascontiguousarray(strided).reshape(view.shape)
