# Every target sets up what it needs. PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
# Extra arguments for pytest: make test ARGS='-k rename -x'
ARGS ?=

.PHONY: run test check lint bench fast fuzz clean setup guest-setup

run: guest-setup
	@$(VENV)/bin/dentry demo

test: guest-setup lint
	$(PYTEST) $(ARGS)

check: lint fast

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

fast: setup
	$(PYTEST) -m 'not slow and not guest and not fuse' $(ARGS)

fuzz: setup
	$(PY) -m harness.fuzz all --inputs 1000000 $(ARGS)

bench: guest-setup
	$(PY) -m benchmarks $(ARGS)
	$(PY) -m benchmarks.mounts

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@sh .ci/setup-venv '$(PYTHON)' '$(VENV)'
	@touch $@

# After setup, because both may install packages.
guest-setup: setup
	@sh .ci/setup-guest '$(PY)'

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
