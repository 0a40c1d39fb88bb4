# make demo: sets up .venv, trains HomoODE on real images, evaluates, exports, plots
# make test: sets up .venv, runs every test (those of the Julia backend where Julia is installed)
# make julia-test: HomoJL's own tests; JULIA names the program, JULIA_ENV an environment that has HomoJL
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JULIA  ?= julia
JULIA_ENV ?= julia
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell sed -n 's/^torch==/torch==/p' requirements.lock)

.PHONY: setup demo test julia-test lint lock clean

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
	$(BIN)/python -m pytest

# Bounds are checked where the code says so: "yes", Pkg's default, would compile every dependency anew.
julia-test:
	$(JULIA) --project=$(JULIA_ENV) -e 'using Pkg; Pkg.test("HomoJL"; julia_args = ["--check-bounds=auto"])'

lint: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

# Rewrites the pins from what pyproject.toml allows today.
lock: setup
	$(PIP) install --upgrade --upgrade-strategy eager '$(TORCH)' --editable '.[test]' ruff
	$(PIP) freeze --exclude-editable > requirements.lock

clean:
	rm -rf $(VENV) build dist runs/demo
