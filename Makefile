# `make demo` and `make test` need nothing but Python 3.11+ and make: they build the environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PEERS := .venv-peers/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test check format bench bench-peers up down lock clean

help:  ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/'

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Hindcast needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[service,training,yahoo,dev]'
	touch $@

demo: $(INSTALLED)  ## Train two jobs on real data, promote, serve and forecast. ARGS=--once stops after it.
	HINDCAST_HOME=.hindcast/demo $(BIN)/hindcast demo $(ARGS)

# Many tests wait for processes they started: more workers than cores. Byte code is kept whatever the environment
# says, or each of those processes would compile Hindcast anew.
test: $(INSTALLED)  ## Run the whole test suite. ARGS are passed to pytest.
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 4 --dist worksteal $(ARGS)

check: $(INSTALLED)  ## Formatting, lint and strict types.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)  ## Format the code.
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(PEERS): benchmarks/requirements-peers.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

bench-peers: $(PEERS)  ## Make the environment the benchmarks run the peers in.

bench: $(INSTALLED) $(PEERS)  ## Run the benchmarks that need no data, quickly. ARGS="--runs 3" runs them in full.
	$(BIN)/python -m benchmarks.training_speed $(or $(ARGS),--quick)
	$(BIN)/python -m benchmarks.scaling $(or $(ARGS),--quick)
	for name in ledger recording hot_path streaming intervals drift gate batch partitions year; do \
		$(BIN)/python -m benchmarks.$$name --quick || exit 1; done
	if command -v wrk; then $(BIN)/python -m benchmarks.serving --quick; fi

up:  ## Start PostgreSQL, MLflow, the service and the worker with Docker.
	docker compose up --build --detach --wait

down:  ## Stop them; data stays in the volumes.
	docker compose down

lock:  ## Write constraints.txt anew from a fresh environment.
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet '.[service,training,yahoo,dev]'
	.venv-lock/bin/python -m pip freeze --exclude hindcast --exclude pip --exclude setuptools \
		| sed -E 's/\+cpu$$//' | grep -E '^[A-Za-z0-9_.-]+==' > constraints.txt
	rm -rf .venv-lock

clean:  ## Remove the environment and everything the demo made.
	rm -rf $(VENV) .venv-peers .hindcast
