"""What a run, checkpoint or Hugging Face folder is, before a weight of it is trained on.

Fine-tuning takes its dimensions and its vocabulary from the model that it starts from, so a task's
configuration fits any model.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bert.configuration import ModelConfig
from bert.export import load_export, read_bert_config
from bert.vocabulary import Vocabulary, load_vocabulary
from bert.weights import is_prunable
from distributed.checkpoint import MASK, Checkpoint
from distributed.checkpoint_manifest import MANIFEST
from distributed.errors import BadInput

# Fewer zeros than this share of the prunable weights are chance, not a mask.
_LEAST_PRUNED_SHARE = 0.01


@dataclass(frozen=True)
class SourceModel:
    """Dimensions and vocabulary of a model to start from."""

    config: ModelConfig
    vocabulary: Vocabulary
    is_pruned: bool  # by its mask file or, without one, by its zeros


def describe_source(source: Path, *, vocab: Path | None) -> SourceModel:
    """Read what `source` is.

    Args:
        source: a checkpoint or a Hugging Face folder.
        vocab: its vocabulary, if that is not where the source says.

    Raises:
        BadInput: it is damaged, not BERT, or its vocabulary is another or not there.
    """
    if (source / MANIFEST).exists():
        return _describe_checkpoint(Checkpoint(source), vocab)
    return _describe_folder(source, vocab)


def _describe_checkpoint(checkpoint: Checkpoint, vocab: Path | None) -> SourceModel:
    model = checkpoint.section("config", "model")
    try:
        config = ModelConfig.model_validate({**model, "init_from": None})
    except ValidationError:
        raise BadInput(
            f"model.init_from: {checkpoint.path} does not describe a model that this release knows"
        ) from None
    if config.attention == "token":
        raise BadInput(f"model.init_from: {checkpoint.path} is a control that cannot read context")
    file = _existing(vocab or config.vocab, checkpoint.path)
    vocabulary = load_vocabulary(file)
    identity = checkpoint.section("identity", "model")
    if identity.get("vocab_sha256") != vocabulary.sha256:
        raise BadInput(
            f"model.init_from: {checkpoint.path} was trained with another vocabulary than {file}: "
            "set model.vocab to its own"
        )
    config = config.model_copy(update={"vocab": file})
    return SourceModel(config, vocabulary, MASK in checkpoint.kinds)


def _describe_folder(folder: Path, vocab: Path | None) -> SourceModel:
    bert_config = read_bert_config(folder)
    file = _existing(vocab or folder / "vocab.txt", folder)
    vocabulary = load_vocabulary(file, lower_case=_lower_case(folder))
    if bert_config.get("vocab_size") != vocabulary.size:
        raise BadInput(
            f"model.init_from: {folder} has {bert_config.get('vocab_size')} words and {file} has "
            f"{vocabulary.size}: set model.vocab to its own"
        )
    names = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
        "initializer_range": "initializer_range",
    }
    fields = {ours: bert_config[theirs] for ours, theirs in names.items() if theirs in bert_config}
    config = ModelConfig.model_validate({**fields, "vocab": file})
    export = load_export(folder, model_config=config)
    if export.keep_masks is not None:
        return SourceModel(config, vocabulary, True)
    prunable = [weight for name, weight in export.state.items() if is_prunable(name)]
    zeros = sum(int((weight == 0).sum()) for weight in prunable)
    total = sum(weight.numel() for weight in prunable)
    return SourceModel(config, vocabulary, zeros >= _LEAST_PRUNED_SHARE * total)


def _existing(file: Path, source: Path) -> Path:
    if not file.is_file():
        raise BadInput(
            f"the vocabulary {file} of {source} (model.init_from) is not there: set model.vocab"
        )
    return file


def _lower_case(folder: Path) -> bool | None:
    """What the folder's tokenizer says; None leaves it to the vocabulary."""
    try:
        settings: Any = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    value = settings.get("do_lower_case") if isinstance(settings, dict) else None
    return value if isinstance(value, bool) else None
