# Each target sets up what it needs, on a fresh machine too. `make PYTHON=python3.12 …` picks another Python, and
# `make test ARGS="-k smc -x"` passes arguments on to pytest.

PYTHON ?= python3
COMMA := ,
VENV := .venv

# Where other programs share the cores, OpenMP threads that spin while they wait can cost ten times the work itself.
export OMP_WAIT_POLICY ?= PASSIVE

BIN := $(VENV)/bin
# BRISQUE's support vector machine is compiled when it is installed; without a compiler its tests are skipped.
EXTRAS := $(if $(shell command -v c++),quality$(COMMA))text,diffusion,jax,onnx,plots,progress,server,scale,tune,docs,dev
EDITABLE := --no-build-isolation --config-settings editable_mode=strict --editable

# A strict editable install links each file of the library, so it is made again whenever the list of files changes:
# the name of its stamp carries a checksum of the list.
FILES := $(sort py.typed $(wildcard *.py */*/weights/* $(addsuffix *.py,$(dir $(wildcard */__init__.py */*/__init__.py */*/*/__init__.py)))))
INSTALLED := $(VENV)/.installed
LINKED := $(VENV)/.linked-$(firstword $(shell echo $(FILES) | cksum))

.PHONY: help venv demo test test-slow docs lint format fetch fetch-all peers bench build clean

help:
	@echo "make venv       set up $(VENV)"
	@echo "make demo       run the demonstration on a real language model"
	@echo "make test       run the quick tests"
	@echo "make test-slow  run the long tests and those on a real model"
	@echo "make docs       build the site into docs/_build/html, running the notebooks"
	@echo "make lint       check style, types and who imports whom"
	@echo "make format     apply the style"
	@echo "make fetch      fetch SmolLM2 into the user's cache (make fetch-all: the small reward models too)"
	@echo "make peers      set up the libraries that the benchmarks compare with"
	@echo "make bench      run every benchmark (hours)"
	@echo "make build      build the sdist and the wheel into dist/"
	@echo "make clean      remove what was built, but not $(VENV)"

venv: $(LINKED)

# torch comes first and pinned, since a later torch may bring gigabytes of CUDA.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch setuptools wheel
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(EDITABLE) ".[$(EXTRAS)]"
	@touch $@

$(LINKED): $(INSTALLED)
	$(BIN)/python -m pip install --quiet --no-deps $(EDITABLE) .
	@rm -f $(VENV)/.linked-*
	@touch $@

demo: fetch
	$(BIN)/python notebooks/demo.py

# A worker for each core, with one thread each; some test ids follow the order of a set, which all workers must share.
test: venv
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 -m "not slow and not real" $(ARGS)

# Some of the long tests take minutes: a worker that is done takes over what waits behind them.
test-slow: fetch-all
	PYTHONHASHSEED=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 2 --dist worksteal -m "slow or real" $(ARGS)

# FEYNKAC_DOCS_EXECUTE=off leaves the notebooks as they are; what they printed is kept between builds.
docs: fetch
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "the site is in docs/_build/html/index.html"

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p feynkac
	$(BIN)/lint-imports

format: venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fetch: venv
	$(BIN)/python -m feynkac fetch smollm2

fetch-all: venv
	$(BIN)/python -m feynkac fetch smollm2 minilm grammar

# The libraries that we measure ourselves against need versions of their own, so each has an environment of its own.
PEERS := $(patsubst benchmarks/peers/%.txt,.venv-peers/%/.installed,$(wildcard benchmarks/peers/*.txt))

peers: $(PEERS)

.venv-peers/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .venv-peers/$*
	.venv-peers/$*/bin/python -m pip install --quiet --requirement $<
	@# vLLM brings a torchvision for CUDA, which fails beside torch for the CPU.
	@.venv-peers/$*/bin/python -m pip uninstall --quiet --quiet --yes torchvision torchaudio torchcodec
	@touch $@

bench: fetch peers
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done

build: venv
	$(BIN)/python -m build --outdir dist .

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	rm -f $(VENV)/.linked-*
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +
