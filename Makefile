# One entry for people and CI. Needs Python 3.11 or newer, cargo and a C compiler; everything else comes into .venv.
PYTHON ?= python3
BIN := .venv/bin
export VIRTUAL_ENV := $(CURDIR)/.venv

.PHONY: help demo test check lint lock clean
help:
	@echo "make demo    set up .venv and run the demo (runs/demo)"
	@echo "make test    set up .venv and run every test"
	@echo "make check   make test, and formats, lints and types"
	@echo "make lock    resolve the dependencies anew"

demo: .venv/ready
	$(BIN)/mipo demo --output runs/demo

test: .venv/ready
	cargo test --locked --no-default-features
	$(BIN)/python -m pytest

check: test lint

lint: .venv/ready
	cargo fmt --check
	cargo clippy --release --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --document-private-items
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest mipo._native

# The environment is ready when the locked libraries and mipo itself, built in release, are in it.
.venv/ready: requirements.lock pyproject.toml Cargo.toml Cargo.lock $(wildcard rust/*.rs rust/*/*.rs kernels/*.py)
	@$(PYTHON) -c 'import sys; sys.exit("mipo needs Python 3.11 or newer, this is " + sys.version) if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet -r requirements.lock
	$(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(BIN)/uv pip compile --quiet pyproject.toml --extra train --extra ray --group dev --universal --python-version 3.11 \
		--custom-compile-command "make lock" --output-file requirements.lock

clean:
	rm -rf .venv target
