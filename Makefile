# Two commands matter: `make run` and `make test`. Everything lives in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SLOW ?= slow
# Two processes take the tests of a Ray each, the others all that start none.
PROCESSES ?= 4
SLOW_PROCESSES ?= 2
INSTALLED := $(VENV)/.installed

.PHONY: run test test-slow test-cluster test-pythons check validate docs dist clean

run: $(INSTALLED)
	$(BIN)/recray up sample

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(PROCESSES) --durations=10 --cov

test-slow: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "$(SLOW)" -n $(SLOW_PROCESSES) --durations=20 --ignore=tests/cluster

# A cluster in network and mount namespaces; needs root, skips visibly without.
test-cluster: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/cluster --durations=0

test-pythons:
	.ci/pythons

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

validate: $(INSTALLED)
	$(BIN)/python -m cluster.validate

docs: $(INSTALLED)
	$(BIN)/python -m recray.cli.reference commands > docs/commands.md
	$(BIN)/python -m recray.cli.reference settings > docs/settings.md
	$(BIN)/python -m recray.cli.reference results > docs/results.md

dist: $(INSTALLED)
	$(BIN)/python -m build

clean:
	rm -rf $(VENV) .venvs build dist recray-out .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "recray needs Python 3.11 or newer; try: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@
