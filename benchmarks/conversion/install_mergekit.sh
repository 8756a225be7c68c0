#!/usr/bin/env bash
# Sets up .venv-mergekit, the environment of the peer that convert.py measures:
# mergekit needs another torch and transformers than LLM Foundry does. PyPI's
# torch for Linux brings gigabytes of CUDA; for the CPU build, put PyTorch's CPU
# index into PIP_EXTRA_INDEX_URL.
set -euo pipefail

cd "$(dirname "$0")/../.."
venv=.venv-mergekit

[ -x $venv/bin/python ] || "${PYTHON:-python3}" -m venv $venv
# torch first: alone, pip takes a CPU build if it finds one.
$venv/bin/python -m pip install --quiet torch==2.13.0
$venv/bin/python -m pip install --quiet mergekit==0.1.5 transformers==5.23.0
HF_HUB_OFFLINE=1 $venv/bin/mergekit-moe --help > /dev/null
$venv/bin/python -m pip list 2> /dev/null | grep -E '^(mergekit|torch|transformers) '
