# Every target sets up its own .venv first; nothing is installed outside this folder.
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
# Two cores: two test processes with one thread each beat one process with two.
TEST_JOBS ?= 2

.PHONY: demo test test-slow lint format docs benchmark clean
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

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit --quiet --configfile pyproject.toml --recursive src

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/mkdocs build --strict

benchmark: $(VENV)/.dev
	$(BIN)/python -m benchmarks.loss
	$(BIN)/python -m benchmarks.memory_bank
	$(BIN)/python -m benchmarks.metrics
	$(BIN)/python -m benchmarks.data

clean:
	rm -rf dist build site .pytest_cache .mypy_cache .ruff_cache .hypothesis
