# `make help` lists what can be done here; plain `make` does what CI does first.
PYTHON ?= python3
VENV ?= .venv
# Tests at once.
JOBS ?= 2
BIN = $(VENV)/bin

.PHONY: all help run test test-quick test-docker bench bench-health faults audit lint types check format requirements clean
.DEFAULT_GOAL := all

all: check test ## What CI runs but for test-docker: lint, types, tests

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.run ## Run the service on http://127.0.0.1:8080 with the embedded database
	$(BIN)/python -m quart_ots serve --bind 127.0.0.1:8080

test: $(VENV)/.dev ## Run the whole test suite with coverage, in parallel
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=term tests/test_*

test-quick: $(VENV)/.dev ## Run the tests that start no server and no database
	$(BIN)/python -m pytest -n $(JOBS) tests/test_vault tests/test_api tests/test_edge tests/test_ops

test-docker: $(VENV)/.dev ## Run the tests of the image and the compose files; needs a Docker engine
	$(BIN)/python -m pytest tests/docker

bench: $(VENV)/.dev ## Measure how fast it is and what that costs; writes docs/performance.md (needs wrk)
	$(BIN)/python -m bench

bench-health: $(VENV)/.dev ## Measure how fast health answers while 200 creators keep the pool full
	$(BIN)/python -m bench.health

faults: $(VENV)/.dev ## Attack every promise at length (half an hour), and write docs/reliability.md's table
	$(BIN)/python -m tests.faults

audit: $(VENV)/.dev ## Look for known vulnerabilities in what requirements.txt pins; needs internet access
	$(BIN)/pip-audit --disable-pip --require-hashes --requirement requirements.txt

check: lint types ## Run the linters and the type checker

lint: $(VENV)/.dev ## Run ruff, flake8, bandit and import-linter, and check the workflow files
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/flake8 ./
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive quart_ots
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml

types: $(VENV)/.dev ## Run mypy
	$(BIN)/mypy

format: $(VENV)/.dev ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

requirements: $(VENV)/.dev ## Pin the newest requirements that fit the .in files
	for name in requirements requirements-embedded requirements-dev; do \
		$(BIN)/pip-compile --quiet --upgrade --no-strip-extras --generate-hashes --allow-unsafe \
			--no-emit-index-url --no-emit-find-links --no-emit-trusted-host \
			--output-file $$name.txt $$name.in || exit 1; \
	done

clean: ## Remove the venv and what the tools leave behind
	rm -rf $(VENV) build *.egg-info .coverage .coverage.* .mypy_cache .pytest_cache .ruff_cache .hypothesis artifacts

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("quart_ots needs Python 3.11 or newer, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements.txt requirements-embedded.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r requirements-embedded.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@touch $@
