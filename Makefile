# Every target works as the first command on a fresh clone: it makes .venv and installs what it needs.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PAPER ?= srcnn
PRESET ?= smoke
SEED ?= 0
DEVICE ?= auto
ARGS ?=
export PYDEVD_DISABLE_FILE_VALIDATION := 1

.PHONY: help run test notebooks-test browser-test docs lab refresh prepare bench clean
.DEFAULT_GOAL := help

help:  ## show the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.venv/.made:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "paperlib needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.reader: .venv/.made settings.ini setup.py constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/.developer: .venv/.made settings.ini setup.py constraints.txt
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@ .venv/.reader

run: .venv/.reader  ## reproduce a paper: make run PAPER=srcnn [PRESET=small SEED=1 DEVICE=cpu ARGS='-o steps=2000']
	$(BIN)/paperlib run $(PAPER) -p $(PRESET) -s $(SEED) -d $(DEVICE) $(ARGS)

test: .venv/.developer  ## everything that CI runs
	$(BIN)/ruff check .
	$(BIN)/paperlib check $(if $(wildcard ../shared/notes/points.tsv),--notes ../shared/notes/points.tsv)
	$(BIN)/paperlib report --check > /dev/null
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -p no:cacheprovider -n 2 --dist loadgroup --durations 25 tests --ignore tests/test_browser.py
	$(MAKE) notebooks-test
	$(BIN)/paperlib run srcnn -s 1
	$(MAKE) docs
	$(MAKE) browser-test

notebooks-test: .venv/.developer  ## execute every notebook and compare the outputs that are marked
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -p no:cacheprovider --nbval-lax -n 2 --dist loadfile nbs

browser-test: .venv/.developer  ## open a notebook in JupyterLab in headless Chromium and move a control
	$(BIN)/pytest -q -p no:cacheprovider tests/test_browser.py

docs: .venv/.developer  ## build the site into docs/_build
	$(BIN)/python -m sphinx -b html -W --keep-going -q -j 2 docs docs/_build

lab: .venv/.reader  ## open JupyterLab on the notebooks
	$(BIN)/paperlib lab

refresh: .venv/.developer  ## execute notebooks in place, export and clean: make refresh [NB=srcnn]
	$(BIN)/nbdev_export
	$(BIN)/paperlib check --refresh $(NB)

prepare: .venv/.developer  ## before a commit: export, clean, lint, check
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/ruff check .
	$(BIN)/paperlib check

bench: .venv/.developer  ## the benchmarks, each beside a peer
	for b in benchmarks/bench_*.py; do $(BIN)/python $$b || exit 1; done

clean:  ## remove what was made: environment, runs, site
	rm -rf .venv out docs/_build docs/_nb docs/api docs/index.ipynb docs/jupyter_execute build *.egg-info
