# One command from a fresh clone: `make train`. Only Python 3.11 or 3.12 and make are needed.
# ARGS reaches the program behind a target: make train ARGS="seed=3", make test ARGS="-k gae".

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BENCH_VENV := .venv-bench
AUDIT_VENV := .venv-audit
DOCS_VENV := .venv-docs
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3; do \
	$$candidate -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
	&& echo $$candidate && break; done)
CONFIG ?= configs/delayed_cue.yaml
ARGS ?=
PACKAGES := mneme envs controllers rollout_workers learner distributed

.PHONY: help setup train test test-slow lint format audit docs suite bench bench-check bench-controllers bench-setup dashboard clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## Create .venv from the lock files (the other targets do it when needed)

train: $(VENV)/.installed ## Train the preset CONFIG=configs/delayed_cue.yaml; ARGS="..." overrides settings
	$(VENV)/bin/python -m mneme train $(if $(findstring --resume,$(ARGS)),,$(CONFIG)) $(ARGS)

test: $(VENV)/.installed ## Run the quick tests, on up to 4 cores
	@# A file's tests stay together, as they share fixtures; those that start a Ray want the cores for themselves. A status
	@# of 5 says that ARGS left none of a part.
	$(VENV)/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile -m "not slow and not ray" $(ARGS) || [ $$? -eq 5 ]
	$(VENV)/bin/python -m pytest -m "ray and not slow" $(ARGS) || [ $$? -eq 5 ]

test-slow: $(VENV)/.installed ## Run the tests that take minutes
	$(VENV)/bin/python -m pytest -m slow --timeout 1800 $(ARGS)

lint: $(VENV)/.installed ## Check style, formatting and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed ## Format the code and mend what ruff can mend
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

audit: $(AUDIT_VENV)/.installed ## Look up known vulnerabilities of the locked packages (asks PyPI)
	$(AUDIT_VENV)/bin/pip-audit --no-deps --disable-pip --requirement requirements.lock --requirement requirements-linux.lock

docs: $(DOCS_VENV)/.installed ## Write the documentation as a site into site/; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(DOCS_VENV)/bin/mkdocs build --strict

suite: $(VENV)/.installed ## Compare every controller on every memory task (hours); ARGS="--controllers gru,lstm"
	$(VENV)/bin/python -m mneme suite $(ARGS)

bench: $(VENV)/.installed $(BENCH_VENV)/.installed ## Measure speed side by side with the peers
	$(VENV)/bin/python -m benchmarks.environments
	$(VENV)/bin/python -m benchmarks.floor
	$(VENV)/bin/python -m benchmarks.curves
	$(VENV)/bin/python -m benchmarks.run $(ARGS)

bench-check: $(VENV)/.installed ## Say what got slower since ARGS="--keep", beside the matrix products alone
	$(VENV)/bin/python -m benchmarks.check $(ARGS)

bench-controllers: $(VENV)/.installed $(BENCH_VENV)/.installed ## Measure every controller beside its loop, a GRU and sb3-contrib
	$(VENV)/bin/python -m benchmarks.controllers $(ARGS)

bench-setup: $(BENCH_VENV)/.installed ## Create .venv-bench, where the peers of the benchmark live

dashboard: $(VENV)/.installed ## Open MLflow on http://127.0.0.1:5000; ARGS="--port 5001" for another port
	$(VENV)/bin/python -m mneme dashboard $(ARGS)

clean: ## Remove caches and builds (.venv and runs stay)
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find $(PACKAGES) benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Written last, the stamp says that an environment is complete; an interrupted set-up is simply run again.
$(VENV)/.installed: requirements.lock requirements-linux.lock pyproject.toml
	$(call install,$(VENV),requirements.lock)
	$(VENV)/bin/python -m pip install --no-deps --no-build-isolation --editable .
	@# Torch for CUDA brings the triton it wants; torch for CPUs brings none, and the tests interpret our kernels.
	@$(VENV)/bin/python -c 'import triton' 2>/dev/null || [ "$$(uname -s)" != Linux ] || \
		$(VENV)/bin/python -m pip install --disable-pip-version-check $(call locked,triton)
	@# Without its CUDA extensions it builds in seconds. The tests compare with it, and Mamba-2 can run its Triton kernels.
	@$(VENV)/bin/python -c 'from importlib.util import find_spec; raise SystemExit(not find_spec("mamba_ssm"))' || \
		[ "$$(uname -s)" != Linux ] || \
		MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(VENV)/bin/python -m pip install --disable-pip-version-check \
			--no-build-isolation --no-deps $(call locked,mamba-ssm) || \
		echo "mamba-ssm could not be built, so the tests that compare with it will be skipped." >&2
	@touch $@

$(BENCH_VENV)/.installed: benchmarks/requirements.lock
	$(call install,$(BENCH_VENV),benchmarks/requirements.lock)
	@touch $@

# The newest one, as it is to know the newest vulnerabilities.
$(AUDIT_VENV)/.installed:
	$(PYTHON) -m venv $(AUDIT_VENV)
	$(AUDIT_VENV)/bin/python -m pip install --disable-pip-version-check pip-audit
	@touch $@

$(DOCS_VENV)/.installed: docs/requirements.lock
	$(call install,$(DOCS_VENV),docs/requirements.lock)
	@touch $@

# A package of requirements-linux.lock with its version.
locked = $(shell grep '^$(1)==' requirements-linux.lock)

define install
	@if [ ! -x $(1)/bin/python ]; then \
		[ -n "$(PYTHON)" ] || { echo "No Python 3.11 or 3.12 found: install one, or name it, as in make setup PYTHON=/path/to/python3.11." >&2; exit 1; }; \
		$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null \
			|| { echo "PYTHON is $(PYTHON), which does not run as Python 3.11 or 3.12: name another, as in make setup PYTHON=python3.11." >&2; exit 1; }; \
		$(PYTHON) -m venv $(1); \
	fi
	$(1)/bin/python -m pip install --disable-pip-version-check -r $(2)
endef
