#!/usr/bin/env bash
# All that waits for a GPU, in one go on one: tests, then the figures, in at most ten minutes.
#
#     bash benchmarks/gpu.sh [OUT_DIR]
#
# Needs a CUDA build of torch, its Triton, DeepSpeed, transformers, pytest and hypothesis; not Ray.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-benchmarks/results/$(date +%F)-gpu}
mkdir -p "$out"
export PYTHONPATH=. PYTHONUNBUFFERED=1
failed=0

step() { # NAME SECONDS COMMAND...: one that fails does not keep the others from running
    echo "== $1: ${*:3}"
    timeout "$2" "${@:3}" >"$out/$1.log" 2>&1 || { failed=1; echo "$1 failed, exit code $?"; }
    tail -n 40 "$out/$1.log"
}

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/gpu.csv"
python3 -c "import torch, triton; print(torch.__version__, triton.__version__)"
# The kernels alone first: where they do not run, the rest measures something else.
step kernels 110 python3 -m pytest -q tests/gpu/test_sparsity_gpu.py tests/unit/sparsity/test_device.py
step threshold 130 python3 benchmarks/threshold.py --device cuda --ranks 1 --repeats 30 --skip "torch prune"
step enforcement 100 python3 benchmarks/enforcement.py --device cuda --precision bf16 --layers 12 --rows 256
step tests 150 python3 -m pytest -q tests/gpu
step threshold_large 80 python3 benchmarks/threshold.py --device cuda --ranks 1 --repeats 10 \
    --numel 339738624 --skip "torch prune" numpy
exit $failed
