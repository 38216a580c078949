# Two commands matter: `make run` and `make test`. Both prepare what they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help venv run test lint types protos bench parity calibration hardware bench-policies clean

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

protos: $(READY) ## regenerate the wire stubs in place
	$(BIN)/python tests/regenerate_stubs.py

bench: $(READY) ## what a request, a token and a fact cost (see docs/performance.md)
	$(BIN)/python -m tests.bench

parity: $(READY) ## the mock over gRPC against its model in virtual time, at 60 requests/s
	$(BIN)/python -m tests.bench parity

calibration: $(READY) ## the tables of docs/calibration.md, anew
	$(BIN)/python -m backends.calibration.report docs/calibration.md

hardware: $(READY) ## the roofline prior's error against published times (see docs/hardware.md)
	$(BIN)/python -m tests.bench.prior

bench-policies: $(READY) ## every policy on the same arrivals, in simulation (docs/benchmarks/policies.md)
	$(BIN)/python -m tests.bench.policies $(ARGS)

clean: ## remove everything a target made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
