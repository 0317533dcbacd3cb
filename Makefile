# make setup | bench | test | help …  PYTHON=/path/to/python3.12 chooses the interpreter.

CONFIG ?= configs/bench.py
ARGS ?=
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-stamp
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALL := -qq install --no-compile --constraint constraints.txt
PYTEST := -m pytest -q
PARALLEL := -n $(WORKERS) --dist loadfile --no-loadscope-reorder
INPUTS := setup.py pyproject.toml constraints.txt \
  $(wildcard $(foreach suffix,cc h inc,flexjax/kernels/*.$(suffix) flexjax/kernels/*/*.$(suffix)))

# The tests start dozens of processes: without files of compiled Python each would compile the project anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup bench test test-wheel test-extras format

help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 20
	@echo "  Variables: CONFIG=$(CONFIG)  ARGS='--config.engine.max_num_seqs=16'  WORKERS=$(WORKERS)  PYTHON=…"

setup: $(STAMP)  ## Make .venv and install the project in it (quiet when nothing changed).
	@:

# Two installs: setup.py takes header files from the installed JAX, so JAX comes first.
$(STAMP): $(INPUTS)
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null || { python=$$(launch/find_python.sh) \
	  && echo "Setting up $(VENV) with $$($$python --version); takes a minute or two" \
	  && $$python -m venv --clear $(VENV); }
	@$(PIP) $(INSTALL) setuptools jax
	@$(PIP) $(INSTALL) --no-build-isolation --editable '.[dev]'
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
	$(BIN)/python $(PYTEST) $(PARALLEL) -m "not alone"

test-wheel: setup  ## Build source distribution and wheel, and run the short main job from the wheel.
	$(BIN)/python $(PYTEST) -m alone tests/test_setup.py

# An environment over .venv, so that no other test meets the plugins of chips that are not here.
EXTRAS := .venv-virtual
SITE := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
OF_VIRTUAL := -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["virtual"])'
COMPILING := virtual tune/test_compiled.py lab/test_kernel.py jobs/test_compile.py jobs/test_tune_flags.py \
  hardware/test_topology.py hardware/test_aot.py hardware/test_flag_check.py hardware/test_platforms.py

test-extras: setup  ## Install the compilers of the extra virtual beside .venv, and run what compiles.
	@$(BIN)/python -m venv --without-pip $(EXTRAS)
	@echo "import site; site.addsitedir('$$($(BIN)/python $(SITE))')" > "$$($(EXTRAS)/bin/python $(SITE))/over.pth"
	@$(PIP) --python $(EXTRAS)/bin/python $(INSTALL) $$($(BIN)/python $(OF_VIRTUAL))
	$(EXTRAS)/bin/python $(PYTEST) $(PARALLEL) $(addprefix tests/,$(COMPILING))

format: setup  ## Format and mend what the linter can.
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
