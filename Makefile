# Attune: every command that a person needs. Each sets up what it lacks, and is quick when nothing changed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SAMPLE := samples/sense_and_sensibility_0870.wav
SECONDS := 30

.PHONY: help setup export run serve test test-slow check format bench clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## create .venv with everything in it

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Attune needs Python 3.11, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Creating $(VENV) ..."; $(PYTHON) -m venv $(VENV); }
	@echo "Installing into $(VENV): about 2 GB, a few minutes the first time ..."
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[client,serve,train,dev]'
	@touch $@

export: setup  ## fetch the pinned weights and export the models into model_repository/
	@$(BIN)/attune export

run: export  ## speech in, music out: serve, send a recorded clip, write out/music.wav and out/session.json
	@$(BIN)/attune serve --free-ports -- \
		$(BIN)/attune play $(SAMPLE) --seconds $(SECONDS) --force -o out/music.wav --session out/session.json

serve: export  ## serve on 127.0.0.1:8001 (gRPC) and :8000 (HTTP) until interrupted
	@$(BIN)/attune serve

test: export  ## all tests, the real server among them
	@$(BIN)/python -m pytest

test-slow: export  ## the tests that take minutes each
	@$(BIN)/python -m pytest -m slow

check: setup  ## lint, formatting and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: setup  ## apply the formatting
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

bench: export  ## time the served pipeline and the composer
	@$(BIN)/attune serve --free-ports -- $(BIN)/attune bench pipeline samples/*.wav

clean:  ## remove what was built (the downloaded weights stay in the user's cache)
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache
	git clean -qfdX model_repository
