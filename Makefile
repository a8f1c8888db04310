# Needs Python 3.11 or newer and make; the first call of a target creates .venv and installs what that target uses.
PYTHON ?= python3
WORKERS ?= 2
PYTEST_ARGS ?=
FUZZ_CASES ?= 5000
DEMO_ARGS ?=
BENCH_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
# One thread a process: two threads on two busy cores can be many times slower than one.
export OMP_NUM_THREADS ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

EXTRAS_test := test,lint
ARVIZ_TESTS := tests/diagnostics tests/studies tests/test_demo.py tests/infer/test_prior_sensitivity.py tests/infer/test_fit_report.py \
	tests/infer/test_neural_transport.py tests/infer/test_fit.py
EXTRAS_docs := docs
EXTRAS_bench := bench,test

# $(call timed,what,command): runs the command, says how long it took, and fails if it failed.
timed = @start=$$(date +%s); $(2); status=$$?; echo "== $(1): $$(( $$(date +%s) - start )) s"; exit $$status

.PHONY: help demo test test-slow fuzz test-arviz1 lint format docs bench clean
.DEFAULT_GOAL := help

help:
	@echo "make demo       eight schools end to end: summary, verdict, posterior.nc, posterior.png"
	@echo "make test       lint, then every test but the slow ones"
	@echo "make test-slow  every test"
	@echo "make fuzz       5,000 cases of every family of tests/fuzz"
	@echo "make test-arviz1  what uses arviz, under arviz 1.x, in an environment of its own"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff mend what it can"
	@echo "make docs       the site, in docs/_build/html"
	@echo "make bench      the side-by-side measurements"
	@echo "make clean      remove what the targets made, .venv included"

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/stamp-base: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call timed,install,$(BIN)/python -m pip install -q -c constraints.txt -e .)
	@touch $@

$(VENV)/stamp-%: $(VENV)/stamp-base
	$(call timed,install $*,$(BIN)/python -m pip install -q -c constraints.txt -e ".[$(EXTRAS_$*)]")
	@touch $@

demo: $(VENV)/stamp-base
	$(call timed,demo,$(BIN)/python -m pyro_flows demo --out demo-output $(DEMO_ARGS))

lint: $(VENV)/stamp-test
	$(call timed,ruff check,$(BIN)/ruff check .)
	$(call timed,ruff format,$(BIN)/ruff format --check .)
	$(call timed,mypy,$(BIN)/mypy)

format: $(VENV)/stamp-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(call timed,tests,$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS))

test-slow: lint
	$(call timed,all tests,$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --slow $(PYTEST_ARGS))

fuzz: $(VENV)/stamp-test
	$(call timed,fuzzing,FUZZ_CASES=$(FUZZ_CASES) $(BIN)/python -m pytest tests/fuzz $(PYTEST_ARGS))

# arviz 1.x asks for Python 3.12; --ignore-requires-python lets the bridge be tried on 3.11 as well.
$(VENV)-arviz1/stamp: pyproject.toml constraints.txt constraints-arviz1.txt
	$(PYTHON) -m venv $(VENV)-arviz1
	$(call timed,install,$(VENV)-arviz1/bin/python -m pip install -q -c constraints.txt -e ".[test]")
	$(call timed,install arviz 1,$(VENV)-arviz1/bin/python -m pip install -q --no-deps --ignore-requires-python -r constraints-arviz1.txt)
	@touch $@

test-arviz1: $(VENV)-arviz1/stamp
	$(call timed,tests under arviz 1,$(VENV)-arviz1/bin/python -m pytest -n $(WORKERS) --dist worksteal $(ARVIZ_TESTS) $(PYTEST_ARGS))

docs: $(VENV)/stamp-docs
	$(call timed,docs,$(BIN)/python -m sphinx -W --keep-going -q -j 2 -b html docs docs/_build/html)
	$(BIN)/python docs/check_site.py docs/_build/html
	@echo "docs/_build/html/index.html"

bench: $(VENV)/stamp-bench
	@ls benchmarks/*.py >/dev/null 2>&1 || { echo "there is no benchmark yet"; exit 1; }
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script $(BENCH_ARGS); done

clean:
	rm -rf $(VENV) $(VENV)-arviz1 build dist *.egg-info docs/_build docs/generated demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis
