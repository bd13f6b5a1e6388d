# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-full lint clean

demo: $(STAMP)
	$(BIN)/qwen3vl-edge demo

test: lint
	$(BIN)/python -m pytest -q -m "not slow"

# Once per release: also what takes long or needs full-size encoders.
test-full: lint
	$(BIN)/python -m pytest -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip setuptools wheel
	$(BIN)/python -m pip install --quiet --editable '.[export,edge,server,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) bundles build *.egg-info
