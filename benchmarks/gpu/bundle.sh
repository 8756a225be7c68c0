#!/usr/bin/env bash
# Gathers what a GPU machine without a network lacks, as wheels of at most
# 60 MiB, ours included:
#     benchmarks/gpu/bundle.sh [FOLDER]      # build/gpu_bundle
# On that machine, with the folder and a checkout:
#     eval "$(FOLDER/install.sh TARGET)"     # any new folder
# Its own packages stay as they are: what is in TARGET goes before them. It has
# what given.txt lists, apart from the stores. PYTHON_VERSION is its Python.
set -euo pipefail

LIMIT_MIB=60

cd "$(dirname "$0")/../.."
bundle=$(realpath -m "${1:-build/gpu_bundle}")
python=${PYTHON:-python3}

fail() {
    echo "bundle.sh: $1 Fix: $2" >&2
    exit 1
}

[ ! -e "$bundle" ] || fail "$bundle exists." 'remove it, or name another folder.'
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# pip takes wheels of the platforms that it is told, and of no older ones.
platforms=(--platform manylinux1_x86_64 --platform manylinux2014_x86_64)
for glibc in {5..39}; do
    platforms+=(--platform "manylinux_2_${glibc}_x86_64")
done
$python -m pip download --quiet --no-deps --only-binary=:all: \
    --implementation cp --python-version "${PYTHON_VERSION:-3.12}" \
    "${platforms[@]}" --dest "$work/bundle" \
    --requirement benchmarks/gpu/requirements.txt

# Of a copy: setuptools would pack what an earlier build left in build/.
mkdir "$work/source"
cp -r setup.py pyproject.toml README.md LICENSE foundry_upcycle eval_gauntlet \
    "$work/source"
$python -m pip wheel --quiet --no-deps --wheel-dir "$work/bundle" "$work/source"
cp benchmarks/gpu/install_bundle.sh "$work/bundle/install.sh"

mib=$(du --summarize --apparent-size --block-size=1M "$work/bundle" | cut -f1)
[ "$mib" -le $LIMIT_MIB ] || fail "the wheels take $mib MiB, more than $LIMIT_MIB." \
    'take what no part of the pack needs out of requirements.txt.'
mkdir -p "$(dirname "$bundle")"
mv "$work/bundle" "$bundle"
echo "$bundle: $(ls "$bundle" | grep -c whl) wheels, $mib MiB"
