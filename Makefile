# Run inside a virtual environment; `make check` is what CI runs.
GRID ?= experiments/grid.yaml

.PHONY: setup check test bench run

setup:  ## install the project and what tests need, in the tested versions
	pip install -c constraints.txt -e '.[test]'

check:  ## everything: format, lint, types, all tests
	ruff format --check .
	ruff check .
	mypy
	pytest

test:  ## the quick tests only
	pytest -m "not slow"

bench:  ## time forward, step and inference on this machine
	pytest --benchmark-only

run:  ## train the default grid
	bench run --grid $(GRID)
