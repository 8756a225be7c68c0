# Every target sets up what it needs. `make quickstart` and `make test` are
# the two that matter; `QUICKSTART=tiny make quickstart` takes two minutes.

PYTHON ?= python3
QUICKSTART ?= full
BIN := .venv/bin

# Without byte code, every `import llmfoundry` compiles thousands of files.
unexport PYTHONDONTWRITEBYTECODE
# Nothing here needs a hub; without this, imports may wait for one.
export HF_HUB_OFFLINE := 1

.PHONY: quickstart install test test-dist test-slow style checks clean

quickstart: install
	$(BIN)/python -m foundry_upcycle.study.quickstart --size $(QUICKSTART)

install: .venv/installed

.venv/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[dev]'
	touch $@

test: install
	$(BIN)/python -m pytest -m 'not slow' --durations=10

test-dist: install
	$(BIN)/python -m pytest tests/distributed

test-slow: install
	$(BIN)/python -m pytest -m slow

SOURCES := foundry_upcycle tests benchmarks setup.py train.py eval.py

style: install
	$(BIN)/isort --quiet $(SOURCES)
	$(BIN)/yapf --in-place --recursive $(SOURCES)

checks: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/isort --check-only $(SOURCES)
	$(BIN)/yapf --diff --recursive $(SOURCES)
	$(BIN)/yamllint yamls eval_gauntlet
	$(BIN)/pyright

clean:
	rm -rf .venv build *.egg-info
