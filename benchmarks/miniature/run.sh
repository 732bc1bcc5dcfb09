#!/usr/bin/env bash
# The miniature study from text to table, on CPU cores: bash benchmarks/miniature/run.sh DATA_FOLDER
# What is done already is not done again, so it may be stopped (Ctrl-C) and started again. DATA_FOLDER holds
#   wikipedia/*.jsonl.gz books/*.jsonl.gz pubmed/*      text as `sparsebert prepare` reads it
#   vocab/bert-base-uncased-vocab.txt
#   biomedical/ner/{NCBI-disease,BC5CDR-chem}/{train,dev,test}.tsv.gz   biomedical/chemprot/{train,dev,test}.jsonl.gz
#   general/sst2/{train,dev}.jsonl.gz   general/mrpc/{train,test}.jsonl.gz
# Run it in the project's root, in its environment. SPARSEBERT is the command, if it is not on the path.
set -euo pipefail
data=$(realpath "${1:?usage: run.sh DATA_FOLDER}")
sparsebert=${SPARSEBERT:-sparsebert}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

mkdir -p data/tasks
ln -sfn "$data/biomedical/ner/NCBI-disease" data/tasks/miniature-ncbi-disease
ln -sfn "$data/biomedical/ner/BC5CDR-chem" data/tasks/miniature-bc5cdr-chemical
ln -sfn "$data/biomedical/chemprot" data/tasks/miniature-chemprot
ln -sfn "$data/general/sst2" data/tasks/miniature-sst2
ln -sfn "$data/general/mrpc" data/tasks/miniature-mrpc

# The first 10,000 lines of the vocabulary less the unused ones: 9,006 words, so that the head is small.
vocab=data/vocab-9006.txt
[ -e $vocab ] || head -n 10000 "$data/vocab/bert-base-uncased-vocab.txt" | grep -v '^\[unused' >$vocab
prepare() { $sparsebert prepare --source "$1" --input "${@:2}" --output "data/miniature-$1" --vocab $vocab; }
prepare wikipedia "$data"/wikipedia/*.jsonl.gz
prepare books "$data"/books/*.jsonl.gz
prepare pubmed "$data"/pubmed/*

pretrain() { $sparsebert pretrain "configs/miniature_$1.yaml" --local "${@:2}" >>"runs/${2#name=}.log"; }
both() { # a dense model and its sparse twin side by side, a core each
    mkdir -p runs
    "$1_dense" & local dense=$!
    "$1_sparse" & local sparse=$!
    wait $dense
    wait $sparse
}
trap 'kill $(jobs -p) 2>/dev/null; wait' EXIT  # they save and stop
general_dense() { pretrain general name=general-dense; }
general_sparse() {
    pretrain general name=general-sparse90 sparsity.final_sparsity=0.9 sparsity.prune_start_step=200 \
        sparsity.prune_end_step=2400 sparsity.prune_interval_steps=20
}
bio_dense() { pretrain pubmed name=bio-dense; }
bio_sparse() {
    pretrain pubmed name=bio-sparse90 model.init_from=runs/general-sparse90 sparsity.schedule=frozen
}
both general
both bio
$sparsebert compare configs/studies/miniature.yaml
$sparsebert compare configs/studies/miniature_grid.yaml
