# The one door: `make demo` and `make test` do everything on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_PETS ?= 800
# a set packed at 256 px, for bench-gpu
SHARDS ?= data/shards
GPU_EPOCHS ?= 40
# processes that share the tests, file by file; their torch has one thread each
TEST_WORKERS ?= 2

.PHONY: install install-dev demo test test-slow chaos check format bench bench-gpu clean

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

# the locks pin what was tested: requirements.lock what petseg runs on, requirements-dev.lock tests, checks and benchmarks too
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) --requirement requirements.lock
	$(PIP) --no-deps --editable .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.lock
	$(PIP) --requirement requirements-dev.lock
	touch $@

# drawn pets -> shards -> a small sweep on this machine -> report.html
demo: install
	$(BIN)/python -m shards.pack --synthetic $(DEMO_PETS) --image-size-px 64 --out data/demo
	$(BIN)/python jobs/sweep.py --sweep jobs/sweeps/demo.yaml --cluster local --max-parallel 2
	$(BIN)/python jobs/report.py demo --shards data/demo
	@echo 'next, in this shell: . $(BIN)/activate'

test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses $(TEST_WORKERS) --dist loadfile

# several processes, a real Slurm, kills at every file operation: minutes
test-slow: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses $(TEST_WORKERS) --dist loadfile

# a longer storm over a sweep than the tests have, with another seed
chaos: install-dev
	STORM_SECONDS=$${STORM_SECONDS:-600} STORM_SEED=$${STORM_SEED:-2} $(BIN)/python -m pytest -m slow tests/chaos --log-cli-level=INFO

check: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# each is a module: `python -m benchmarks.NAME --help`
bench: install-dev
	$(BIN)/python -m benchmarks.pack --json benchmarks/pack.json
	$(BIN)/python -m benchmarks.plan --json benchmarks/plan.json
	$(BIN)/python -m benchmarks.loader --json benchmarks/loader.json
	$(BIN)/python -m benchmarks.augment --json benchmarks/augment.json
	$(BIN)/python -m benchmarks.footprint --json benchmarks/footprint.json
	$(BIN)/python -m benchmarks.step --json benchmarks/step.json
	$(BIN)/python -m benchmarks.sweep --json benchmarks/sweep.json

# the step of both models, the time to a Dice from scratch, and the lab's cells on three seeds, all on one GPU
RECIPE := --data.shards $(SHARDS) --data.image-size-px 256 --train.epochs $(GPU_EPOCHS) --train.batch-size 32 --train.mixed-precision bf16 \
	--train.loss ce_dice --train.start-size-px 128 --train.ema-decay 0.995 --augment.policy strong --augment.strong-p 0.7 --optim.name adamw \
	--optim.lr 2e-3 --optim.weight-decay 0.01 --optim.schedule one_cycle --optim.grad-clip 1 --train.no-test
bench-gpu: install-dev
	$(BIN)/python -m benchmarks.step --image-size-px 256 --batch-size 32 --steps 20 --compiled --json benchmarks/step-gpu.json
	$(BIN)/python -m benchmarks.time_to_dice --dice 0.9 0.93 --json benchmarks/dice-resnet34_unet.json -- $(RECIPE) --model.arch resnet34_unet
	$(BIN)/python -m benchmarks.time_to_dice --dice 0.9 0.93 --json benchmarks/dice-unet.json -- $(RECIPE) --model.arch unet
	$(BIN)/python jobs/sweep.py --name lab-gpu --cluster local --trials-per-job 18 --trials-at-once 3 --set data.shards=$(SHARDS) --set train.epochs=$(GPU_EPOCHS)
	$(BIN)/python jobs/report.py lab-gpu --format md

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis data/demo runs/demo
