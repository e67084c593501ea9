PYTHON ?= python3
PY := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# An environment belongs to one Python: beside a .venv of another one a second is made, such as .venv-3.13.
ifndef VENV
  MADE_BY := $(shell sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' .venv/pyvenv.cfg 2>/dev/null)
  VENV := $(if $(filter-out $(PY),$(MADE_BY)),.venv-$(PY),.venv)
endif
BIN = $(VENV)/bin
DEMO ?= demo


# Tests see nothing of the shell that started them: what a variable set there hides would fail for others.
BARE = env -i PATH="$$PATH" HOME="$$HOME"
PLAIN = $(BARE) LC_ALL=C.UTF-8
# What users have set: output that is not buffered, warnings of our own modules as errors (Python takes no wildcard,
# so they are listed), a narrow terminal without colours, no UTF-8, one thread.
MODULES = $(shell find cli.py errors.py files.py datasets models pipeline -name '*.py' | sed 's/\.py$$//; s,/__init__$$,,; s,/,.,g')
comma := ,
empty :=
WARNINGS = $(subst $(empty) $(empty),$(comma),$(addprefix error:::hmsa_pipeline.,$(MODULES)))
SET = $(BARE) LC_ALL=C PYTHONUNBUFFERED=1 COLUMNS=60 NO_COLOR=1 OMP_NUM_THREADS=1 PYTHONWARNINGS="$(WARNINGS)"
# Without the option xdist begins with the files of the most tests, and those of the longest would be left for the end.
PYTEST = $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
PLAINLY = help usage streams manifest_command status_verify own_processes
# What depends on such settings: commands in processes of their own, and what prints, writes files, counts threads or
# starts processes. What a command does within the tests' own process is the same under them, and the first pass turns
# warnings into errors there as well (pyproject.toml).
ON_SETTINGS = $(PLAINLY:%=tests/cli/test_%.py) tests/test_errors.py tests/test_files.py tests/pipeline/runtime \
  tests/pipeline/storage/test_filesystem.py tests/pipeline/storage/test_run_record.py \
  tests/pipeline/config/test_manifest_writing.py tests/pipeline/inference/test_inputs.py \
  tests/pipeline/training/test_log.py tests/pipeline/training/test_loader_workers.py
# What depends on the versions of libraries that a newer Python brings: stores, manifests, and every command, through the
# walk over all options.
ON_NEWEST = $(PLAINLY:%=tests/cli/test_%.py) tests/cli/test_every_option.py tests/cli/test_wrong_manifest.py \
  tests/cli/test_dump.py tests/cli/test_import_logits.py tests/pipeline/store \
  $(wildcard tests/pipeline/config/test_manifest*.py)
.PHONY: help demo docs test test-long test-settings test-newest test-newest-here test-slow test-slow-part test-cluster lint format clean same-python

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

same-python:
	@made=$$(sed -n 's/^version = \([0-9]*\.[0-9]*\).*/\1/p' $(VENV)/pyvenv.cfg 2>/dev/null || true); \
	if [ -n "$$made" ] && [ "$$made" != "$(PY)" ]; then \
	  echo "error: $(VENV) is of Python $$made, $(PYTHON) is $(PY); name another folder with: make VENV=.venv-$(PY)"; exit 2; fi

$(VENV)/.core: pyproject.toml setup.py pipeline/fusion/kernel/softmax_sums.c | same-python
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; name one with: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	@touch $@

$(VENV)/.test: $(VENV)/.core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
	@touch $@

demo: $(VENV)/.core  ## set up, then run every step on drawn streets
	$(BIN)/hmsa-pipeline demo --output $(DEMO)

test: $(VENV)/.test  ## set up, then run the tests that take little time, with an environment of PATH, HOME and a UTF-8 locale
	$(PLAIN) $(PYTEST) -m 'not slow and not long'

test-long: $(VENV)/.test  ## the tests that make test leaves out because they take seconds each
	$(PLAIN) $(PYTEST) -m 'long and not slow'

test-settings: $(VENV)/.test  ## the commands once more, with settings that users have
	$(SET) $(PYTEST) $(ON_SETTINGS)

test-newest:  ## stores, manifests and commands on the newest Python at hand that is supported
	@newest=$$(.ci/newest-python) && version=$$($$newest -c 'import sys; print("%d.%d" % sys.version_info[:2])') && \
	if [ "$$version" = "$(PY)" ]; then echo "test-newest: no Python newer than $(PY) is at hand; nothing to do"; \
	else $(MAKE) test-newest-here PYTHON="$$newest" VENV="$(VENV)-$$version"; fi

test-newest-here: $(VENV)/.test
	$(PLAIN) $(PYTEST) $(ON_NEWEST)

test-slow: $(VENV)/.test  ## set up, then run the tests that take minutes: faults, kills, clusters, a GPU's rehearsal
	$(PLAIN) $(BIN)/python -m pytest -m slow

test-slow-part: $(VENV)/.test  ## of these, those that every change has to pass
	$(PLAIN) $(PYTEST) -m 'slow(every_change=True)'

test-cluster: $(VENV)/.test  ## jobs on a real Slurm, which tests/cluster/README.md says how to install; part of test-slow
	$(PLAIN) $(BIN)/python -m pytest -m slow tests/cluster

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
	rm -rf $(VENV) .venv-* .typing build dist site *.egg-info .pytest_cache .ruff_cache .hypothesis pipeline/fusion/kernel/_library.*
