# qedge: `make` lists the targets. Everything is installed into .venv from the lock files; nothing else on the machine is touched.

SHELL  := /bin/sh
PYTHON ?= python3
PY     := .venv/bin/python
TOOLS  := pytest pytest-timeout pytest-xdist hypothesis ruff mypy types-PyYAML nbclient nbformat ipykernel jsonschema mpmath stim pymatching mlxtend

# Much of a test's time is waiting for processes: two files of tests go on beside each other, each from its first test to its last,
# in the order of tests/conftest.py. One of the two that dies ends the run, and is told by the test that it died in.
BESIDE := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# A stamp is named for the content of its lock and for the folder (an environment does not survive being moved), so that it is stale exactly
# when one of them changes. It is the installer's own marker, renamed when all went well: a marker that is left over means an interrupted
# installation, and that environment is made anew.
key     = $(shell { pwd; cat pyproject.toml $(1); } | cksum | cut -d ' ' -f 1)
# editable_mode=compat: a plain path, so that a folder named qedge where one stands does not hide the package.
RUNTIME := .venv/.runtime-$(call key,requirements.lock)
TOOLING := .venv/.tooling-$(call key,requirements.lock requirements-dev.lock)

.PHONY: help install demo test check bench lock clean
.DEFAULT_GOAL := help

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

install: $(RUNTIME)  ## .venv with qedge and what it needs to run

demo: $(RUNTIME)  ## train privately, deploy, predict over HTTP, stop again (ARGS=--keep leaves it up)
	$(PY) -m qedge.demo $(ARGS)

test: $(TOOLING)  ## every test: real clusters, killed processes, notebooks
	$(PY) -m pytest -q $(BESIDE) $(ARGS)

check: $(TOOLING)  ## format, lint, types, layers and the fast tests, in about two minutes
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -m pytest -q $(BESIDE) -m "not slow" $(ARGS)

bench: $(TOOLING)  ## measure the promised figures into tests/benchmarks/RESULTS.md
	$(PY) tests/benchmarks/run.py $(ARGS)

lock:  ## choose the newest versions pyproject.toml allows and pin them in the lock files
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --upgrade setuptools .
	$(call pins,closure of the dependencies in pyproject.toml) > .venv-lock/requirements.lock
	.venv-lock/bin/python -m pip install --quiet $(TOOLS)
	{ $(call pins,what `make test` needs beyond requirements.lock) | sed '/^#/a -r requirements.lock' | grep -vxFf .venv-lock/requirements.lock; } > .venv-lock/requirements-dev.lock
	mv .venv-lock/requirements.lock .venv-lock/requirements-dev.lock . && rm -rf .venv-lock

# A local version (torch's "+cpu") is one machine's choice of wheel: the lock pins the release.
pins = { echo '\# $(1); made by `make lock`'; .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude qedge | sed 's/+.*//' | LC_ALL=C sort -f; }

clean:  ## remove the environment and every cache (never .qedge, where the state lives)
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find qedge actors serve_apps tests -name __pycache__ -type d -prune -exec rm -rf {} +

MARKER := .venv/.installing
PIP    := $(PY) -m pip install --quiet --disable-pip-version-check

$(RUNTIME):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "qedge needs Python 3.11 or newer; '$(PYTHON)' is not. Name one: make PYTHON=python3.12" >&2; exit 1; }
	@if [ -f $(MARKER) ] && kill -0 "$$(cat $(MARKER))" 2>/dev/null; then echo "another make (process $$(cat $(MARKER))) is installing into .venv; if it is not, remove .venv" >&2; exit 1; fi; \
	if [ -f $(MARKER) ]; then echo "an installation was interrupted; starting it again"; rm -rf .venv; fi; \
	set -e; echo "installing into .venv from requirements.lock: some minutes the first time"; mkdir -p .venv; rm -f .venv/.runtime-* .venv/.tooling-*; echo $$$$ > $(MARKER); \
	$(PYTHON) -m venv .venv; \
	$(PIP) -r requirements.lock; \
	$(PIP) --no-deps --no-build-isolation --config-settings editable_mode=compat -e .; \
	mv $(MARKER) $@

# While the tools are installed the environment counts as unfinished as a whole.
$(TOOLING): $(RUNTIME)
	@set -e; echo "installing what the tests need"; rm -f .venv/.tooling-*; mv $(RUNTIME) $(MARKER); echo $$$$ > $(MARKER); \
	$(PIP) -r requirements-dev.lock; \
	mv $(MARKER) $(RUNTIME); touch $@
