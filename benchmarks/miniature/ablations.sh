#!/usr/bin/env bash
# What the sparse twin's recipe is worth, in a third of the general stage: bash benchmarks/miniature/ablations.sh
# After run.sh has prepared the text, in the project's root and environment. What is done is not done again.
set -euo pipefail
sparsebert=${SPARSEBERT:-sparsebert}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
mkdir -p runs

pretrain() { # NAME [field=value ...]
    $sparsebert pretrain configs/miniature_general.yaml --local name="ablation-$1" train.total_steps=1000 \
        evaluation.interval_steps=250 checkpoint.interval_steps=250 "${@:2}" >>"runs/ablation-$1.log"
}
prune() { # NAME LAST_UPDATE [field=value ...]
    pretrain "$1" sparsity.final_sparsity=0.9 sparsity.prune_start_step=100 sparsity.prune_end_step="$2" \
        sparsity.prune_interval_steps=10 "${@:3}"
}
pretrain dense
prune sparse90 800
prune early 500
prune per-tensor 800 sparsity.scope=per_tensor
prune rewinds 800 train.lr_rewind_interval_steps=100 train.lr_rewind_end_step=800
prune distilled 800 distillation.teacher=runs/ablation-dense
grep "step 1000/1000  validation" runs/ablation-*.log
