"""A trained model as a plain Hugging Face folder. (source.py reads such folders.)

OUTPUT/config.json, model.safetensors    BertForMaskedLM, or a task's class, in fp32
OUTPUT/tokenizer.json, vocab.txt, ...    the tokenizer, for AutoTokenizer without a network
OUTPUT/keep_mask.safetensors             which weights are alive, one bit each
OUTPUT/README.md                         the model card: what is sparse, how to load it, limits
"""

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken
from torch import nn
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertTokenizer

from bert.architecture import named_weights
from bert.config import ModelConfig
from bert.folders.config import read_bert_config
from bert.folders.keep_mask import KEEP_MASK_FILE, check_keep_masks, read_metadata, save_keep_masks
from bert.folders.model_card import build_model_card
from bert.folders.stored_weights import WEIGHTS_FILE
from bert.heads import MASKED_LM, Head
from bert.model import build_bert_config
from bert.vocabulary import SPECIAL_TOKENS, VOCAB_FILE, Vocabulary
from distributed.errors import BadInput


def export_model(
    state: Mapping[str, torch.Tensor],
    *,
    model_config: ModelConfig,
    vocabulary: Vocabulary,
    keep_masks: Mapping[str, torch.Tensor] | None,
    digest: str | None,
    report: Mapping[str, Any],
    output: Path,
    head: Head = MASKED_LM,
) -> bool:
    """Write the Hugging Face folder `output`, whole or not at all.

    Args:
        state: every weight of the model by canonical name: full, fp32, on the CPU.
        model_config: its dimensions.
        vocabulary: its vocabulary.
        keep_masks: bool tensors of the weights' shapes by canonical name, True = keep, one for each
            prunable weight; None for a dense model.
        digest: the masks' digest.
        report: what the model card tells beside the sparsity: `name` and `step` of the run,
            `validation` (name of the text -> MLM loss), and anything else, as name and value.
        output: a folder that does not exist yet.
        head: what stands on the encoder.

    Returns:
        True if the folder was written, False if it was there already with the same weights, masks
        and step.
    """
    tokenizer = _build_tokenizer(vocabulary, model_config=model_config)
    rows = model_config.count_rows(vocabulary.size)
    names = _hugging_face_names(model_config, vocab_size=rows, head=head)
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

    bert_config = build_bert_config(model_config, vocab_size=rows, pad_id=vocabulary.pad_id)
    bert_config.update(head.config_fields())
    bert_config.dtype = "float32"
    with appears_whole(output) as folder:
        bert_config.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / VOCAB_FILE).write_bytes(vocabulary.data)
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


def _build_tokenizer(vocabulary: Vocabulary, *, model_config: ModelConfig) -> BertTokenizer:
    """The tokenizer that gives the vocabulary's ids."""
    tokenizer = BertTokenizer(
        vocab={word: index for index, word in enumerate(vocabulary.words)},
        do_lower_case=vocabulary.lower_case,
        strip_accents=vocabulary.settings.strip_accents,
        tokenize_chinese_chars=vocabulary.settings.tokenize_chinese_chars,
        model_max_length=model_config.max_position_embeddings,
    )
    for word in sorted(vocabulary.settings.added_words, key=lambda word: word.id):
        if word.content not in SPECIAL_TOKENS:
            flags = word.model_dump(exclude={"id", "content"})
            tokenizer.add_tokens([AddedToken(word.content, **flags, special=False)])
    ids = tokenizer.get_vocab()
    for index, token in enumerate(vocabulary.tokens):
        if ids.get(token) != index:
            raise BadInput(
                f"the vocabulary {vocabulary.path} cannot be written for transformers: {token!r} "
                f"would get the id {ids.get(token)}, not {index}"
            )
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
