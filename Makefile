# make demo   the main job: MTPD end to end on the built-in dataset, and its report
# make test   the tests             make env    what both need, made once in .venv
# make test-all   also the tests that take long, notebooks in JupyterLab and pages in Chromium among them
# make lint   style checks          make notebooks   sync notebooks/*.py with *.ipynb
# make docs-pages   what pages of docs/ have from the code: keys of recipes, --help, speed switches, notebooks' parameters
# make docs  the site, in build/site/html: pages, notebooks with the outputs of the demo's run, its report
# make bench  the CPU benchmarks (half an hour), after the demo; tables go to benchmarks/README.md
# make gpu    on a machine with a GPU: checks, times and a verdict, half an hour; ARGS='--data data/coco' for COCO's images
# Variables: PYTHON=python3.11  VENV=.venv  RECIPE=configs/...  ARGS='options'
#            TORCH_INDEX=https://download.pytorch.org/whl/cpu (torch without CUDA)
#            CUDA_ARCH=9.0 (operators for a GPU that is not here, as on a login node)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= configs/mini/retinanet_r50__r101_rx101.py
ARGS ?=
CUDA_ARCH ?=
export TORCH_INDEX

help:
	@sed -n '/^#/!q; s/^# //p' $(firstword $(MAKEFILE_LIST))

.PHONY: help env packages demo test test-all test-tools bench gpu lint notebooks docs docs-packages docs-pages clean
BENCH := distill_step tried end_to_end evaluation adaptation_cost edge growth install_ops

env: packages
	@$(BIN)/mtpd install-ops --no-retry $(if $(CUDA_ARCH),--cuda-arch '$(CUDA_ARCH)')

packages:
	@$(PYTHON) -m mtpd.install.venv $(VENV)

demo: env
	@$(BIN)/mtpd run $(RECIPE) $(ARGS)

test: env
	@$(BIN)/python -m pytest $(ARGS)

test-all: env test-tools docs-packages
	@$(BIN)/python -m pytest --all $(ARGS)

# What some tests need beside the packages. Without root, or without Debian's packages, these tests skip themselves.
test-tools:
	@if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  for name in chromium chromium-browser google-chrome; do command -v $$name >/dev/null && break; done || missing=chromium; \
	  command -v slurmctld >/dev/null && command -v sbatch >/dev/null || missing="$$missing slurmctld slurmd slurm-client"; \
	  [ -z "$$missing" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive timeout 600 apt-get install -y -qq $$missing; } || true; \
	fi

bench: demo
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python benchmarks/$$name.py --out results/bench/$$name.json || exit 1; \
	  $(BIN)/python benchmarks/tables.py; done

gpu: env
	@$(BIN)/python benchmarks/gpu/run.py $(ARGS)

lint: packages
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/lint-imports
	@$(BIN)/nbstripout --keep-id --verify $(wildcard notebooks/*.ipynb)

notebooks: packages
	@$(BIN)/jupytext --set-kernel python3 --sync $(wildcard notebooks/*.py)

docs: env docs-packages
	@$(BIN)/python docs/make_site.py $(ARGS)

docs-packages: packages
	@$(PYTHON) -m mtpd.install.venv $(VENV) docs

docs-pages: env
	@$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
