#!/usr/bin/env bash
# Sets up .venv-next: LLM Foundry 0.22 with a newer torch than its pins allow
# (TORCH). PyPI's torch for Linux brings gigabytes of CUDA; for the CPU build,
# put PyTorch's CPU index into PIP_EXTRA_INDEX_URL.
set -euo pipefail

cd "$(dirname "$0")/../.."
venv=.venv-next
python=$venv/bin/python

"${PYTHON:-python3}" -m venv --clear $venv
# pip, because it reads PIP_EXTRA_INDEX_URL and pip.conf; uv doesn't.
$python -m pip install --quiet uv "torch==${TORCH:-2.13.0}" torchvision
install() { $venv/bin/uv pip install --quiet --python $python "$@"; }
install --requirements benchmarks/gpu/given.txt
install --no-deps --requirements benchmarks/gpu/requirements.txt --editable .

# A CUDA build of torchvision beside a CPU build of torch loads none of its
# operators, and fails where it says what shapes they give. Composer imports
# torchvision, but none of its operators.
if ! $python -c 'import torchvision' 2> /dev/null; then
    echo > $venv/lib/python3*/site-packages/torchvision/_meta_registrations.py
fi

HF_HUB_OFFLINE=1 $python -W ignore - << 'END'
from importlib.metadata import version
import composer, llmfoundry, foundry_upcycle.cli.app

names = 'torch', 'transformers', 'llm-foundry', 'mosaicml'
print(', '.join(f'{name} {version(name)}' for name in names))
END
touch $venv/installed
