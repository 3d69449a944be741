PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
AGENTS := .agents
# A file of tests stays in one process; two files run at a time, since most of them wait for processes of ours.
PYTEST := $(BIN)/pytest -n 2 --dist loadfile
DUCKDB := .duckdb
# PyPI's Linux torch brings gigabytes of CUDA; `make demo TORCH_INDEX=` asks for that build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
SEED ?= 0
SIZE ?= full

.PHONY: help install agents demo demo-control demo-results check test test-all property frameworks faults soak sanitize bench bench-collect bench-transform

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 16

install: $(VENV)/demo.stamp  ## Set up .venv with everything the demo needs

demo: $(VENV)/demo.stamp  ## Watch a support bot get better from its own traces (SEED=n, SIZE=small)
	$(BIN)/python examples/support/demo/main.py --seed $(SEED) --size $(SIZE)

demo-control: $(VENV)/demo.stamp  ## The same with permuted rewards: nothing may be learnt
	$(BIN)/python examples/support/demo/main.py --seed $(SEED) --size $(SIZE) --control

demo-results: $(VENV)/demo.stamp  ## Seeds 0, 1, 2 and the control in full, and the table of them (three quarters of an hour)
	for seed in 0 1 2; do $(BIN)/python examples/support/demo/main.py --seed $$seed --out runs/results/seed-$$seed || exit 1; done
	$(BIN)/python examples/support/demo/main.py --seed 0 --control --base runs/results/seed-0 --out runs/results/control
	$(BIN)/python examples/support/demo/results.py runs/results --out examples/support/RESULTS.md

check: $(VENV)/dev.stamp  ## Lint, formatting, types, import rules, wheel against checkout, slim install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/pytest -q tests/test_packaging.py

test: check agents  ## Set up, check and test (about ten minutes)
	$(PYTEST) --ignore tests/test_packaging.py

test-all: check agents  ## The same, and nothing may be skipped: needs Node
	npm install --silent --prefix tests/fixtures/js
	$(PYTEST) --ignore tests/test_packaging.py --no-skips

property: $(VENV)/dev.stamp $(DUCKDB)/1.5/stamp $(DUCKDB)/2.0/stamp  ## Two hundred episodes in any order and cut, on DuckDB 1.5 and 2.0 (SEED=n)
	PROPERTY_SEED=$(SEED) $(BIN)/pytest -m slow tests/transforms/test_any_order.py tests/transforms/test_faults.py

faults: $(VENV)/dev.stamp  ## Kill the collector at every system call, make its disk err, fuzz it (under six minutes)
	$(PYTEST) -m faults
	WIRE_SEEDS=10000 $(BIN)/pytest -q tests/collector/test_native.py

soak: $(VENV)/dev.stamp  ## A hundred kills, ten minutes of overload, SDKs of several years, a million lives (hours)
	$(BIN)/pytest -m soak --timeout 40000

sanitize: $(VENV)/dev.stamp  ## Fuzz the native decoder under AddressSanitizer and UndefinedBehaviorSanitizer
	$(BIN)/pytest -m slow tests/collector/test_native.py

agents: $(AGENTS)/newest/stamp  ## Set up .agents/newest: the newest agent frameworks, for the tests of instrumentation/

frameworks: check agents $(AGENTS)/oldest/stamp  ## Agents on newest and oldest frameworks by all three ways in; writes tests/agents/RESULTS.md
	$(BIN)/pytest -m frameworks

bench: $(VENV)/dev.stamp  ## Benchmarks: ratios against something real in the same run
	for file in benchmarks/*.py; do $(BIN)/python $$file || exit 1; done

bench-collect: $(VENV)/dev.stamp  ## The collector beside rotel, Agent Lightning, MLflow and Phoenix, in environments of their own
	$(BIN)/python benchmarks/collect.py --write benchmarks/results/collect.md

bench-transform: $(VENV)/dev.stamp  ## A million spans to credit and samples, beside Agent Lightning's adapter; increments, memory, hostile traces
	$(BIN)/python benchmarks/transform.py --write benchmarks/results/transform.md

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not installed; set PYTHON=python3.12 or newer, or install Python 3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "make: '$(PYTHON) -m venv' failed; on Debian: apt-get install python3.11-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
# torch goes in its own --no-deps step: an unreachable extra index costs retries once here instead of once a package.
$(VENV)/demo.stamp: pyproject.toml collector/wire.c | $(BIN)/python
	$(if $(TORCH_INDEX),$(BIN)/pip install --quiet --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) "torch==2.13.0")
	$(BIN)/pip install --quiet -e ".[demo]"
	@touch $@
$(VENV)/dev.stamp: $(VENV)/demo.stamp
	$(BIN)/pip install --quiet --group dev
	@touch $@
$(AGENTS)/newest/stamp: pyproject.toml
	$(PYTHON) -m venv $(AGENTS)/newest
	$(AGENTS)/newest/bin/pip install --quiet --upgrade "pip>=25.1"
	$(AGENTS)/newest/bin/pip install --quiet --upgrade -e ".[langchain,openai,autogen,agents]" --group agents
	@touch $@
$(AGENTS)/oldest/stamp: pyproject.toml tests/agents/oldest.txt
	$(PYTHON) -m venv $(AGENTS)/oldest
	$(AGENTS)/oldest/bin/pip install --quiet --upgrade "pip>=25.1"
	$(AGENTS)/oldest/bin/pip install --quiet -e ".[langchain,openai,autogen,agents]" -r tests/agents/oldest.txt
	@touch $@
# Each version that the range in pyproject.toml spans, with nothing but what a transform needs.
$(DUCKDB)/%/stamp: pyproject.toml
	$(PYTHON) -m venv $(DUCKDB)/$*
	$(DUCKDB)/$*/bin/pip install --quiet --upgrade "pip>=25.1"
	$(DUCKDB)/$*/bin/pip install --quiet -e ".[transform]" "duckdb==$*.*"
	@touch $@
