"""The README.md of an exported model: front matter for the hub, the sparsity report, limits."""

from collections.abc import Mapping
from typing import Any

import torch
import yaml

from bert.architecture import LAYER_MATRICES, is_prunable
from bert.heads import MASKED_LM, Head

_LOADING = """\
## Loading

```python
from transformers import AUTO_CLASS, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH")
model = AUTO_CLASS.from_pretrained("PATH")  # plain CLASS, no remote code
```
"""

_MASK_LAYOUT = """\
## The mask

`keep_mask.safetensors` says which weights are alive; a live weight may happen to be 0, so the
zeros alone are not the mask. Each prunable weight has a uint8 tensor under its name in `AutoModel`:
weight i of the row-major tensor is bit `i % 8`, counted from the lowest, of byte `i // 8`; 1 means
kept. The shapes and the digest are in the file's metadata. To unpack one tensor:
`numpy.unpackbits(packed, count=rows * columns, bitorder="little").reshape(rows, columns)`.
"""

_LIMITS = """\
## Limits

- Pruned weights are stored as zeros: the file is as large as a dense model's, and plain
  transformers is no faster on it. Speed needs a runtime that uses unstructured sparsity.
- Fine-tuning revives pruned weights unless the mask is applied after every optimizer step.
- Texts and their biases are those of the training corpora.
"""

_PRETRAINING_LIMITS = """\
- Trained on masked words only, in segments without sentence pairs; it has no pooler and no
  next-sentence head, so `AutoModel` starts its pooler at random.
"""


def build_model_card(
    state: Mapping[str, torch.Tensor],
    *,
    keep_masks: Mapping[str, torch.Tensor] | None,
    digest: str | None,
    report: Mapping[str, Any],
    head: Head = MASKED_LM,
) -> str:
    """The card's text; see `bert.folders.export.export_model` for the arguments."""
    tags = ["sparsebert", "bert"] + (["sparse", "pruning"] if keep_masks is not None else [])
    front_matter = {
        "library_name": "transformers",
        "pipeline_tag": head.pipeline_tag,
        **({"mask_token": "[MASK]"} if head.is_pretraining else {}),
        "tags": tags,
    }
    facts = {key: value for key, value in report.items() if key not in ("name", "validation")}
    sections = [
        f"---\n{yaml.safe_dump(front_matter, sort_keys=False)}---\n",
        f"# {report.get('name', 'BERT')}\n",
        (
            "A BERT masked language model in the Hugging Face format, pretrained with sparsebert.\n"
            if head.is_pretraining
            else "A BERT model in the Hugging Face format, fine-tuned with sparsebert.\n"
        ),
        _render_facts(facts),
        _render_validation(report.get("validation") or {}),
        _render_sparsity(state, keep_masks=keep_masks, digest=digest),
        _LOADING.replace("AUTO_CLASS", head.auto_class).replace("CLASS", head.model_class.__name__),
        _MASK_LAYOUT if keep_masks is not None else "",
        _LIMITS + (_PRETRAINING_LIMITS if head.is_pretraining else ""),
    ]
    return "\n".join(section for section in sections if section)


def _render_facts(facts: Mapping[str, Any]) -> str:
    lines = [
        f"- {key}: {value}\n"
        for key, value in facts.items()
        if isinstance(value, str | int | float | bool)
    ]
    return "".join(lines)


def _render_validation(losses: Mapping[str, Any]) -> str:
    if not losses:
        return ""
    rows = [
        f"| {name} | {loss:.4f} |\n" if isinstance(loss, float) else f"| {name} | {loss} |\n"
        for name, loss in losses.items()
    ]
    title = "## Validation\n\n| text | MLM loss (nats a masked token) |\n|---|---|\n"
    return title + "".join(rows)


def _render_sparsity(
    state: Mapping[str, torch.Tensor],
    *,
    keep_masks: Mapping[str, torch.Tensor] | None,
    digest: str | None,
) -> str:
    total = sum(weight.numel() for weight in state.values())
    if keep_masks is None:
        return f"## Sparsity\n\nDense: none of the {total:,} weights is pruned.\n"
    prunable = sum(mask.numel() for mask in keep_masks.values())
    kept = {name: int(mask.sum()) for name, mask in keep_masks.items()}
    pruned = prunable - sum(kept.values())
    others = [name for name in keep_masks if not is_prunable(name)]
    lines = [
        "## Sparsity\n\n",
        "| over | weights | pruned | sparsity |\n|---|---|---|---|\n",
        f"| the prunable weights | {prunable:,} | {pruned:,} | {pruned / prunable:.4%} |\n",
        f"| all weights | {total:,} | {pruned:,} | {pruned / total:.4%} |\n",
        "\nPrunable are the six linear weights of every encoder layer; embeddings, LayerNorm, ",
        f"biases and the head stay dense{', but for those named below' if others else ''}. ",
        f"Mask digest: `{digest}`.\n\nSparsity by layer:\n\n",
        "| layer | " + " | ".join(LAYER_MATRICES.values()) + " | all six |\n",
        "|---" * (len(LAYER_MATRICES) + 2) + "|\n",
    ]
    layers = sorted({int(name.split(".")[2]) for name in keep_masks if is_prunable(name)})
    for layer in layers:
        names = [f"encoder.layer.{layer}.{part}.weight" for part in LAYER_MATRICES]
        sizes = [keep_masks[name].numel() for name in names]
        sparsities = [1 - kept[name] / size for name, size in zip(names, sizes, strict=True)]
        sparsities.append(1 - sum(kept[name] for name in names) / sum(sizes))
        lines.append(f"| {layer} | " + " | ".join(f"{s:.2%}" for s in sparsities) + " |\n")
    lines += [
        f"\n`{name}` is pruned too: {1 - kept[name] / keep_masks[name].numel():.2%}.\n"
        for name in others
    ]
    return "".join(lines)
