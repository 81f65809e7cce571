# make demo   the main job: MTPD end to end on the built-in dataset, and its report
# make test   the tests             make env    what both need, made once in .venv
# make lint   style checks          make notebooks   sync notebooks/*.py with *.ipynb
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

.PHONY: env packages demo test bench gpu lint notebooks clean
BENCH := distill_step tried end_to_end evaluation adaptation_cost edge growth install_ops

env: packages
	@$(BIN)/mtpd install-ops --no-retry $(if $(CUDA_ARCH),--cuda-arch '$(CUDA_ARCH)')

packages:
	@$(PYTHON) -m mtpd.install.venv $(VENV)

demo: env
	@$(BIN)/mtpd run $(RECIPE) $(ARGS)

test: env
	@$(BIN)/python -m pytest $(ARGS)

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

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
