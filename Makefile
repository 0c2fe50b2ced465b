# Every habit of the house has a name. `make help` lists them.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
PYTHON := $(VENV)/bin/python
BOOTSTRAP := $(or $(shell command -v python3),python3) deploy/build/bootstrap.py $(VENV)
STACK := deploy.local.supervisor
TESTS ?=
# More than the cores of a small machine: much of a test is waiting.
WORKERS ?= 3
# Only a run of every test can cover it all.
COVERED := $(if $(TESTS),,--cov-fail-under=85)

# `make run` is stopped by a signal and is to end with 0 then, but make itself always dies of the signal it got. So make
# becomes the supervisor instead of waiting for it: a function of our own that executes a program in make's place. Where
# it cannot be built (no C compiler, a make without `load`), everything stops just the same and make says "Terminated".
ifneq (,$(filter run,$(MAKECMDGOALS)))
ifneq (,$(filter load,$(.FEATURES)))
ifeq (,$(findstring n,$(filter-out --%,$(firstword -$(MAKEFLAGS)))))
-load $(VENV)/become.so
$(VENV)/become.so: deploy/build/become.c
	@mkdir -p $(VENV) && $(CC) -shared -fPIC -o $@ $< 2>/dev/null || true
endif
endif
endif

.PHONY: help run demo test check bench scenarios control-plane format openapi requirements upgrade audit clean env env-dev

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  \033[1mmake %-15s\033[0m %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

env:
	@$(BOOTSTRAP) run

env-dev:
	@$(BOOTSTRAP) dev

run: env ## start the one-machine stack and serve until Ctrl-C
	@$(become exec $(PYTHON) -m $(STACK))exec $(PYTHON) -m $(STACK)

demo: env ## tell the whole story against the running stack
	@exec $(PYTHON) -m deploy.local.demo

test: env-dev ## every test (TESTS=tests/rules for a part)
	@exec $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup -m "not bench" --cov --cov-report=term:skip-covered $(COVERED) $(TESTS)

check: env-dev ## the static gates
	@exec $(PYTHON) -m tests.checks

bench: env-dev ## the benchmarks, each with its reference in the same run
	@exec $(PYTHON) -m tests.bench

scenarios: env-dev ## which numbered scenarios have a passing test
	@test -f .scenarios.json || $(MAKE) --no-print-directory test
	@exec $(PYTHON) -m tests.support.scenarios

control-plane: env ## build a real Kubernetes control plane into the user's cache
	@exec $(PYTHON) -m deploy.controlplane.build

format: env-dev ## put the code into the house's form
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format .

openapi: env-dev ## write openapi.json from the application
	@$(PYTHON) -m api.openapi > .openapi.tmp && mv .openapi.tmp openapi.json

requirements: env ## compile pyproject.toml into the pinned and hashed files, keeping what is pinned
	@deploy/build/requirements.sh $(VENV)/bin/uv

upgrade: env ## the same with the newest versions
	@deploy/build/requirements.sh $(VENV)/bin/uv --upgrade

audit: env-dev ## known vulnerabilities of what is pinned (asks the package index)
	@exec $(PYTHON) -m tests.checks.audit

clean: ## remove what can be made again (not .berth)
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage .coverage.* .scenarios.json
	rm -rf build dist *.egg-info
	find . -name __pycache__ -type d -not -path './.berth*' -prune -exec rm -rf {} +
