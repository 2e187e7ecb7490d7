# Needs make and Python 3.11 to 3.13 only; everything else is installed into .venv by the first target that wants it.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
# Tests without a real engine wait more than they compute; real engines run one deployment after the other.
FAST := -m "not engine" -n 3 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help install serve test test-full test-fast evidence mutants lint check bench bench-peers clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: ## fill .venv with Triptych and an engine for this machine; at once when nothing changed
	@$(PYTHON) scripts/install.py --venv $(VENV)

serve: install ## serve the shipped demo model and ask it about one picture
	@$(PY) -m triptych demo

test: install ## run the tests
	$(PY) -m pytest $(FAST)
	$(PY) -m pytest -m engine

test-full: install ## run every test, whole matrices included (about half an hour)
	$(PY) -m pytest --full $(FAST)
	$(PY) -m pytest --full -m engine

evidence: install ## run every test of a real engine, and write docs/support-matrix.md from what they show
	$(PY) -m pytest --full -m engine --evidence docs/support-matrix.json
	$(PY) scripts/support_matrix.py

test-fast: install ## run the tests that need no real engine
	$(PY) -m pytest $(FAST)

mutants: install ## change the pure modules in small ways, and list the changes that no unit test notices (20 minutes)
	$(PY) scripts/mutants.py

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

check: lint test ## everything a change must pass: style, types, import rules, tests

bench: install ## measure
	$(PY) -m benchmarks

bench-peers: install ## install the servers that are measured beside ours
	$(PY) -m benchmarks.peers_install

clean: ## remove .venv and all that tools left behind
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv-peers/*' -prune -exec rm -rf {} +
