# Two commands do everything: `make studio` opens the studio, `make test` runs what CI runs.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
# A process per core, each with one thread: threads that share cores with another process would wait for each other. Files
# as they come, not those of most tests first: the longest have few, and would run alone at the end.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile --no-loadscope-reorder

.PHONY: studio demo test test-full lint screenshots clean

studio: $(VENV)/.installed        ## install, fetch the starter model and samples, open the page
	$(BIN)/lora-studio setup
	$(BIN)/lora-studio serve

demo: $(VENV)/.installed          ## the same main job without a browser: train, compare, merge
	$(BIN)/lora-studio demo

test: lint                        ## everything CI checks
	$(PYTEST) -m "not slow"

test-full: lint                   ## the slow sweeps too
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

screenshots: $(VENV)/.installed-dev   ## redraw assets/screenshots from a real run in Chromium
	$(BIN)/python -m pytest -m browser --screenshots tests/e2e

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:                            ## remove what make made; the workspace of the studio stays
	rm -rf $(VENV) .cache build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
