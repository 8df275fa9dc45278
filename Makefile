PYTHON ?= python3
BIN := .venv/bin

.PHONY: sweep test lint bench browser docs gate gpu
sweep: .venv/installed
	$(BIN)/fewstep sweep

test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

browser:  # for the tests that open pages; elsewhere than on Debian, have chromium on the path
	command -v chromium || { apt-get update -qq && apt-get install -y -qq chromium; }

docs: .venv/installed  # into site/; links, anchors and the navigation are checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gate: .venv/installed  # against tests/gate/baseline.json; alone, since it measures speed
	$(BIN)/python -m pytest --fewstep-gate -p no:xdist

bench: .venv/installed
	$(BIN)/python -m pytest tests/perf --benchmark-only -s --benchmark-json=.benchmark.json
	$(BIN)/python tests/perf/table.py .benchmark.json > results/speed.md

gpu: .venv/installed  # photographs, from nothing to tables; FEWSTEP_CIFAR10 names the images, and it goes on if killed
	results/cifar10_jpeg.sh
	$(BIN)/python -m pytest tests/gpu

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test,docs,export]'
	touch $@
