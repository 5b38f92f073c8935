# The one door: `make demo` and `make test` do everything on a fresh machine.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_PETS ?= 800
# processes that share the slow tests, file by file; their torch has one thread each
TEST_WORKERS ?= 2

.PHONY: install demo test test-slow chaos check format bench clean

install: $(VENV)/.installed

# the lock pins what was tested; --no-deps, so that nothing is resolved anew
$(VENV)/.installed: requirements.lock setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# drawn pets -> shards -> a small sweep on this machine -> report.html
demo: install
	$(BIN)/python -m shards.pack --synthetic $(DEMO_PETS) --image-size-px 64 --out data/demo
	$(BIN)/python jobs/sweep.py --sweep jobs/sweeps/demo.yaml --cluster local --max-parallel 2
	$(BIN)/python jobs/report.py demo

test: install
	$(BIN)/python -m pytest -m "not slow"

# several processes, a real Slurm, kills at every file operation: minutes
test-slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow --numprocesses $(TEST_WORKERS) --dist loadfile

# a longer storm over a sweep than the tests have, with another seed
chaos: install
	STORM_SECONDS=$${STORM_SECONDS:-600} STORM_SEED=$${STORM_SEED:-2} $(BIN)/python -m pytest -m slow tests/chaos --log-cli-level=INFO

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# each is a module: `python -m benchmarks.NAME --help`
bench: install
	$(BIN)/python -m benchmarks.pack --json benchmarks/pack.json
	$(BIN)/python -m benchmarks.plan --json benchmarks/plan.json
	$(BIN)/python -m benchmarks.loader --json benchmarks/loader.json
	$(BIN)/python -m benchmarks.augment --json benchmarks/augment.json
	$(BIN)/python -m benchmarks.footprint --json benchmarks/footprint.json
	$(BIN)/python -m benchmarks.step --json benchmarks/step.json
	$(BIN)/python -m benchmarks.sweep --json benchmarks/sweep.json

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis data/demo runs/demo
