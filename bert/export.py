"""A trained model as a plain Hugging Face folder, and back.

OUTPUT/config.json, model.safetensors    BertForMaskedLM, or a task's class, in fp32
OUTPUT/tokenizer.json, vocab.txt, ...    the tokenizer, for AutoTokenizer without a network
OUTPUT/keep_mask.safetensors             which weights are alive, one bit each
OUTPUT/README.md                         the model card: what is sparse, how to load it, limits
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from bert.configuration import ModelConfig
from bert.heads import MASKED_LM, Head
from bert.keep_mask import (
    KEEP_MASK_FILE,
    check_keep_masks,
    load_keep_masks,
    read_metadata,
    read_tensors,
    save_keep_masks,
)
from bert.model import build_bert_config
from bert.model_card import build_model_card
from bert.weights import canonical_name, named_weights
from distributed.errors import BadInput

WEIGHTS_FILE = "model.safetensors"


class Export(NamedTuple):
    """What `load_export` reads: fp32 weights on the CPU by canonical name, masks and digest."""

    state: dict[str, torch.Tensor]
    keep_masks: dict[str, torch.Tensor] | None
    digest: str | None


def export_model(
    state: Mapping[str, torch.Tensor],
    *,
    model_config: ModelConfig,
    vocab: Path,
    keep_masks: Mapping[str, torch.Tensor] | None,
    digest: str | None,
    report: Mapping[str, Any],
    output: Path,
    lower_case: bool = True,
    head: Head = MASKED_LM,
) -> bool:
    """Write the Hugging Face folder `output`, whole or not at all.

    Args:
        state: every weight of the model by canonical name: full, fp32, on the CPU.
        model_config: its dimensions.
        vocab: its vocabulary file.
        keep_masks: bool tensors of the weights' shapes by canonical name, True = keep, one for each
            prunable weight; None for a dense model.
        digest: the masks' digest.
        report: what the model card tells beside the sparsity: `name` and `step` of the run,
            `validation` (name of the text -> MLM loss), and anything else, as name and value.
        output: a folder that does not exist yet.
        lower_case: whether the tokenizer lowers its text.
        head: what stands on the encoder.

    Returns:
        True if the folder was written, False if it was there already with the same weights, masks
        and step.
    """
    if model_config.attention == "token":
        raise BadInput(
            "a model trained with model.attention: token cannot be exported: plain BERT would "
            "attend to the whole sentence, so set model.attention to segment and train again"
        )
    tokenizer = _build_tokenizer(vocab, model_config=model_config, lower_case=lower_case)
    names = _hugging_face_names(model_config, vocab_size=len(tokenizer), head=head)
    _check_state(state, names=names)
    if keep_masks is not None:
        check_keep_masks(state, keep_masks=keep_masks, source="the masks")
    identity = {
        "sparsebert_step": str(report.get("step")),
        "sparsebert_digest": str(digest),
        "sparsebert_weights_sha256": _compute_checksum(state),
    }
    if output.exists():
        if read_metadata(output / WEIGHTS_FILE).items() >= identity.items():
            return False
        raise BadInput(f"{output} exists and holds something else: choose another folder")

    bert_config = build_bert_config(
        model_config, vocab_size=len(tokenizer), pad_id=tokenizer.pad_token_id
    )
    bert_config.update(head.config_fields())
    bert_config.dtype = "float32"
    with appears_whole(output) as folder:
        bert_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        shutil.copyfile(vocab, folder / "vocab.txt")
        weights = {hf_name: state[name].contiguous() for name, (hf_name, _) in names.items()}
        save_file(weights, folder / WEIGHTS_FILE, metadata={"format": "pt", **identity})
        if keep_masks is not None:
            save_keep_masks(keep_masks, digest=digest, path=folder / KEEP_MASK_FILE)
        card = build_model_card(
            state, keep_masks=keep_masks, digest=digest, report=report, head=head
        )
        (folder / "README.md").write_text(card, encoding="utf-8")
        for file in folder.glob("*.safetensors"):
            # safetensors writes files that only their owner may read.
            shutil.copymode(folder / "README.md", file)
    return True


def load_export(
    folder: Path, *, model_config: ModelConfig | None = None, heads: bool = False
) -> Export:
    """Read an export or any Hugging Face BERT folder that has safetensors.

    `keep_masks` is None where there is no mask file: the caller takes the zeros for the mask and
    says so. Heads that pretraining here does not train (next sentence, tasks') are left out.

    Args:
        folder: the Hugging Face folder.
        model_config: refuse a folder of other dimensions or with another vocabulary; the number of
            heads shows in no tensor's shape.
        heads: also read the pooler and the head, whatever it is.
    """
    bert_config = read_bert_config(folder)
    if model_config is not None:
        _check_dimensions(bert_config, model_config=model_config, folder=folder)
    state = _read_state(folder, heads=heads)
    mask_file = folder / KEEP_MASK_FILE
    if not mask_file.exists():
        return Export(state, None, None)
    keep_masks, digest = load_keep_masks(mask_file)
    check_keep_masks(state, keep_masks=keep_masks, source=str(mask_file))
    return Export(state, keep_masks, digest)


def fill_mask(folder: Path, *, sentence: str, top_k: int = 5) -> list[tuple[str, float]]:
    """The `top_k` likeliest words for the one [MASK] in `sentence`, with their probabilities."""
    read_bert_config(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModelForMaskedLM.from_pretrained(
        folder, local_files_only=True, use_safetensors=True
    ).eval()
    inputs = tokenizer(sentence, return_tensors="pt")
    where = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    if where.numel() != 1:
        raise BadInput(f"the sentence has {where.numel()} {tokenizer.mask_token}: give it one")
    with torch.no_grad():
        logits = model(**inputs).logits[0, where[0]].float()
    best = logits.softmax(dim=-1).topk(top_k)
    words = tokenizer.convert_ids_to_tokens(best.indices.tolist())
    return list(zip(words, best.values.tolist(), strict=True))


# Writing


@contextmanager
def appears_whole(output: Path) -> Iterator[Path]:
    """A temporary folder beside `output` that takes its name if the block succeeds."""
    folder = output.parent / f".{output.name}.{os.getpid()}.partial"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
        os.replace(folder, output)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _build_tokenizer(vocab: Path, *, model_config: ModelConfig, lower_case: bool) -> BertTokenizer:
    if not vocab.is_file():
        raise BadInput(f"the vocabulary {vocab} (model.vocab) does not exist")
    tokenizer = BertTokenizer(
        vocab=str(vocab),
        do_lower_case=lower_case,
        model_max_length=model_config.max_position_embeddings,
    )
    # A special token that the file lacks would have got an id beyond the embedding.
    tokens = vocab.read_text(encoding="utf-8").splitlines()
    missing = [token for token in tokenizer.all_special_tokens if token not in tokens]
    if missing:
        raise BadInput(f"the vocabulary {vocab} (model.vocab) lacks {missing[0]}: add that line")
    return tokenizer


def _hugging_face_names(
    model_config: ModelConfig, *, vocab_size: int, head: Head
) -> dict[str, tuple[str, torch.Size]]:
    """From canonical name to the Hugging Face class's name and shape, each tied weight once."""
    model = build_meta_model(model_config, vocab_size=vocab_size, head=head)
    canonical = (name for name, _ in named_weights(model))
    parameters = ((name, weight.shape) for name, weight in model.named_parameters())
    return dict(zip(canonical, parameters, strict=True))


def build_meta_model(model_config: ModelConfig, *, vocab_size: int, head: Head) -> nn.Module:
    """The head's Hugging Face model without storage: names and shapes only."""
    bert_config = build_bert_config(model_config, vocab_size=vocab_size, pad_id=0)
    bert_config.update(head.config_fields())
    with torch.device("meta"):
        model: nn.Module = head.model_class(bert_config)
    return model


def _check_state(
    state: Mapping[str, torch.Tensor], *, names: Mapping[str, tuple[str, torch.Size]]
) -> None:
    odd = sorted(state.keys() ^ names.keys())
    if odd:
        where = "too many" if odd[0] in state else "missing"
        raise BadInput(f"{odd[0]} is {where} in the weights: check model.num_layers")
    for name, (_, shape) in names.items():
        weight = state[name]
        if weight.shape != shape or weight.dtype != torch.float32:
            raise BadInput(
                f"{name} is {weight.dtype} {list(weight.shape)}, but the model's configuration and "
                f"model.vocab ask for float32 {list(shape)}"
            )


def _compute_checksum(state: Mapping[str, torch.Tensor]) -> str:
    checksum = hashlib.sha256()
    for name in sorted(state):
        checksum.update(name.encode())
        checksum.update(state[name].detach().contiguous().numpy().data.cast("B"))
    return checksum.hexdigest()


# Reading


def read_bert_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        bert_config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"{folder} is not a Hugging Face folder: it has no config.json") from None
    except ValueError:
        raise BadInput(f"{path} is not JSON") from None
    if not isinstance(bert_config, dict) or bert_config.get("model_type") != "bert":
        raise BadInput(f"{path} describes a model that is not BERT: choose a BERT folder")
    # What our configuration cannot express must be what our models have, or they compute otherwise.
    plain = {
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "tie_word_embeddings": True,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "type_vocab_size": 2,
    }
    for field, value in plain.items():
        if bert_config.get(field, value) != value:
            raise BadInput(f"{path} has {field} {bert_config[field]}; only {value} is supported")
    return bert_config


def _check_dimensions(
    bert_config: Mapping[str, Any], *, model_config: ModelConfig, folder: Path
) -> None:
    dimensions = build_bert_config(model_config, vocab_size=1, pad_id=0)
    fields = {
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_position_embeddings": "max_position_embeddings",
    }
    for field, hf_field in fields.items():
        wanted, found = getattr(dimensions, hf_field), bert_config.get(hf_field)
        if wanted != found:
            raise BadInput(f"model.{field} is {wanted} but model.init_from ({folder}) has {found}")
    theirs, ours = folder / "vocab.txt", model_config.vocab
    if theirs.exists() and theirs.read_text("utf-8").split() != ours.read_text("utf-8").split():
        raise BadInput(f"model.vocab ({ours}) is not the vocabulary of model.init_from ({folder})")


def _read_state(folder: Path, *, heads: bool) -> dict[str, torch.Tensor]:
    """Every trained weight of the folder, fp32, by canonical name."""
    state: dict[str, torch.Tensor] = {}
    for path in _weight_files(folder):
        for name, weight in read_tensors(path).items():
            # The first BERT checkpoints have TensorFlow's names for LayerNorm.
            name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
            state[canonical_name(name.replace("LayerNorm.beta", "LayerNorm.bias"))] = weight.float()
    tied = {
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }
    for copy, original in tied.items():
        duplicate = state.pop(copy, None)
        if duplicate is not None and not torch.equal(
            duplicate, state.setdefault(original, duplicate)
        ):
            raise BadInput(
                f"{folder} has a decoder of its own ({copy}): only tied ones are supported"
            )
    kept = ("embeddings.", "encoder.", "cls.predictions.")
    return {
        name: weight
        for name, weight in state.items()
        if (heads or name.startswith(kept)) and not name.endswith("_ids")
    }


def _weight_files(folder: Path) -> list[Path]:
    index = folder / f"{WEIGHTS_FILE}.index.json"
    if (folder / WEIGHTS_FILE).exists():
        return [folder / WEIGHTS_FILE]
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise BadInput(f"{index} names a file outside its folder: {outside[0]}")
        return [folder / name for name in sorted(names)]
    if list(folder.glob("*.bin")):
        raise BadInput(
            f"{folder} has its weights in a pickle (.bin), which is never opened: convert it to "
            f"{WEIGHTS_FILE} with transformers' save_pretrained"
        )
    raise BadInput(f"{folder} has no {WEIGHTS_FILE}")
