# make demo | test | test-fast | test-all | test-oldest | test-gpu | test-ray | test-slurm | test-wheel | docs | torture | lint | setup | clean
# PYTHON=python3.12 chooses another interpreter
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# More than one thread a process makes processes that share cores many times slower.
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: setup demo test test-fast test-all test-oldest test-gpu test-ray test-slurm test-wheel docs torture lint clean
.DELETE_ON_ERROR:

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# An earlier demo is never overwritten: it moves to the next free number.
demo: setup
	@if [ -e runs/demo ]; then \
	  n=1; while [ -e runs/demo-$$n ]; do n=$$((n + 1)); done; \
	  mv runs/demo runs/demo-$$n && echo "The earlier demo is kept as runs/demo-$$n"; \
	fi
	$(BIN)/python experiments/train_agent.py --agent reinforce --preset digits --run_dir runs/demo
	@echo
	@echo "runs/demo/results      accuracy, clean and attacked (JSON)"
	@echo "runs/demo/figures      what the agent chose, losses and reward, attacks (PNG)"
	@echo "runs/demo/checkpoints  the trained encoder and the agent"
	@echo "runs/demo              settings, metrics; curves by: $(BIN)/tensorboard --logdir runs"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The tests for a GPU run on the CPU here, which they compare with itself: no GPU is needed, and none is seen.
# Compiled files are kept, even where the environment says otherwise: else each process compiles the tests again.
ON_CPU := GPU_TESTS_ON=cpu PYTHONDONTWRITEBYTECODE= $(ONE_THREAD)
test: lint
	$(ON_CPU) $(BIN)/python -m pytest -n 2 --dist worksteal

# For daily work, less than a minute: the quick tests of the core, the environments and our agents; no lint, no types.
CORE := attacks losses methods models settings training transforms utils
WORLDS := api test_actions.py test_engine.py test_torch_env.py test_view_env.py test_batch_env.py test_sb3_env.py
AGENTS := test_base.py test_reinforce.py test_bandits.py test_controls.py
FAST := $(CORE:%=tests/ssl_core/%) $(WORLDS:%=tests/envs/%) $(AGENTS:%=tests/agents/%) tests/test_architecture.py
test-fast: setup
	$(ON_CPU) $(BIN)/python -m pytest -q -n 2 --dist worksteal -m "not (slow or every_agent or wheel)" $(FAST)

# With what repeats a shorter test: every agent and method in more combinations, kills of whole comparisons, torture.
test-all: lint
	$(ON_CPU) $(BIN)/python -m pytest -n 2 --dist worksteal -m "not wheel"

# With the oldest versions that pyproject.toml allows, in an environment of their own.
OLDEST := .venv-oldest
test-oldest: $(OLDEST)/.installed
	$(ON_CPU) $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal

$(OLDEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tests/helpers/oldest_versions.py > $(OLDEST)/oldest.txt
	$(OLDEST)/bin/python -m pip install --quiet --editable '.[dev]' --constraint $(OLDEST)/oldest.txt
	@touch $@

# On a machine with a GPU, what compares it with the CPU; where there is none they are skipped.
test-gpu: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -m gpu -rs

# The engine ray, on simulated machines, one of which is killed while it works.
test-ray: $(VENV)/.ray
	$(ON_CPU) $(BIN)/python -m pytest -m ray -rs tests/experiments/engines

$(VENV)/.ray: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[ray]'
	@touch $@

# The engine slurm, on a SLURM that is started on this machine alone, by root: apt-get install slurm-wlm, or the like.
test-slurm: setup
	$(ON_CPU) $(BIN)/python -m pytest -m slurm -rs tests/experiments/engines

# The distribution in an environment of its own, used from an empty folder.
test-wheel: setup
	$(ONE_THREAD) $(BIN)/python -m pytest -m wheel tests/test_wheel.py

# The documentation, into docs/_build/html: it runs the examples, warnings are errors, and the build needs no network.
docs: $(VENV)/.docs
	$(ONE_THREAD) $(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html
	@echo "docs/_build/html/index.html"

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	@touch $@

# Kills, full disks, flipped bits, random input, hostile folders, bad numbers and long runs, as long as is asked for; every
# failure is printed with the command that repeats it. One part alone: .venv/bin/python -m tests.torture --help
MINUTES ?= 30
SEED ?= 0
torture: setup
	$(ONE_THREAD) $(BIN)/python -m tests.torture --minutes $(MINUTES) --seed $(SEED) --output results/reliability.json

clean:
	rm -rf $(VENV) $(OLDEST) .mypy_cache .pytest_cache .ruff_cache build docs/_build docs/api docs/gallery *.egg-info
	find agents astra_gym docs envs examples experiments ssl_core tests -name __pycache__ -type d -prune -exec rm -rf {} +
