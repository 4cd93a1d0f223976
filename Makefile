# Every target sets up what it needs. PYTHON picks the interpreter (3.11 or later).
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest
# Extra arguments for pytest: make test ARGS='-k rename -x'
ARGS ?=
# A newer Debian's virtiofsd, QEMU and kernel, for those who ask for it.
export DENTRY_NEWER ?= $(CURDIR)/.cache/newer

.PHONY: run test check lint bench bench-guest fast fuzz pictures clean setup guest-setup newer

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

bench: guest-setup newer
	$(PY) -m benchmarks $(ARGS)
	$(PY) -m benchmarks.requests
	$(PY) -m benchmarks.mounts

bench-guest: setup newer
	@sh .ci/setup-guest '$(PY)' fio
	$(PY) -m benchmarks.guest $(ARGS)

pictures: setup
	$(PY) -m harness.shell.pictures docs/pictures

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@sh .ci/setup-venv '$(PYTHON)' '$(VENV)'
	@touch $@

# After setup, because both may install packages.
guest-setup: setup
	@sh .ci/setup-guest '$(PY)'

newer:
	@sh .ci/setup-newer '$(DENTRY_NEWER)'

clean:
	rm -rf $(VENV) .cache .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
