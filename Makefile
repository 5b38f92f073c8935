# The one door: `make demo` and `make test` do everything on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_PETS ?= 800
# a set packed at 256 px, for bench-gpu; without one it draws pets
SHARDS ?=
# Workers that share the tests; one that runs out of tests takes some from another. Slow tests often wait for Slurm or
# for processes to start: four workers keep two cores busy, and six are no faster. The others wait less: three do.
TEST_WORKERS ?= 3
SLOW_TEST_WORKERS ?= 4
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist worksteal

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
	@echo 'then keep the best model in one file, and see its masks drawn over the pictures:'
	@echo '  python jobs/best.py demo --out runs/demo.safetensors'
	@echo '  python -m petseg.predict data/demo --weights runs/demo.safetensors --out runs/demo-masks --overlays'

test: install-dev
	$(PYTEST) -m "not slow" --numprocesses $(TEST_WORKERS)

# several processes, a real Slurm, kills at every file operation: minutes
test-slow: install-dev
	$(PYTEST) -m slow --numprocesses $(SLOW_TEST_WORKERS)

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

# steps, loop, estimates, exactness and time to a Dice on this machine's GPU, in one table
bench-gpu: install-dev
	$(BIN)/python -m benchmarks.gpu $(if $(SHARDS),--shards $(SHARDS))

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis data/demo runs/demo
