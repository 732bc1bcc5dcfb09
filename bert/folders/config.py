"""config.json of a Hugging Face folder: whether it is a BERT that our models compute alike."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bert.architecture import DIMENSIONS
from bert.config import ModelConfig
from bert.folders.stored_weights import describe_other_folder, read_json
from distributed.errors import BadInput

CONFIG_FILE = "config.json"
_BERT_CLASS = re.compile(r"Bert(?:Model|LMHeadModel|For[A-Z]\w*)")
# Fields that the first BERTs' configurations have, which say no model_type.
_BERT_FIELDS = {*DIMENSIONS.values(), "type_vocab_size", "vocab_size"}
# What our configuration cannot express must be what our models have, or they compute otherwise.
_PLAIN = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "tie_word_embeddings": True,
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "type_vocab_size": 2,
    "pruned_heads": {},
}
_VOCAB_SIZE = 30522  # transformers' default
_QUANTISED = ("quantization_config", "compression_config")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        BadInput: there is none, or it is not JSON.
    """
    try:
        return read_json(folder / CONFIG_FILE)
    except FileNotFoundError:
        other = describe_other_folder(folder)
        raise BadInput(
            other or f"{folder} is not a Hugging Face folder: it has no {CONFIG_FILE}"
        ) from None


def read_bert_config(folder: Path) -> dict[str, Any]:
    """config.json of a folder with a BERT that our models compute alike.

    Raises:
        BadInput: it is another model, or a BERT with something that ours do not have.
    """
    config, path = read_config(folder), folder / CONFIG_FILE
    check_not_quantised(config, path)
    if reason := find_other_model(config):
        raise BadInput(
            f"{path} describes a model that is not BERT ({reason}): choose a BERT folder"
        )
    for field, value in _PLAIN.items():
        if config.get(field, value) != value:
            raise BadInput(f"{path} has {field} {config[field]}; only {value} is supported")
    return config


def check_not_quantised(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a configuration whose weights are codes to be scaled."""
    for field in _QUANTISED:
        if config.get(field) is not None:
            raise BadInput(
                f"{path} has {field}: quantised weights are not read, so give the model that it "
                "was quantised from"
            )


def find_other_model(config: Mapping[str, Any]) -> str | None:
    """Why a configuration is not BERT's; None if it is.

    Without a model_type, as in the first BERTs' folders, its classes or its fields decide.
    """
    model_type = config.get("model_type")
    if model_type:
        return None if model_type == "bert" else f"model_type {model_type}"
    classes = config.get("architectures") or []
    if classes:
        others = [name for name in classes if not _BERT_CLASS.fullmatch(str(name))]
        return f"architectures {', '.join(map(str, others))}" if others else None
    missing = sorted(_BERT_FIELDS - config.keys())
    return f"no model_type, and no {missing[0]}" if missing else None


def build_model_config(
    config: Mapping[str, Any], *, folder: Path, vocab: Path, words: int | None
) -> ModelConfig:
    """The dimensions of a folder's BERT.

    Args:
        config: what `read_bert_config` returned.
        folder: for the messages.
        vocab: where its vocabulary is.
        words: of its vocabulary; None if that is not known.

    Raises:
        BadInput: a dimension is none.
    """
    fields = {ours: config[theirs] for ours, theirs in DIMENSIONS.items() if theirs in config}
    if "initializer_range" in config:
        fields["initializer_range"] = config["initializer_range"]
    rows = config.get("vocab_size", _VOCAB_SIZE)
    try:
        return ModelConfig.model_validate(
            {**fields, "vocab": vocab, "vocab_rows": None if rows == words else rows}
        )
    except ValidationError as error:
        problem = error.errors()[0]
        names = {**DIMENSIONS, "vocab_rows": "vocab_size"}
        field = names.get(str(problem["loc"][0]), str(problem["loc"][0])) if problem["loc"] else ""
        said = problem["msg"].removeprefix("Value error, ")
        raise BadInput(f"{folder / CONFIG_FILE} is no BERT's: {field} {said}".rstrip()) from None
