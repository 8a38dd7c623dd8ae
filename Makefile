# The README's two commands are `make demo` and `make test`; all set-up there is happens in .venv.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test quick gate lint types contracts wheel check docs clean

demo: $(STAMP)  ## install, run the main job, write a report
	$(RUN)/sbnbench run --suite micro-batch

test: $(STAMP)  ## every test: the quick part first, then the slow ones
	$(RUN)/python -m pytest -q -m "not slow"
	$(RUN)/python -m pytest -q -m slow

quick: $(STAMP)  ## the quick part alone
	$(RUN)/python -m pytest -q -m "not slow"

gate: $(STAMP)  ## time the built-in contenders against each other; a minute
	OMP_NUM_THREADS=1 $(RUN)/python -m pytest -q -m gate tests/bench

lint: $(STAMP)
	$(RUN)/ruff check .
	$(RUN)/ruff format --check .

types: $(STAMP)
	$(RUN)/mypy

contracts: $(STAMP)
	$(RUN)/lint-imports

wheel: $(STAMP)
	rm -rf dist
	$(RUN)/python -m build --wheel --sdist --no-isolation
	$(RUN)/check-wheel-contents dist/*.whl

check: lint types contracts wheel

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sbnbench needs Python 3.11 or newer; make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(RUN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[real,dev]"
	touch $@

docs: $(STAMP)  ## the pages that are made from the registry and from kept runs
	$(RUN)/python -m sbnbench.pages docs

clean:
	rm -rf $(VENV) dist build
