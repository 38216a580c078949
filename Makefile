# Two commands matter: `make run` and `make test`. Both prepare what they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help venv run test lint types protos bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

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

clean: ## remove everything a target made
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
