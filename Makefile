# Every target sets up what it needs. `make quickstart` and `make test` are
# the two that matter; `QUICKSTART=tiny make quickstart` takes three minutes.

PYTHON ?= python3
QUICKSTART ?= full
BIN := .venv/bin

# Without byte code, every `import llmfoundry` compiles thousands of files.
unexport PYTHONDONTWRITEBYTECODE
# Nothing here needs a hub; without this, imports may wait for one.
export HF_HUB_OFFLINE := 1

# What a failed step left does not count as done.
.DELETE_ON_ERROR:

.PHONY: quickstart smollm2 smollm2-serving install install-vllm install-next \
	bench bench-smoke docs test test-next test-dist test-slow test-fuzz test-vllm \
	style checks clean

# The data, then the study: what is done is not done again.
Q := quickstart$(if $(filter tiny,$(QUICKSTART)),_tiny)

quickstart: install
	$(BIN)/python -m foundry_upcycle.data.quickstart runs/$(Q) \
		--size $(QUICKSTART)
	$(BIN)/foundry-upcycle study run yamls/study_$(Q).yaml --jobs 2
	$(BIN)/foundry-upcycle study report yamls/study_$(Q).yaml

install: .venv/installed

.venv/installed: setup.py pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[dev]'
	touch $@

# The serving engine: vllm where there is a GPU, its CPU build elsewhere.
install-vllm: .venv-vllm/installed

.venv-vllm/installed: benchmarks/inference/install.sh
	$<

# A newer torch; `PYTHON=python3.12 TORCH=2.11.0 make install-next` takes others.
install-next: .venv-next/installed

.venv-next/installed: benchmarks/gpu/install_next.sh setup.py \
		benchmarks/gpu/given.txt benchmarks/gpu/requirements.txt
	$<

# The serving harness, all of it, on models that take no time.
SMOKE := benchmarks/inference/studies/smoke.yaml

bench-smoke: .venv-vllm/installed
	.venv-vllm/bin/python -m benchmarks.inference run $(SMOKE)
	.venv-vllm/bin/python -m benchmarks.inference report $(SMOKE)

# The pages in docs/ as a site, with the reference of all settings.
docs: .venv-docs/installed
	.venv-docs/bin/mkdocs build --strict

.venv-docs/installed:
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet 'mkdocs-material>=9.7,<10' \
		'mkdocstrings[python]>=1,<2'
	touch $@

# Speed of training on a CPU, and of the layer: half an hour on 2 CPU cores,
# which should have nothing else to do.
bench: install
	$(BIN)/python -m benchmarks.training.steps --out docs/performance.md

# A real pretrained model: from a GGUF file to a mixture of experts that vLLM
# serves. Each step is a command that you can run by hand; what is done is not
# done again.
S := runs/smollm2
GGUF := $(S)/SmolLM2-135M-Instruct.Q4_1.gguf

# vLLM first: where its installation fails, it fails before the training.
smollm2: .venv-vllm/installed $(S)/served.txt
	@cat $(S)/served.txt

$(GGUF): | install
	$(BIN)/python -m foundry_upcycle.data.smollm2 $(@D)

$(S)/dense/checkpoint.pt: $(GGUF)
	$(BIN)/foundry-upcycle import-hf $< $(@D) --overwrite

$(S)/moe/checkpoint.pt: $(S)/dense/checkpoint.pt
	$(BIN)/foundry-upcycle convert $< $@ --experts 8 --top-k 2 --overwrite
	$(BIN)/foundry-upcycle verify $< $@

# The last file that it writes.
CODE := $(S)/code/held_out/index.json

$(CODE): $(S)/dense/checkpoint.pt
	$(BIN)/python -m foundry_upcycle.data.smollm2 $(S) --tokenizer $(<D)/hf

$(S)/trained/latest-rank0.pt: $(S)/moe/checkpoint.pt $(CODE)
	OMP_WAIT_POLICY=passive PATH="$(CURDIR)/$(BIN):$$PATH" \
		composer -n 1 train.py \
		yamls/smollm2_upcycle.yaml variables.folder=$(S)

$(S)/exported/config.json: $(S)/trained/latest-rank0.pt
	$(BIN)/foundry-upcycle inspect $<
	$(BIN)/foundry-upcycle export-hf $< $(@D) --like $(S)/dense/hf --overwrite

$(S)/served.txt: $(S)/exported/config.json .venv-vllm/installed
	.venv-vllm/bin/python benchmarks/inference/generate.py $(<D) \
		'def fibonacci(n):' 'import os' > $@.partial
	mv $@.partial $@

# What it costs to serve, and what its dense parent brings as a draft.
SMOLLM2_STUDY := benchmarks/inference/studies/smollm2.yaml

smollm2-serving: .venv-vllm/installed $(S)/exported_dense/config.json \
		$(S)/prompts.jsonl
	.venv-vllm/bin/python -m benchmarks.inference run $(SMOLLM2_STUDY)
	.venv-vllm/bin/python -m benchmarks.inference report $(SMOLLM2_STUDY)

$(S)/exported_dense/config.json: $(S)/dense/checkpoint.pt
	$(BIN)/foundry-upcycle export-hf $< $(@D) --like $(S)/dense/hf --overwrite

# Code that neither was trained on: our own.
$(S)/prompts.jsonl: $(S)/exported/config.json .venv-vllm/installed
	.venv-vllm/bin/python benchmarks/inference/tokenize_prompts.py $(<D) 64 \
		$@ $(wildcard foundry_upcycle/*/*.py)

FAST := -m 'not slow and not vllm and not fuzz' --durations=10

# A file's tests share what they prepare, and so a worker. Each loads LLM
# Foundry, which takes memory more than cores.
WORKERS := --numprocesses auto --maxprocesses 4 --dist loadfile

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(FAST) $(WORKERS)

test-next: install-next
	.venv-next/bin/python -m pytest $(FAST)

test-dist: install
	$(BIN)/python -m pytest tests/distributed

test-slow: install
	$(BIN)/python -m pytest -m 'slow and not vllm'

# About an hour; with FUZZ_CASES=3000, some minutes.
test-fuzz: install
	$(BIN)/python -m pytest -m fuzz --tb=native --durations=0

test-vllm: install .venv-vllm/installed
	$(BIN)/python -m pytest -m vllm

SOURCES := foundry_upcycle tests benchmarks setup.py train.py eval.py

style: install
	$(BIN)/isort --quiet $(SOURCES)
	$(BIN)/yapf --parallel --in-place --recursive $(SOURCES)

checks: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/isort --check-only $(SOURCES)
	$(BIN)/yapf --parallel --diff --recursive $(SOURCES)
	$(BIN)/yamllint yamls eval_gauntlet benchmarks
	$(BIN)/pyright

clean:
	rm -rf .venv build *.egg-info
