PYTHON ?= python3
ARGS ?=
SECONDS ?= 600
SEED ?= 1
DATABASE ?= sqlite
PY = .venv/bin/python
PIP = $(PY) -m pip --disable-pip-version-check

.PHONY: demo test torture bench lint clean

demo: .venv/.installed
	@$(PY) example_project/demo.py

test: .venv/.installed-test
	@$(PY) tests/run.py $(ARGS)

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
		|| { echo "peasy_jobs needs Python 3.11 or newer, and $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=/path/to/python3"; exit 1; }
	@$(PYTHON) -m venv .venv \
		|| { echo "$(PYTHON) cannot make a virtual environment. On Debian and Ubuntu: apt install python3-venv"; exit 1; }
	@touch $@

.venv/.installed: .venv/.created pyproject.toml
	@echo "Installing peasy_jobs into .venv"
	@$(PIP) install -qq -e .
	@touch $@

.venv/.installed-test: .venv/.created pyproject.toml
	@echo "Installing peasy_jobs and what its tests need into .venv"
	@$(PIP) install -qq -e ".[test]"
	@touch .venv/.installed $@
