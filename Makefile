PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test lint bench
sweep: .venv/installed
	$(BIN)/fewstep sweep

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: .venv/installed
	$(BIN)/python -m pytest tests/perf --benchmark-only -s --benchmark-json=.benchmark.json
	$(BIN)/python tests/perf/table.py .benchmark.json > results/speed.md

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@
