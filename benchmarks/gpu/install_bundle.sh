#!/usr/bin/env bash
# Unpacks the wheels beside this script into a new folder and prints what makes
# a shell use them: eval "$(install.sh TARGET)". Without a network, and without
# a change to what is installed.
set -euo pipefail

target=$(realpath -m "${1:?install.sh: no folder named. Fix: install.sh TARGET}")
wheels=$(dirname "$0")
"${PYTHON:-python3}" -m pip install --quiet --no-index --no-deps --no-compile \
    --disable-pip-version-check --target "$target" "$wheels"/*.whl >&2
echo "export PYTHONPATH='$target' PATH='$target/bin':\"\$PATH\" HF_HUB_OFFLINE=1"
