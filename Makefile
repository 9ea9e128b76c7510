# Works on a fresh machine with python3 (3.10 or newer) and make. Everything is installed into .venv.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow test-bench lint bench figures shares clean

help:  ## show this list
	@grep -E '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(STAMP)  ## create .venv and install the package with its development tools (once)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is too old: Python 3.10 or newer is needed (make PYTHON=/path/to/python3)"; exit 2; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "error: python3 cannot create environments: install its venv module (Debian, Ubuntu: apt install python3-venv)"; exit 2; }
	@echo "installing into $(VENV), which takes some minutes and about 2 GB"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev,log,coco,sbd]"
	@touch $@

demo: setup  ## train with and without unlabelled images on generated scenes, in some minutes on a CPU
	$(BIN)/allspark demo

test: setup  ## the tests, on the CPU (pass more to pytest with ARGS="...")
	$(BIN)/python -m pytest -m "not slow and not gpu and not bench" $(ARGS)

test-slow: setup  ## the tests that take longer
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-bench: setup  ## the longest parts of the benchmarks, in their quick form
	$(BIN)/python -m pytest -m bench $(ARGS)

lint: setup  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: figures shares  ## every figure of docs/performance.md, written to benchmarks/results

figures: setup  ## speed and memory against plain versions
	$(BIN)/python benchmarks/run.py --out benchmarks/results $(ARGS)

shares: setup  ## what each part of a training step takes, and the floors below it
	$(BIN)/python benchmarks/shares.py --out benchmarks/results/shares.md

clean:  ## remove the environment and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build
