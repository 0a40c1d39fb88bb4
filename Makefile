# make demo: sets up .venv, trains HomoODE on real images, evaluates, exports, plots
# make test: sets up .venv, runs every test (those of the Julia backend where Julia is installed) on all cores and in an
#            order by chance; TEST=--randomly-seed=N repeats that of a seed, TEST=tests/data runs a part
# make check: ruff and the tests that are quick, for after each edit
# make julia-test: ZeroPaths' own tests; JULIA names the program, JULIA_ENV an environment that has ZeroPaths
# make lint: ruff and mypy; make coverage: make test with a table of the lines that ran; make docs: the site, in site/
# make lock: the pins of requirements.lock and requirements-docs.lock, written by uv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JULIA  ?= julia
JULIA_ENV ?= julia
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
PARALLEL := pytest --numprocesses=auto --dist=loadscope
PYTEST := $(BIN)/python -m $(PARALLEL)
UV_OPTIONS := --quiet --python-version 3.11 --torch-backend cpu --no-header --no-annotate $(LOCK)
TORCH  := $(shell sed -n 's/^torch==/torch==/p' requirements.lock)

.PHONY: setup demo test check julia-test lint coverage docs lock clean

setup: $(VENV)/.ready

# torch comes first and as its CPU build, which PyPI does not carry for Linux: a locally known wheel if there
# is one, else PyTorch's own index. Everything else is pinned in requirements.lock.
$(VENV)/.ready: requirements.lock pyproject.toml hatch_build.py
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies into $(VENV) (a minute or a few) ..."
	$(PIP) install --quiet '$(TORCH)' || $(PIP) install --quiet --index-url https://download.pytorch.org/whl/cpu '$(TORCH)'
	$(PIP) install --quiet --requirement requirements.lock
	$(PIP) install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup
	$(BIN)/homojl train --preset homoode-digits --out runs/demo --overwrite
	$(BIN)/homojl evaluate runs/demo
	$(BIN)/homojl export runs/demo --trajectories 4
	$(BIN)/homojl plot runs/demo
	@echo && echo "everything lies in runs/demo:" && find runs/demo -type f | sort | sed 's/^/  /'

test: setup
	$(PYTEST) $(TEST)

check: setup
	$(BIN)/ruff check --quiet . && $(BIN)/ruff format --quiet --check .
	$(PYTEST) -m 'not slow' $(TEST)

# Bounds are checked where the code says so: "yes", Pkg's default, would compile every dependency anew.
julia-test:
	$(JULIA) --project=$(JULIA_ENV) -e 'using Pkg; Pkg.test("ZeroPaths"; julia_args = ["--check-bounds=auto"])'

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Processes that the tests start are measured too; those that they kill leave nothing to measure. With the peers, so that
# what calls them is measured.
coverage: setup
	$(PIP) install --quiet --upgrade 'pip>=25.1' # the first that knows groups
	$(PIP) install --quiet --group peers
	$(BIN)/coverage erase
	$(BIN)/coverage run -m $(PARALLEL)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report
	$(BIN)/coverage json --quiet -o .coverage.json
	$(BIN)/python tools/coverage_bars.py .coverage.json

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(VENV)/.ready-docs: $(VENV)/.ready requirements-docs.lock
	$(PIP) install --quiet --requirement requirements-docs.lock
	@touch $@

# Writes the pins anew with uv, which keeps those that still fit; LOCK=--upgrade takes what pyproject.toml allows today.
lock: setup
	$(PIP) install --quiet uv
	$(BIN)/uv pip compile $(UV_OPTIONS) pyproject.toml --extra plots --extra tensorboard --group dev --output-file requirements.lock
	$(BIN)/uv pip compile $(UV_OPTIONS) --group docs --constraint requirements.lock --output-file requirements-docs.lock

clean:
	rm -rf $(VENV) build dist site runs/demo
