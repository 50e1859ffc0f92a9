# Attune: every command that a person needs. Each sets up what it lacks, and is quick when nothing changed.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

# Python 3.11, 3.12 or 3.13; without a value, one that serves is looked for.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
NAME := attune-music
SAMPLE := samples/sense_and_sensibility_0870.wav
SECONDS := 30
# What `make image` builds upon, and with which docker.
BASE_IMAGE ?= debian:bookworm-slim
DOCKER ?= docker

.PHONY: help setup export run serve test test-slow check format bench wheel image image-gpu clean

help:  ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.installed  ## create .venv with everything in it

$(VENV)/.installed: pyproject.toml constraints.txt
	@python=$$(sh tools/check_machine.sh $(PYTHON)); \
		test -x $(BIN)/pip || { echo "Creating $(VENV) with $$python ..."; $$python -m venv --clear $(VENV); }
	@echo "Installing into $(VENV): about 3 GB, a few minutes the first time ..."
	@$(BIN)/python -m pip uninstall --quiet --yes attune nvidia-pytriton 2>/dev/null  # what an older clone has installed
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[train,dev]'
	@touch $@

export: setup  ## fetch the pinned weights and export the models into model_repository/
	@$(BIN)/attune export

run: export  ## speech in, music out: serve, send a recorded clip, write out/music.wav and out/session.json
	@$(BIN)/attune serve --free-ports -- \
		$(BIN)/attune play $(SAMPLE) --seconds $(SECONDS) --force -o out/music.wav --session out/session.json

serve: export  ## serve on 127.0.0.1:8001 (gRPC) and :8000 (health) until interrupted
	@$(BIN)/attune serve

test: export  ## the tests, the real server among them
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

bench: export  ## time the served pipeline
	@$(BIN)/attune serve --free-ports -- $(BIN)/attune bench pipeline samples/*.wav

wheel: setup  ## build dist/*.whl, from which a client machine installs
	@rm -rf build  # or files that are gone would be in the wheel
	@$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	@echo "pip install '$(NAME)[client] @ file://$(CURDIR)/$$(ls -t dist/*.whl | head -n 1)'"

image: export  ## build the image attune:cpu, with the exported models in it (BASE_IMAGE=... to build upon another)
	@DOCKER=$(DOCKER) PYTHON=$(BIN)/python docker/build.sh embedded --tag attune:cpu \
		--build-arg BASE_IMAGE=$(BASE_IMAGE) --build-arg MODELS=context

image-gpu: setup  ## build the image attune:gpu upon NVIDIA's (not run yet)
	@DOCKER=$(DOCKER) PYTHON=$(BIN)/python docker/build.sh gpu --tag attune:gpu

clean:  ## remove what was built (the downloaded weights stay in the user's cache)
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	git clean -qfdX model_repository
