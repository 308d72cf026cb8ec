# make test, make bench: everything from a bare checkout, in a virtual environment of its own.
# What they need: python3 (3.10 to 3.14) and a C++17 compiler. Where no nvcc is found, NVIDIA's is taken
# from its Python wheels (WS_CUDA=off: no CUDA library at all).
#
#   make test                            the fast tests; make test-all: all of them, ten minutes
#   make test TORCH=torch==2.10.0        another PyTorch
#   make test ARGS="-k forward -x"       arguments for pytest; likewise for the benchmark
#
# make gpu is for a machine with an NVIDIA GPU: it builds, tests, checks and measures with the python3,
# PyTorch and nvcc that are there, and fetches nothing (docs/gpu.md).
#
#   make gpu OUT=folder                  where its files go
#   make gpu ARGS="--only build tests"   some of its stages
#   make gpu ARGS="--half first"         the first of two runs of five minutes; then second
PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
OUT ?= build/gpu
# Enough for GPUs from 8.0 on, and compiled in some three minutes; pip install builds for all.
export TORCH_CUDA_ARCH_LIST ?= 8.0;9.0+PTX
NATIVE := CMakeLists.txt setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)
HAVE_NVCC := $(or $(shell command -v nvcc),$(CUDA_HOME),$(filter off,$(WS_CUDA)))
NVCC_WHEELS := $(if $(HAVE_NVCC),,-r requirements-nvcc.txt)

# A file's tests run in one of the processes, so that what they share is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: build test test-all bench gpu format check clean
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

test-all: build
	$(PYTEST) $(ARGS)

bench: build
	$(BIN)/python -m bench $(ARGS)

gpu:
	$(PYTHON) -m gpu --out $(OUT) $(ARGS)

format: $(VENV)/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(filter %.h %.cpp %.cu %.cuh %.inl,$(NATIVE))

check: $(VENV)/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(filter %.h %.cpp %.cu %.cuh %.inl,$(NATIVE))

$(VENV)/lint: $(VENV)/installed
	$(BIN)/pip install -q "ruff==0.17.*" "clang-format==23.*"
	touch $@

clean:
	rm -rf $(VENV) build python/torch_ws/*.so python/torch_ws/build.json
