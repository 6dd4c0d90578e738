PYTHON ?= python3
ARGS ?=
SECONDS ?= 600
SEED ?= 1
DATABASE ?= sqlite
PY = .venv/bin/python
PIP = $(PY) -m pip --disable-pip-version-check
# Tests that need no process besides pytest
FAST = admin conf_and_checks dashboard execution house_rules payloads peasy_jobs queue readme recorder \
	state_machine statistics status statuses

.PHONY: demo test fast torture bench lint clean

demo: .venv/.installed
	@$(PY) example_project/demo.py

test: .venv/.installed-test
	@$(PY) tests/run.py $(ARGS)

# The fast tests on SQLite, for every commit
fast: .venv/.installed-test
	@PEASY_TEST_DATABASE=sqlite $(PY) -m pytest -q -n 2 -m "not slow and not processes" $(FAST:%=tests/test_%.py) $(ARGS)

torture: .venv/.installed-test
	@$(PY) -m tests.torture --seconds $(SECONDS) --seed $(SEED) --database $(DATABASE) $(ARGS)

bench: .venv/.installed-test
	@$(PY) -m benchmarks $(ARGS)

lint: .venv/.installed-test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo

clean:
	rm -rf .venv .venv-newest .venv-bench build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.created:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "peasy_jobs needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Choose another: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "$(PYTHON) cannot create a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

.venv/.installed: .venv/.created pyproject.toml
	@echo "Installing peasy_jobs into .venv"
	@$(PIP) install -qq -e .
	@touch $@

.venv/.installed-test: .venv/.created pyproject.toml
	@echo "Installing peasy_jobs and the dependencies of its tests into .venv"
	@$(PIP) install -qq -e ".[test]"
	@touch .venv/.installed $@
