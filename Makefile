# The commands of this repository. `make help` lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# A checkout that cannot be written to keeps its environment in BERTH_HOME, unless it brings one.
READ_ONLY := $(shell test -w . || test -x .venv/bin/python || echo yes)
VENV := $(if $(and $(READ_ONLY),$(BERTH_HOME)),$(BERTH_HOME)/venv,.venv)
ifneq (.venv,$(VENV))
# Where tests write their results and caches.
export BERTH_TEST_RESULTS ?= $(BERTH_HOME)
export COVERAGE_FILE ?= $(BERTH_HOME)/.coverage
export HYPOTHESIS_STORAGE_DIRECTORY ?= $(BERTH_HOME)/.hypothesis
export PYTEST_ADDOPTS += -o 'cache_dir=$(BERTH_HOME)/.pytest_cache'
endif
PYTHON := $(VENV)/bin/python
BOOTSTRAP = @command -v python3 >/dev/null || { echo "Berth needs Python 3.11 to 3.14: no python3 was found on PATH." >&2; \
	exit 1; }; exec python3 deploy/build/bootstrap.py "$(VENV)"
STACK := deploy.local.supervisor
TESTS ?=
# More than the cores of a small machine: tests wait more than they compute.
WORKERS ?= 4
# Python writes its bytecode cache also where the environment disables it; otherwise each process compiles every module.
PYTEST = exec env PYTHONDONTWRITEBYTECODE= "$(PYTHON)" -m pytest -n $(WORKERS) --dist loadgroup -m "not bench"
# Tracing costs half as much time again. Coverage is required only of a run of every test.
COVERAGE ?=
TRACED := $(if $(COVERAGE),--cov --cov-report=term:skip-covered $(if $(TESTS),,--cov-fail-under=88))

# A signal stops `make run`, which must then end with 0, but make always dies of the signal that it received. The
# function `make_exec` replaces make's process with the supervisor, so that make no longer waits for it. Where the
# function cannot be built (no C compiler, a make without `load`, an environment in a path with spaces), the stack stops
# in the same way and make prints "Terminated".
ifeq (1,$(words $(VENV)))
ifneq (,$(filter run,$(MAKECMDGOALS)))
ifneq (,$(filter load,$(.FEATURES)))
ifeq (,$(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))))
-load $(VENV)/make_exec.so
$(VENV)/make_exec.so: deploy/build/make_exec.c
	@mkdir -p $(VENV) && $(CC) -shared -fPIC -o $@ $< 2>/dev/null || true
endif
endif
endif
endif

.PHONY: help run demo test check bench scenarios control-plane format openapi requirements upgrade audit clean \
	env env-dev

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1mmake %-15s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env:
	$(BOOTSTRAP) run

env-dev:
	$(BOOTSTRAP) dev

run: env ## start the one-machine stack and serve until Ctrl-C
	@$(make_exec exec "$(PYTHON)" -m $(STACK))exec "$(PYTHON)" -m $(STACK)

demo: env ## one customer's subscription over HTTP, against the running stack
	@exec "$(PYTHON)" -m deploy.local.demo

test: env-dev ## every test (TESTS=tests/rules for a part; COVERAGE=1 requires the coverage)
	@$(PYTEST) $(TRACED) $(TESTS)

check: env-dev ## the static checks
	@exec "$(PYTHON)" -m tests.checks

bench: env-dev ## the benchmarks, each with its reference in the same run
	@exec "$(PYTHON)" -m tests.bench

scenarios: env-dev ## which numbered scenarios have a passing test
	@test -f "$(or $(BERTH_TEST_RESULTS),.)/.scenarios.json" || $(MAKE) --no-print-directory test
	@exec "$(PYTHON)" -m tests.support.scenarios

control-plane: env ## build a real Kubernetes control plane into the user's cache
	@exec "$(PYTHON)" -m deploy.controlplane.build

format: env-dev ## format the code and apply the linter's fixes
	@"$(VENV)/bin/ruff" check --fix-only --quiet .
	@"$(VENV)/bin/ruff" format .

openapi: env-dev ## write openapi.json from the application
	@"$(PYTHON)" -m api.openapi > .openapi.tmp && mv .openapi.tmp openapi.json

requirements: env ## compile pyproject.toml into the pinned and hashed files, keeping what is pinned
	@deploy/build/requirements.sh "$(VENV)/bin/uv"

upgrade: env ## compile them with the newest versions
	@deploy/build/requirements.sh "$(VENV)/bin/uv" --upgrade

audit: env-dev ## known vulnerabilities of the pinned packages (asks the package index)
	@exec "$(PYTHON)" -m tests.checks.audit

clean: ## remove generated files (not .berth)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* .scenarios.json
	rm -rf build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.berth*' -prune -exec rm -rf {} +
