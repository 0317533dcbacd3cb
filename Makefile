# make setup | bench | test | help.  PYTHON=/path/to/python3.12 chooses the interpreter.

CONFIG ?= configs/bench.py
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq install --no-compile --constraint constraints.txt
INPUTS := setup.py pyproject.toml constraints.txt \
  $(wildcard $(foreach suffix,cc h inc,flexjax/kernels/*.$(suffix) flexjax/kernels/*/*.$(suffix)))

# The tests start dozens of processes: without files of compiled Python each would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup bench test format

help:  ## Show this list.
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16
	@echo "  Variables: CONFIG=$(CONFIG)  ARGS='--config.engine.max_num_seqs=16'  WORKERS=$(WORKERS)  PYTHON=…"

setup: $(STAMP)  ## Make .venv and install the project in it (quiet when nothing changed).
	@:

# Two installs: setup.py takes header files from the installed JAX, so JAX comes first.
$(STAMP): $(INPUTS)
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || { python=$$(launch/find_python.sh) \
	  && echo "Setting up $(VENV) with $$($$python --version); takes a minute or two" \
	  && $$python -m venv --clear $(VENV); }
	@$(PIP) setuptools jax
	@$(PIP) --no-build-isolation --editable '.[dev]'
	@for source in flexjax/kernels/*/cpu.cc; do \
	  [ ! -e "$$source" ] || [ -e "$${source%cpu.cc}_cpu.so" ] \
	    || { echo "No working C++ compiler: CPU kernels run as plain JAX (install g++ and run make setup again)."; break; }; \
	done
	@touch $@

bench: setup  ## Run the main job: stock against optimised, under MLPerf rules.
	@$(BIN)/python -m flexjax.launch --config=$(CONFIG) $(ARGS)

test: setup  ## Lint, types and tests.
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

format: setup  ## Format and mend what the linter can.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
