# crdtchain: `make` or `make help` lists the commands. Each installs what it needs on its first run, and only then.
.DEFAULT_GOAL := help
.NOTPARALLEL:
SHELL := /bin/sh
MAKEFLAGS += --no-print-directory

VENV ?= .venv
BIN := $(VENV)/bin
RUN_STAMP := $(VENV)/.installed-run
DEV_STAMP := $(VENV)/.installed-dev
SETUP_FILES := pyproject.toml constraints.txt
SCENARIO ?= honest
ARGS ?=
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest

.PHONY: help
help: ## list the commands
	@echo "crdtchain: a market for machine-learning jobs, on replicas that merge"
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z][a-z-]*:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make demo SCENARIO=cheat ARGS=\"--runtime wasm --seed 7\"     ARGS are passed on (also by test, soak, fuzz, bench)"

$(RUN_STAMP): $(SETUP_FILES) | tools/bootstrap.py
	@[ -e $(DEV_STAMP) ] || { python=$$(PYTHON="$(PYTHON)" sh tools/find-python.sh) && "$$python" tools/bootstrap.py $(VENV) ".[docker,wasm]"; }
	@[ ! -e $(DEV_STAMP) ] || $(MAKE) $(DEV_STAMP)
	@touch $@

$(DEV_STAMP): $(SETUP_FILES) | tools/bootstrap.py
	@python=$$(PYTHON="$(PYTHON)" sh tools/find-python.sh) && "$$python" tools/bootstrap.py $(VENV) ".[dev,docker,wasm]"
	@touch $@ $(RUN_STAMP)

.PHONY: venv
venv: $(DEV_STAMP) ## make .venv with everything for development
	@echo "Ready: . $(BIN)/activate"

.PHONY: demo
demo: $(RUN_STAMP) ## the main job end to end on this machine: SCENARIO=honest|cheat|offline, ARGS="…"
	@$(BIN)/crdtchain demo --scenario $(SCENARIO) $(ARGS)

.PHONY: doctor
doctor: $(RUN_STAMP) ## what is there and what is missing on this machine
	@$(BIN)/crdtchain doctor $(ARGS)

.PHONY: system
system: ## as root on Debian: docker, Chromium and Python; starts dockerd when none answers
	@sh tools/system.sh

.PHONY: test
test: $(DEV_STAMP) ## the whole suite (CI=true: a missing part is a failure instead of a skip)
	@status=0; \
	$(PYTEST) -n $(WORKERS) --dist loadfile -m "not alone" $(ARGS) || { code=$$?; [ $$code = 5 ] || status=$$code; }; \
	$(PYTEST) -m alone $(ARGS) || { code=$$?; [ $$code = 5 ] || status=$$code; }; \
	exit $$status

.PHONY: lint
lint: $(DEV_STAMP) ## ruff, its formatter, mypy --strict, import contracts
	@status=0; \
	$(BIN)/ruff check . || status=1; \
	$(BIN)/ruff format --check --quiet . || { echo "error: run \`make format\`"; status=1; }; \
	$(BIN)/mypy || status=1; \
	$(BIN)/lint-imports || status=1; \
	exit $$status

.PHONY: format
format: $(DEV_STAMP) ## format all Python files
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --select I .

.PHONY: bench
bench: $(DEV_STAMP) ## measure, each figure beside its limit; writes bench/RESULTS.md
	@$(BIN)/python -m bench.run $(ARGS)

.PHONY: soak
soak: $(DEV_STAMP) ## properties and simulations with far more examples (hours: ARGS="-k deadlines")
	@HYPOTHESIS_PROFILE=soak CRDTCHAIN_SEEDS=200 CRDTCHAIN_HISTORIES=2000 $(PYTEST) tests/property tests/simulation -n $(WORKERS) --timeout 0 $(ARGS)

.PHONY: fuzz
fuzz: $(DEV_STAMP) ## throw bytes at the parsers: ARGS="--seconds 600"
	@$(BIN)/python -m tools.fuzz $(ARGS)

.PHONY: mutants
mutants: $(DEV_STAMP) ## plant known bugs one by one; each must turn its tests red
	@$(BIN)/python -m tools.mutants $(ARGS)

.PHONY: trainer-image
trainer-image: $(RUN_STAMP) ## build the digits job's docker image from this machine's Python, and print its id
	@$(BIN)/python -m node.worker.sandbox.image

.PHONY: wasm
wasm: $(DEV_STAMP) ## compile the WebAssembly trainer of the examples
	@$(BIN)/python -m node.worker.sandbox.wasm_build

.PHONY: docs
docs: $(DEV_STAMP) ## write docs/reference anew from the program itself
	@$(BIN)/python -m docs.generate

.PHONY: clean
clean: ## remove what was made here: the environment, caches, build results
	@rm -rf $(VENV) .build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
