PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test lint bench
sweep: .venv/installed
	$(BIN)/fewstep sweep

test: .venv/installed
	$(BIN)/python -m pytest

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m pytest tests/perf --benchmark-only -s

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
