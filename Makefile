# Every target sets up what it needs. PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
# Extra arguments for pytest: make test ARGS='-k rename -x'
ARGS ?=

.PHONY: run test check bench fast clean setup guest-setup

run: setup guest-setup
	$(VENV)/bin/dentry demo

test: setup guest-setup check
	$(PYTEST) -m 'slow or guest or fuse' $(ARGS)

check: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(PYTEST) -m 'not slow and not guest and not fuse' $(ARGS)

fast: setup
	$(PYTEST) -m 'not slow and not guest and not fuse' $(ARGS)

bench: setup guest-setup
	$(PY) -m benchmarks $(ARGS)

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@sh .ci/setup-venv '$(PYTHON)' '$(VENV)'
	@touch $@

guest-setup:
	@sh .ci/setup-guest

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
