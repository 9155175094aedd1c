# Everything runs in .venv, which `make setup` creates; only Python 3.11 to 3.13 with venv, and make, must be there.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup browser demo test lint bench clean

BIN := .venv/bin
STAMP := .venv/.installed
# The first of these that is a fitting version with venv; `make setup PYTHON=...` names another.
PYTHON ?= $(shell for python in python3 python3.11 python3.12 python3.13; do \
	$$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$python && break; done)

help:
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /make \1	/'

setup: $(STAMP)  ## create .venv and install everything, the versions in constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "found no Python 3.11 to 3.13 with the venv module; install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --progress-bar off -c constraints.txt -e '.[all,dev]'
	touch $@

demo: setup  ## crawl the demo site, curate and publish a data set, report; some minutes after the install
	$(BIN)/python pipeline/demo.py

browser:  ## install Chromium for the tests of pages, where this user may; without it those tests are skipped
	@have() { command -v chromium >/dev/null && command -v chromedriver >/dev/null; }; \
	if ! have && test "$$(id -u)" = 0 && command -v apt-get >/dev/null; then apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null || true; \
	fi; have || echo "no Chromium with chromedriver found: the tests of pages will be skipped" >&2

test: setup browser  ## run all tests, slow ones too
	$(BIN)/python -m pytest

lint: setup  ## check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup  ## measure each speed claim beside its peers
	@for script in $$(grep -l '^if __name__ == "__main__"' benchmarks/*.py); do \
		echo "== $$script"; $(BIN)/python -m benchmarks.$$(basename "$$script" .py); done

clean:  ## remove what setup, demo and the tools wrote
	rm -rf .venv build dist out *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find schemas pipeline training benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
