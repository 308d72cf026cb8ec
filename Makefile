# make test, make bench: everything from a bare checkout, in a virtual environment of its own.
# What they need: python3 (3.10 to 3.14) and a C++17 compiler. Where no nvcc is found, NVIDIA's is taken
# from its Python wheels (WS_CUDA=off: no CUDA library at all).
#
#   make test                            the fast tests; make test-all: all of them
#   make test TORCH=torch==2.10.0        another PyTorch
#   make evidence                        experiments in training, on images that are here (docs/evidence.md)
#   make test ARGS="-k forward -x"       arguments for pytest; likewise for the benchmarks
#
# make gpu is for a machine with an NVIDIA GPU: it builds, tests, checks and measures with the python3,
# PyTorch and nvcc that are there, and fetches nothing (docs/gpu.md).
#
#   make gpu OUT=folder                  where its files go
#   make gpu ARGS="--only build tests"   some of its stages
#   make gpu ARGS="--half first"         the first of two runs of five minutes; then second
#
# make gpu-libs builds here what such a machine, which is there for minutes, need not compile: bring
# build/gpu-libs along. For its Python, of which headers and interpreter must be here, and its GPU:
#
#   make gpu-libs GPU_PYTHON=python3.12 GPU_ARCH=9.0
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
OUT ?= build/gpu
GPU_PYTHON ?= python3.12
GPU_ARCH ?= 9.0
# Enough for GPUs from 8.0 on, and compiled in five minutes by two cores; pip install builds for all.
export TORCH_CUDA_ARCH_LIST ?= 8.0;9.0+PTX
NATIVE := CMakeLists.txt setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.* csrc/*/*/*.*)
HAVE_NVCC := $(or $(shell command -v nvcc),$(CUDA_HOME),$(filter off,$(WS_CUDA)))
NVCC_WHEELS := $(if $(HAVE_NVCC),,-r requirements-nvcc.txt)

# A file's tests run in one of the processes, so that what they share is made once. In the folders'
# order: by their numbers of tests, long files of few would come last, one process waiting.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: build test test-all bench evidence gpu gpu-libs asan docs format check clean
build: $(VENV)/built

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(TORCH) numpy "setuptools>=77" wheel "cmake>=3.24" ninja "pybind11>=3.0" $(NVCC_WHEELS)
	touch $@

$(VENV)/built: $(VENV)/installed $(NATIVE)
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -q --no-build-isolation -e ".[test,bench]"
	touch $@

test: build
	$(PYTEST) -m "not slow" $(ARGS)

test-all: build $(VENV)/peers
	$(PYTEST) $(ARGS)

# What the examples import, where no other test sees it: torchvision's wheel may be for another PyTorch.
$(VENV)/peers: $(VENV)/installed
	$(BIN)/pip install -q --no-deps --target $@ torchvision==0.28.0 timm==1.0.31

bench: build
	$(BIN)/python -m bench $(ARGS)

evidence: build
	$(BIN)/python -m bench evidence $(ARGS)

gpu:
	$(PYTHON) -m gpu --out $(OUT) $(ARGS)

gpu-libs: $(VENV)/installed
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m gpu.libraries --python $(GPU_PYTHON) \
	  --architecture $(GPU_ARCH)

# The CPU's kernels and _C under GCC's address and undefined-behaviour sanitizers, in a build of their
# own, for the tests that give them random numbers in any shape, strides, dtype and overlap.
ASAN_TESTS := $(addprefix tests/core/test_,$(addsuffix .py,kernels degenerate layout many c_module \
  c_module_overlap c_module_producers magnitudes raw_ops update update_rows update_arguments norms))
asan: build
	PATH="$(abspath $(BIN)):$$PATH" WS_CUDA=off CMAKE_ARGS=-DWS_SANITIZE=ON \
	  $(BIN)/python setup.py -q build --build-base build/asan --build-lib build/asan/lib
	PYTHONPATH=$(abspath build/asan/lib) ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  $(BIN)/python -m pytest $(ASAN_TESTS) $(ARGS)

docs: $(VENV)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/docs: $(VENV)/built
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/pip install -q --no-build-isolation -e ".[docs]"
	touch $@

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh %.inl,$(NATIVE))

check: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh %.inl,$(NATIVE))
	$(BIN)/mypy

$(VENV)/lint: $(VENV)/installed
	$(BIN)/pip install -q "ruff==0.17.6" "clang-format==23.1.5" "mypy==2.4.1"
	touch $@

clean:
	rm -rf $(VENV) build python/torch_ws/*.so python/torch_ws/build.json
