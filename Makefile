# Three commands do everything on a fresh machine with Python 3.11+ and make:
#   make quickstart   installs, trains the packaged emoji model with D3PO and shows where the report is
#   make demo         installs the app in which people compare pictures, and opens it at http://127.0.0.1:7860
#   make test         installs with the test extras, checks style and types, runs the suite

PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
VENV ?= .venv
BIN = $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

# Two workers on few cores: more threads than cores make every small model slower.
TEST = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -n 2

.PHONY: help quickstart demo test test-slow lint format clean

help:
	@sed -n '1,4s/^# *//p' Makefile

quickstart: $(VENV)/.installed
	$(BIN)/diffalign train emoji-d3po

demo: $(VENV)/.installed-demo
	$(BIN)/diffalign demo

test: lint
	$(TEST) -m "not slow"

test-slow: $(VENV)/.installed-test
	$(TEST) -m slow

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/.made:
	@test -n "$(PYTHON)" || { echo "diffalign needs Python 3.11 or newer; pass one with 'make PYTHON=/path/to/python3'." >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-demo: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-test: pyproject.toml | $(VENV)/.made
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	@touch $@ $(VENV)/.installed
