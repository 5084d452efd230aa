# `make help` lists the targets. Each one sets up .venv first, and only again when the requirements change.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.stamp
# More workers than this spend their time importing jax.
WORKERS ?= 4
PYTEST_ARGS ?=
# Files in the order of tests/conftest.py, which begins with the longest.
PYTEST = $(PY) -m pytest -n auto --maxprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder
# Tests that compare numbers with a bound, which must hold however a processor computes them.
NUMERIC := tests/nn tests/models tests/diffusion tests/images tests/parallel tests/convert/test_goldens.py \
  tests/convert/test_sampling.py tests/editing/test_interpolation.py tests/editing/test_latents.py \
  tests/training/test_optim.py tests/training/test_step.py tests/stages tests/systems
ISAS ?= AVX2 SSE4_2
# The compiler for TPUs, to plan for them without one. It lies apart, since every program that finds it looks for a TPU.
LIBTPU := .libtpu
LIBTPU_STAMP := $(LIBTPU)/.stamp
# torch for `make parity`; a CPU wheel is enough.
TORCH ?= torch==2.13.0
PARITY_VENV := .venv-parity
PARITY_PY := $(PARITY_VENV)/bin/python
PARITY_STAMP := $(PARITY_VENV)/.stamp

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-isa lint bench parity plan train-demo clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11; run make PYTHON=python3.11" >&2; exit 2; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## sample the README's prompt with the shipped weights: out/demo.png
	$(PY) -m sample.text_to_image "a red circle above a blue square" --bundle demo --num-images 4 --seed 0 \
	  --out out/demo.png --overwrite

# Where there is no such wheel, the tests that need it are skipped.
$(LIBTPU_STAMP): $(STAMP)
	@mkdir -p $(LIBTPU)
	-$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(LIBTPU) \
	  "$$($(PY) -c 'from unclip_jax.planning.chips import libtpu_requirement; print(libtpu_requirement())')"
	@touch $@

test: $(STAMP) $(LIBTPU_STAMP)  ## run the tests
	$(PYTEST) $(PYTEST_ARGS)

test-fast: $(STAMP)  ## run the quick ones of them, while working
	$(PYTEST) -m 'not slow and not multihost' $(PYTEST_ARGS)

# The flag is XLA's own and stands beside the one of tests/conftest.py; other processors than x86 take no notice of it.
test-isa: $(STAMP)  ## run what compares numbers as on older x86 processors: AVX2, then SSE4.2
	for isa in $(ISAS); do \
	  echo "as on a processor with $$isa"; \
	  XLA_FLAGS="$$XLA_FLAGS --xla_cpu_max_isa=$$isa" $(PYTEST) -m 'not multihost' $(NUMERIC) \
	    $(PYTEST_ARGS) || exit; \
	done

lint: $(STAMP)  ## style and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m pyright --pythonpath $(PY)

bench: $(STAMP)  ## compile time, step time and memory of every stage; samplers side by side
	$(PY) -m benchmarks.stages
	$(PY) -m benchmarks.samplers

$(PARITY_STAMP): requirements.txt pyproject.toml
	test -x $(PARITY_PY) || $(PYTHON) -m venv $(PARITY_VENV)
	$(PARITY_PY) -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(PARITY_PY) -m pip install --quiet --disable-pip-version-check -e '.[dev,parity]'
	@touch $@

parity: $(PARITY_STAMP)  ## compare with PyTorch, in .venv-parity: tests, then a table of errors and times
	$(PARITY_PY) -m pytest tests/parity $(PYTEST_ARGS)
	$(PARITY_PY) -m tests.parity.table --size mid

plan: $(STAMP) $(LIBTPU_STAMP)  ## what the paper's stages need on TPU slices; compiles for long, runs nothing
	PYTHONPATH=$(LIBTPU) $(PY) -m train.plan paper --topology v5e:16x16 v5p:4x4x8 v6e:16x16 tpu7x:4x4x4

train-demo: $(STAMP)  ## train the demo bundle from nothing, on a CPU
	PYTHON=$(PY) bash train/launch/demo.sh

clean:  ## remove .venv, caches and out/
	rm -rf $(VENV) $(PARITY_VENV) $(LIBTPU) out build *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
