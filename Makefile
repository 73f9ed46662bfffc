# One environment, set up once; every target needs nothing but Python >= 3.11 and make.
#   make demo        two-minute demonstration: runs/demo-DATE/report.html (OUT=DIR to choose)
#   make test        the quick tests      make test-slow   the long ones as well
#   make lint        ruff and mypy        make bench       every benchmark
#   make docs        build/site           make notebooks  the examples in build/notebooks
#   make check-install  sdist and wheel in an empty environment (CHECK="--lowest": at the lower bounds)
# Tests run in JOBS=2 processes of one thread each.
# Override PYTHON to choose an interpreter, VENV to use an environment elsewhere, EXTRAS to install more (EXTRAS=all,dev).

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= openmm,openmmtools,pdbfixer,ase,pymatgen,mdtraj,rdkit,viz,docs,dev
JOBS ?= 2
OUT ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)
comma := ,
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
# The demonstration needs a part of it, and takes the whole where that is there.
FEW := openmm,viz
READY := $(or $(wildcard $(STAMP)),$(VENV)/.installed-for-demo)

.PHONY: demo test test-slow lint bench docs notebooks check-install clean
.DELETE_ON_ERROR:

define install
$(PYTHON) -m venv $(VENV)
$(BIN)/python -m pip install --quiet --upgrade pip
$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[$($(1))]'
@touch $@
endef

$(STAMP): pyproject.toml constraints.txt
	$(call install,EXTRAS)

$(VENV)/.installed-for-demo: pyproject.toml constraints.txt
	$(call install,FEW)

demo: $(READY)
	$(BIN)/dig-plugins demo --out $(OUT)

test: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: $(STAMP)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/run.py

docs: $(STAMP)
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site

notebooks: $(STAMP)
	$(BIN)/python docs/notebooks.py build/notebooks

check-install: $(STAMP)
	$(BIN)/python tests/install.py $(CHECK)

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache
