PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
DEMO ?= demo

.PHONY: help demo docs test test-slow lint format clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(VENV)/.core: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/.core  ## set up, then take the whole way on drawn streets
	$(BIN)/hmsa-pipeline demo --output $(DEMO)

test: $(VENV)/.test  ## set up, then run the test suite
	$(BIN)/python -m pytest -n auto --dist loadfile

test-slow: $(VENV)/.test  ## set up, then run the tests that take minutes: faults, kills, clusters
	$(BIN)/python -m pytest -m slow --timeout=1800

docs: $(VENV)/.test  ## the documents as a site, in site/
	$(BIN)/python -m mkdocs build --quiet

lint: $(VENV)/.test  ## style, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@mkdir -p .typing && ln -sfn .. .typing/hmsa_pipeline
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.test  ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what was built, the environment too
	rm -rf $(VENV) .typing build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis
