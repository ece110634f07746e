# Everything that a developer does. Each target first installs what it needs into .venv, but only when pyproject.toml
# or constraints.txt has changed since; each can be repeated, and interrupted with Ctrl-C.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.SUFFIXES:
MAKEFLAGS += --no-print-directory --no-builtin-rules

VENV := .venv
BIN := $(VENV)/bin
# The interpreter that .venv is made of; any from 3.11 on: make test PYTHON=/path/to/python3.12
PYTHON ?= $(shell for each in python3.11 python3.12 python3.13 python3; do \
	$$each -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$each && break; done)

.PHONY: help demo test chaos lint format bench

help: ## Say what there is (this).
	@sed -n 's/^\([a-z]*\):[^#]*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

demo: $(VENV)/.demo ## Run a whole fleet on this machine, on real photos.
	@exec $(BIN)/classifleet demo

test: lint ## Check everything: lint, types, contracts, all tests.
	@$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/chaos $(PYTEST_ARGS)
	@exec $(BIN)/python -m pytest tests/chaos $(PYTEST_ARGS) # with nothing beside it: it counts seconds

chaos: $(VENV)/.dev ## Kill, cut off, fill and confuse a fleet under load, and count what is lost: 30 minutes.
	@exec $(BIN)/python -m pytest tests/chaos --chaos --chaos-table=out/chaos.txt $(PYTEST_ARGS)

lint: $(VENV)/.dev ## Check style, types, the contracts between packages, and that docs/ matches the code.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check
	$(BIN)/python helm/generate.py --check
	$(BIN)/python helm/dashboards.py --check

format: $(VENV)/.dev ## Put code into shape, and write the generated pages of docs/.
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py
	$(BIN)/python helm/generate.py
	$(BIN)/python helm/dashboards.py

bench: $(VENV)/.dev ## Measure beside other systems, and write benchmarks/RESULTS.md: half an hour (ONLY=bulk: one part).
	@exec $(BIN)/python benchmarks/bench.py $(ONLY) $(BENCH_ARGS)

# A stamp says that an extra is installed; what a developer has includes the demo.
$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/pip
	@$(call install,dev)
	@touch $@ $(VENV)/.demo

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/pip
	@$(call install,demo)
	@touch $@

# pip is the last thing that venv installs: if it is there, the environment is whole.
$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer with venv is needed; none was found." >&2; exit 1; }
	@echo "Making $(VENV) with $(PYTHON) …"
	@$(PYTHON) -m venv --clear $(VENV)

define install
echo "Installing [$(1)] into $(VENV) (the first time takes minutes: torch alone is gigabytes) …" && \
$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable '.[$(1)]'
endef
