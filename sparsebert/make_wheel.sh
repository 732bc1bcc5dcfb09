#!/usr/bin/env bash
# Build sparsebert-inference as a wheel for this architecture that needs no compiler: the kernel's
# levels are inside, and the best that the processor runs is taken when it is loaded.
# Usage: sparsebert/make_wheel.sh PYTHON OUT_DIR; PYTHON has torch, and pip.
set -euo pipefail
python=$(realpath -s "$(command -v "$1")")
mkdir -p "$2"
out=$(realpath "$2")
here=$(realpath "$(dirname "$0")")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$here" "$work/sparsebert"
find "$work/sparsebert" \( -name __pycache__ -o -name prebuilt -o -name build -o -name '*.egg-info' \) -prune -exec rm -r {} +
(cd "$work" && PYTHONPATH=$work "$python" -m sparsebert.inference.build --output sparsebert/inference/prebuilt)
# The oldest glibc that it is for is the one here (PEP 600); the C++ library is linked in.
platform=$("$python" -c 'import platform; print("manylinux_" + platform.libc_ver()[1].replace(".", "_") + "_" + platform.machine())')
"$python" -m pip wheel --quiet --no-deps --wheel-dir "$out" \
    --config-settings="--build-option=--plat-name=$platform" "$work/sparsebert"
ls "$out"/sparsebert_inference-*"$platform".whl
