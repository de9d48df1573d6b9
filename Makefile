# Bare `make` lists the targets. PYTHON=python3.12 chooses another interpreter for .venv,
# WORKERS=8 runs the tests in as many processes (2 GiB each).
PYTHON ?= python3
ISA ?= native
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# One thread each: NumPy's and torch's own would only wait for one another.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow check bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## make .venv with everything

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Nybble needs Python 3.11 or newer: make install PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet 'pip>=25.1'
	$(PIP) install --quiet 'torch==2.13.0' -c constraints.txt
	@echo "(the rest, a few minutes)"
	PYTHONWARNINGS=ignore $(PIP) install --quiet -e '.[torch]' --group dev -c constraints.txt
	@touch $@

demo: $(STAMP)  ## compile the embedded network, print the tables, write report.html
	$(BIN)/nybble demo

test: $(STAMP)  ## all tests but the slow ones, an eighth of the sweeps
	$(PYTEST) -m "not slow" --thin-sweeps 8

test-slow: $(STAMP)  ## the slow tests, and the sweeps whole
	$(PYTEST) -m "slow or sweep"

check: $(STAMP)  ## lint, types, import layers, a sample of the quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST) -q -m "not slow and not whole" --thin 12

bench: $(STAMP)  ## speed beside every peer, cost, accuracy; ISA=x86-64-v3, ARGS="--threads 1 2"
	$(PIP) install --quiet --group bench -c constraints.txt
	-$(BIN)/python -m benchmarks.ggml --isa $(ISA)
	$(BIN)/python -m benchmarks.run --isa $(ISA) $(ARGS)

clean:  ## remove .venv, caches and build products
	rm -rf $(VENV) build dist *.egg-info report.html .pytest_cache .mypy_cache .ruff_cache \
	  .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
