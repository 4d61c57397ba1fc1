"""Old PyTorch checkpoints are read as plain numbers; anything else in them is refused."""

from __future__ import annotations

import collections
import io
import pickle
import struct
import sys
import types
from typing import Any

import numpy as np
import pytest

from headrace_server.prepare.fault import PrepareError
from headrace_server.prepare.torch_weights import read_torch_weights

_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage:
    def __init__(self, key: str, numbers: np.ndarray[Any, Any], kind: type) -> None:
        self.key, self.numbers, self.kind = key, numbers, kind


class _Tensor:
    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
        self.parts = (storage, offset, shape, strides)

    def __reduce__(self) -> Any:
        return sys.modules["torch._utils"]._rebuild_tensor_v2, (*self.parts, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return ("storage", value.kind, value.key, "cpu", len(value.numbers), None)
        return None


@pytest.fixture
def torch_names(monkeypatch: pytest.MonkeyPatch) -> type:
    """Just enough modules by PyTorch's names for pickle to write references to them. Returns FloatStorage."""
    torch, inner = types.ModuleType("torch"), types.ModuleType("torch._utils")
    storage = type("FloatStorage", (), {"__module__": "torch"})
    torch.FloatStorage = storage  # type: ignore[attr-defined]

    def _rebuild_tensor_v2() -> None: ...

    _rebuild_tensor_v2.__module__ = "torch._utils"
    _rebuild_tensor_v2.__qualname__ = "_rebuild_tensor_v2"
    inner._rebuild_tensor_v2 = _rebuild_tensor_v2  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setitem(sys.modules, "torch._utils", inner)
    return storage


def _checkpoint(table: Any, storages: list[_Storage], *, magic: int = _MAGIC, tail: bytes = b"") -> bytes:
    file = io.BytesIO()
    for value in (magic, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(value, file, protocol=2)
    _Pickler(file, protocol=2).dump(table)
    pickle.dump([storage.key for storage in storages], file, protocol=2)
    for storage in storages:
        file.write(struct.pack("<q", len(storage.numbers)) + storage.numbers.tobytes())
    return file.getvalue() + tail


def _numbers(storage: type) -> _Storage:
    return _Storage("7", np.arange(6, dtype="<f4"), storage)


def test_tensors_come_back_by_name_with_their_offsets_and_strides(torch_names: type) -> None:
    storage = _numbers(torch_names)
    table = collections.OrderedDict(
        whole=_Tensor(storage, 0, (2, 3), (3, 1)),
        turned=_Tensor(storage, 0, (3, 2), (1, 3)),
        tail=_Tensor(storage, 4, (2,), (1,)),
        one=_Tensor(storage, 5, (), ()),
    )
    weights = read_torch_weights(_checkpoint(table, [storage]))
    grid = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(weights["whole"], grid)
    np.testing.assert_array_equal(weights["turned"], grid.T)
    np.testing.assert_array_equal(weights["tail"], [4, 5])
    assert weights["one"] == 5
    assert weights["one"].shape == ()


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("the checkpoint ran code",)


def test_a_pickle_that_names_a_function_is_refused_and_not_run(
    torch_names: type, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(PrepareError, match=r"print is not a tensor"):
        read_torch_weights(_checkpoint({"weight": _Evil()}, []))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("offset", "shape", "strides"), [(4, (3,), (1,)), (0, (2, 3), (4, 1)), (-1, (2,), (1,)), (0, (2,), (-1,))]
)
def test_a_tensor_that_leaves_its_storage_is_refused(
    torch_names: type, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    storage = _numbers(torch_names)
    table = {"weight": _Tensor(storage, offset, shape, strides)}
    with pytest.raises(PrepareError, match="weight"):
        read_torch_weights(_checkpoint(table, [storage]))


def test_missing_and_left_over_bytes_are_refused(torch_names: type) -> None:
    storage = _numbers(torch_names)
    whole = _checkpoint({"weight": _Tensor(storage, 0, (6,), (1,))}, [storage])
    with pytest.raises(PrepareError, match="does not hold"):
        read_torch_weights(whole[:-1])
    with pytest.raises(PrepareError, match="after its last storage"):
        read_torch_weights(whole + b"\0")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", pickle.dumps(1), pickle.dumps("text")])
def test_another_format_is_refused(content: bytes) -> None:
    with pytest.raises(PrepareError):
        read_torch_weights(content)


def test_values_that_are_no_tensors_are_refused(torch_names: type) -> None:
    with pytest.raises(PrepareError, match="more than tensors"):
        read_torch_weights(_checkpoint({"epoch": 3}, []))
