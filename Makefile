# Targets of this project; `make` alone prints them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-compiler test-rest check format lint types unit compiler e2e slow conformance architectures fuzz arm arm64-root bench bench-compile bench-tune records clean

help: ## print these targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch,cuda,dev]'
	@touch $@

setup: $(STAMP) ## create .venv with everything that building and testing need

demo: $(STAMP) ## the main job on ResNet-18: export, compile, verify, time against ONNX Runtime
	$(BIN)/python -m benchmarks.demo

test: $(STAMP) lint types ## everything CI runs: lint, types, all quick tiers of tests
	$(MAKE) --no-print-directory -j2 test-compiler test-rest

# Two halves side by side: each waits much for single processes of its own.
test-compiler: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" -p no:cacheprovider tests/compiler

test-rest: $(STAMP)
	$(BIN)/python -m pytest -q -m "not slow" -p no:cacheprovider --ignore tests/compiler

check: $(STAMP) format lint types unit ## before a commit: format, lint, types, tests without TVM

format: $(STAMP) ## format the code
	$(BIN)/ruff format --quiet .

lint: $(STAMP) ## ruff, formatting included
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

unit: $(STAMP) ## tests that need no TVM
	$(BIN)/python -m pytest -q tests/unit

compiler: $(STAMP) ## tests of frontend, passes and code generation
	$(BIN)/python -m pytest -q tests/compiler

e2e: $(STAMP) ## tests of whole commands
	$(BIN)/python -m pytest -q -m "not slow" tests/e2e

slow: $(STAMP) ## the slow suite: all light and exported models, a model over 500 MB
	$(BIN)/python -m pytest -q -m slow

arm: $(STAMP) ## code for Arm, run in an emulator; needs g++-aarch64-linux-gnu g++-arm-linux-gnueabihf clang lld qemu-user-static
	$(BIN)/mlc doctor --target rpi4
	$(BIN)/python -m pytest -q -rs tests/compiler/test_arm.py tests/e2e/test_emulate.py

arm64-root: $(STAMP) ## mlc itself on 64-bit Arm, in an emulator; needs also debootstrap; fetches 150 MB into build/
	$(BIN)/python -m benchmarks.arm64_root

records: $(STAMP) ## tune the models of the suite for AVX2, and ship the best records; an hour on an idle machine
	$(BIN)/python -m benchmarks.records

conformance: $(STAMP) ## onnx's backend suite, every test, against the list of known failures
	$(BIN)/python -m tests.conformance.run

fuzz: $(STAMP) ## changed models through check and import, with limits; options: make fuzz ARGS="--seconds 600 --seed 1 --keep found"
	$(BIN)/python -m tests.hostile.fuzz $(ARGS)

bench: $(STAMP) ## the public suite against ONNX Runtime, OpenVINO and torch; options: make bench ARGS="--trials 500"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m benchmarks.suite $(ARGS)

architectures: $(STAMP) ## networks of PyTorch and transformers by both exporters: nodes, time, error of each
	$(BIN)/python -W ignore -m tests.architectures.run

bench-compile: $(STAMP) ## compile time: real networks cold and cached, and 100 to 5,000 nodes
	$(BIN)/python -m benchmarks.compile_time

bench-tune: $(STAMP) ## what tuning buys, against untuned and AutoTVM: an hour or two, goes on where it was stopped
	$(BIN)/python -m benchmarks.tune

clean: ## delete what the targets made
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
