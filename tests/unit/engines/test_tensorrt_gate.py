"""Before TensorRT is touched: no driver, no such GPU, no library, half a library, an old one. Each says what to do."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from small_graphs import doubler, model_of

from headrace_server.config import EngineOptions, ThreadBudget
from headrace_server.engines.factory import create_engine
from headrace_server.engines.machine.cuda_devices import CudaDevice, CudaMachine, find_cuda
from headrace_server.engines.tensorrt import library as tensorrt_library
from headrace_server.engines.tensorrt.library import import_library, require_device
from headrace_server.errors import Reason, ServingError

GPU = CudaDevice(index=0, name="Fake GPU", compute_capability="9.0", memory_bytes=1 << 30)
without_driver = pytest.mark.skipif(not find_cuda().fault, reason="this machine has a GPU: its driver is there")


def refused(call: object, *arguments: object) -> ServingError:
    with pytest.raises(ServingError) as caught:
        call(*arguments)  # type: ignore[operator]
    error = caught.value
    assert error.reason is Reason.DEVICE_UNAVAILABLE
    assert set(error.facts) >= {"requested", "actual", "reason", "cure"}
    assert error.facts["reason"] in error.message
    assert error.facts["cure"] in error.message
    return error


@without_driver
def test_without_a_driver_the_device_is_refused_by_name(tmp_path: Path) -> None:
    error = refused(
        create_engine, model_of(doubler(tmp_path)), EngineOptions(device="tensorrt:1"), ThreadBudget(num_cores=1)
    )
    assert (error.facts["requested"], error.facts["actual"]) == ("tensorrt:1", "cpu")
    assert "driver" in error.facts["reason"]


@without_driver
def test_without_a_driver_no_library_is_imported(tmp_path: Path) -> None:
    """Each ends the process when it is imported, as TensorRT's lean runtime does when it is used without a driver."""
    doubler(tmp_path)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        (tmp_path / f"{name}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n")
    script = """
        import sys
        from pathlib import Path
        from headrace_server.config import EngineOptions, ThreadBudget
        from headrace_server.engines.factory import create_engine
        from headrace_server.errors import ServingError
        from headrace_server.models.load import load_model
        folder = Path(sys.argv[1])
        sys.path.insert(0, str(folder))
        try:
            create_engine(load_model(folder, name="m", version="1"), EngineOptions(device="tensorrt"), ThreadBudget())
        except ServingError as error:
            print(error.reason.name, sorted(name for name in sys.modules if "tensorrt" in name.partition(".")[0]))
    """
    answer = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert answer.stdout.split() == ["DEVICE_UNAVAILABLE", "[]"], answer.stderr
    assert answer.returncode == 0


@pytest.mark.parametrize(("count", "index", "cure"), [(1, 1, "tensorrt:0"), (2, 5, "tensorrt:1")])
def test_a_gpu_that_is_not_there_is_refused_by_number(
    monkeypatch: pytest.MonkeyPatch, count: int, index: int, cure: str
) -> None:
    monkeypatch.setattr(tensorrt_library, "find_cuda", lambda: CudaMachine(devices=(GPU,) * count, driver_cuda="13.0"))
    assert cure in refused(require_device, f"tensorrt:{index}", index).facts["cure"]
    assert require_device("tensorrt:0", 0)[0] is GPU


def install(folder: Path, name: str, version: str, content: str) -> None:
    (folder / f"{name}.py").write_text(content)
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which neither library is installed."""
    known = tensorrt_library.importlib.util.find_spec
    names = ("tensorrt", "tensorrt_rtx")
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)

    def find(name: str) -> object:
        return known(name) if name not in names or (tmp_path / f"{name}.py").exists() else None

    monkeypatch.setattr(tensorrt_library.importlib.util, "find_spec", find)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("wanted", "reason"),
    [("auto", "tensorrt and tensorrt_rtx are not installed"), ("tensorrt_rtx", "tensorrt_rtx is not installed")],
)
def test_a_library_that_is_not_installed_is_named_with_how_to_install_it(
    packages: Path, wanted: str, reason: str
) -> None:
    error = refused(import_library, wanted, "tensorrt:0")
    assert error.facts["reason"] == reason
    assert "install" in error.facts["cure"]


def test_an_old_library_is_refused_without_being_imported(packages: Path) -> None:
    install(packages, "tensorrt", "10.9.0", "raise RuntimeError('imported')\n")
    assert "10.9.0" in refused(import_library, "tensorrt", "tensorrt:0").facts["reason"]


def test_a_package_without_its_libraries_is_told_so(packages: Path) -> None:
    install(packages, "tensorrt", "11.4.0", "raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    error = refused(import_library, "auto", "tensorrt:0")
    assert error.facts["reason"] == "tensorrt 11.4.0 is installed without its libraries, or they do not load"
    assert "libnvinfer" in error.detail
    assert "libnvinfer" not in error.message


def test_a_package_with_nothing_in_it_is_told_so(packages: Path) -> None:
    install(packages, "tensorrt", "11.4.0", "")
    assert "empty" in refused(import_library, "auto", "tensorrt:0").facts["reason"]


def test_tensorrt_goes_before_tensorrt_for_rtx_unless_it_is_broken(packages: Path) -> None:
    whole = "class Runtime: ...\n__version__ = '11.4.0'\n"
    install(packages, "tensorrt_rtx", "1.7.1", whole.replace("11.4.0", "1.7.1"))
    assert import_library("auto", "tensorrt:0")[0] == "tensorrt_rtx"
    install(packages, "tensorrt", "11.4.0", "raise ImportError\n")
    assert import_library("auto", "tensorrt:0")[0] == "tensorrt_rtx"
    assert "tensorrt 11.4.0" in refused(import_library, "tensorrt", "tensorrt:0").message
    (packages / "tensorrt.py").write_text(whole)
    tensorrt_library.importlib.invalidate_caches()
    assert import_library("auto", "tensorrt:0")[0] == "tensorrt"
