# Every target sets up its own .venv first; nothing is installed outside this folder.
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
# mmsegmentation's maintained fork asks for packages that the rest does not want: an environment of its own.
MMSEG_VENV := .venv-mmseg
# Two cores: two test processes with one thread each beat one process with two.
TEST_JOBS ?= 2

.PHONY: demo test test-slow test-mmseg lint format docs benchmark gpu gpu-wheels gpu-data clean
.DEFAULT_GOAL := demo

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24.1"
	touch $@

$(VENV)/.demo: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.created pyproject.toml
	$(BIN)/python -m pip install --quiet $(PIP_FLAGS) --editable ".[all,dev]"
	touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/aucseg demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(TEST_JOBS)

test-slow: $(VENV)/.dev test-mmseg
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(TEST_JOBS)

$(MMSEG_VENV)/.created: pyproject.toml
	$(PYTHON) -m venv $(MMSEG_VENV)
	$(MMSEG_VENV)/bin/python -m pip install --quiet --upgrade "pip>=24.1"
	$(MMSEG_VENV)/bin/python -m pip install --quiet $(PIP_FLAGS) --editable ".[mmseg]" pytest pytest-timeout
	touch $@

# Its libraries warn at every import, so warnings are no errors here.
test-mmseg: $(MMSEG_VENV)/.created
	OMP_NUM_THREADS=$(TEST_JOBS) $(MMSEG_VENV)/bin/python -m pytest -W default tests/integrations/mmseg

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

benchmark: $(VENV)/.dev
	$(BIN)/python -m benchmarks.loss
	$(BIN)/python -m benchmarks.memory_bank
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.data
	$(BIN)/python -m benchmarks.scale
	$(BIN)/python -m benchmarks.getting_started
	$(BIN)/python -m benchmarks.soak

# Some minutes on a bare machine with a GPU, see docs/gpu.md. The first two here, with a network; the third there, with
# the Python that is there.
COMMIT ?= HEAD
gpu-wheels: $(VENV)/.dev
	$(BIN)/python -m benchmarks.on_gpu.wheels fetch --commit $(COMMIT)

gpu-data: $(VENV)/.dev
	$(BIN)/python -m benchmarks.on_gpu.packs pack $(STUDY) $(if $(ROOT),--root $(ROOT))

gpu:
	$(PYTHON) -m benchmarks.on_gpu $(GPU_FLAGS)

clean:
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
