#!/usr/bin/env bash
# What this project does on a GPU, as one report; see docs/gpu/README.md.
#
#   benchmarks/gpu/run.sh [PART ...] [--device cpu] [--out FOLDER]
#
# PYTHON is the Python that it runs with: by default .venv's, or else python3.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$root/.venv/bin/python"
    [ -x "$PYTHON" ] || PYTHON=python3
fi
# Without byte code, every `import llmfoundry` compiles thousands of files.
unset PYTHONDONTWRITEBYTECODE
# Nothing here needs a hub; without this, imports may wait for one.
export HF_HUB_OFFLINE=1
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m benchmarks.gpu "$@"
