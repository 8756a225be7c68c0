#!/usr/bin/env bash
# Sets up .venv-lm-eval, the environment of the peer that compare.py asks, and
# that asks servers for the serving harness:
# lm-evaluation-harness, with newer torch and transformers than LLM Foundry
# takes. PyPI's torch for Linux brings gigabytes of CUDA; for the CPU build, put
# PyTorch's CPU index into PIP_EXTRA_INDEX_URL.
set -euo pipefail

cd "$(dirname "$0")/../.."
venv=.venv-lm-eval

[ -x $venv/bin/python ] || "${PYTHON:-python3}" -m venv $venv
# torch first: alone, pip takes a CPU build if it finds one.
$venv/bin/python -m pip install --quiet torch==2.13.0
$venv/bin/python -m pip install --quiet 'lm-eval[hf,api]==0.4.13' \
    transformers==5.23.0
HF_HUB_OFFLINE=1 $venv/bin/python -m lm_eval --help > /dev/null
$venv/bin/python -m pip list 2> /dev/null |
    grep -E '^(lm[-_]eval|torch|transformers) '
