# Two commands do everything: `make demo` and `make test`. Both create .venv where it is missing.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test test-all check lint types contracts clean

demo: .venv/.demo
	rm -rf runs/demo
	$(BIN)/sizewise demo --out runs/demo

test: .venv/.dev
	$(BIN)/python -m pytest -q -n 2

test-all: .venv/.dev
	$(BIN)/python -m pytest -q -m "slow or not slow"

check: lint types contracts test

lint: .venv/.dev
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench

types: .venv/.dev
	$(BIN)/mypy

contracts: .venv/.dev
	$(BIN)/lint-imports --no-logo

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.demo: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[demo]"
	touch $@

.venv/.dev: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) --editable ".[demo,dev]"
	touch $@ .venv/.demo

clean:
	rm -rf .venv runs
