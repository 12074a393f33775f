# Every target sets up what it needs; `make` alone lists them.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STUBS := .venv-stubs
BENCH := .venv-bench
BASELINE := protos/baseline.binpb
.DEFAULT_GOAL := help
.PHONY: help setup demo test fuzz chaos lint bench docs stubs check-stubs check-protos proto-baseline clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.ready ## create .venv and install Tunesmith with everything it needs

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Tunesmith needs Python 3.11 or newer; set PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gateway,trainer,dev]'
	touch $@

demo: setup ## train a small model on real tweets through the service, show before and after
	$(BIN)/python examples/demo.py

test: setup ## the whole test suite
	$(BIN)/python -m pytest

fuzz: setup ## thousands of valid and hostile requests from the OpenAPI description, against a real gateway
	$(BIN)/python -m tests.fuzz

chaos: setup ## 200 random kills of gateways and runs under load; counts what was lost and what was doubled
	$(BIN)/python -m tests.chaos --kills 200 --seed 1
	$(BIN)/python -m tests.chaos --kills 200 --seed 1 --postgres

lint: setup check-stubs check-protos ## ruff, import contracts, pyright on service/, contracts and stubs of protos/
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

bench: setup $(BENCH)/.ready ## our trainer against tuned TRL, the overhead of the service, the gateway alone, and how a step's time grows
	$(BIN)/python bench/trainer.py
	$(BIN)/python bench/overhead.py
	$(BIN)/python -m bench.api
	$(BIN)/python -m bench.scaling

$(BENCH)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt torch
	$(BENCH)/bin/pip install --quiet --constraint constraints.txt --editable '.[trainer,bench]'
	touch $@

docs: setup ## write the pages of docs/ that the code knows best
	PYTHONPATH=. $(BIN)/python docs/make_pages.py

stubs: $(STUBS)/.ready ## generate the gRPC stubs from protos/
	$(STUBS)/bin/python -m grpc_tools.protoc -I. --python_out=. --grpc_python_out=. --pyi_out=. protos/tunesmith/v1/*.proto

check-stubs: $(STUBS)/.ready ## fail when the committed stubs are not those of protos/
	rm -rf $(STUBS)/out && mkdir $(STUBS)/out
	$(STUBS)/bin/python -m grpc_tools.protoc -I. --python_out=$(STUBS)/out --grpc_python_out=$(STUBS)/out --pyi_out=$(STUBS)/out protos/tunesmith/v1/*.proto
	for stub in $(STUBS)/out/protos/tunesmith/v1/*; do cmp "$$stub" "protos/tunesmith/v1/$$(basename $$stub)" || exit 1; done

check-protos: setup ## fail when protos/ breaks its style, or a client of the last release
	$(BIN)/buf lint
	$(BIN)/buf breaking --against $(BASELINE)

proto-baseline: setup ## take protos/ as it is for the contract of a release; only when one is made
	$(BIN)/buf build --exclude-source-info --output $(BASELINE)

# 1.81 on purpose: stubs of newer generators refuse the protobuf release that some Ray extras resolve to.
$(STUBS)/.ready: Makefile
	$(PYTHON) -m venv $(STUBS)
	$(STUBS)/bin/pip install --quiet grpcio-tools==1.81.1
	touch $@

clean: ## remove the environments and what was built
	rm -rf $(VENV) $(STUBS) $(BENCH) build dist *.egg-info
