"""The model that a run starts from: a run, a checkpoint or a Hugging Face folder.

    path --find_model--> Checkpoint or StoredWeights --open_source--> Source --read--> weights

The driver opens a source once: files are verified, dimensions, tensors and tokenizer checked. The
ranks read the weights of what it found (model_files.read_verified), and hash nothing again.
"""

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bert.architecture import DIMENSIONS, is_prunable, weight_shapes
from bert.config import ModelConfig
from bert.folders.config import build_model_config, read_bert_config
from bert.folders.keep_mask import KEEP_MASK_FILE
from bert.folders.model_files import (
    Model,
    ModelWeights,
    compute_fingerprint,
    find_model,
    is_folder,
    read_weights,
)
from bert.folders.stored_encoder import (
    ENCODER,
    Shapes,
    check_encoder,
    group_by_parameter,
    read_parameter,
)
from bert.folders.stored_weights import StoredWeights
from bert.folders.tokenizer import has_tokenizer, load_folder_vocabulary
from bert.vocabulary import TokenizerSettings, Vocabulary, load_vocabulary, vocabulary_file
from distributed.checkpoint.reading import MASK, Checkpoint
from distributed.errors import BadInput

# Fewer zeros than this share of the prunable weights are chance, not a mask.
LEAST_PRUNED_SHARE = 0.01

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A model that was opened and checked."""

    path: Path  # of the checkpoint or the Hugging Face folder
    model: Model
    config: ModelConfig
    vocabulary: Vocabulary | None  # None: a folder that has none, where none is needed
    labels: list[str] | None  # of a fine-tuned model, in the order of its outputs

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint, if it is one."""
        return self.model if isinstance(self.model, Checkpoint) else None

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the weights and masks, wherever and whenever they were written."""
        return compute_fingerprint(self.model)

    @cached_property
    def is_pruned(self) -> bool:
        """Whether it has masks or, without a mask file, zeros in their place."""
        if isinstance(self.model, Checkpoint):
            return MASK in self.model.kinds
        if (self.path / KEEP_MASK_FILE).exists():
            return True
        prunable = [
            read_parameter(copies)
            for name, copies in group_by_parameter(self.model.tensors).items()
            if is_prunable(name)
        ]
        zeros = sum(int((weight == 0).sum()) for weight in prunable)
        return zeros >= LEAST_PRUNED_SHARE * sum(weight.numel() for weight in prunable)

    def read(self) -> ModelWeights:
        """The weights and masks."""
        return read_weights(self.model)


def open_source(
    path: Path,
    *,
    field: str = "model.init_from",
    vocab: Path | None = None,
    vocabulary: Vocabulary | None = None,
    verified: bool = False,
    set_vocab: str = "set model.vocab",
) -> Source:
    """Find the model that `path` means, and check it.

    Args:
        path: a run, a checkpoint or a Hugging Face folder.
        field: what the user gave it as, for the messages.
        vocab: its vocabulary, if that is not where the model says.
        vocabulary: the one it must have; a model that does not tell its own is then accepted.
        verified: `find_model` has verified this very checkpoint.
        set_vocab: how the user says where the vocabulary is.

    Raises:
        BadInput: it is damaged, not BERT, quantised, lacks weights, or has another vocabulary.
    """
    if is_folder(path):
        read_bert_config(path)  # what it is comes before how it is stored
    model = find_model(path, verified=verified)
    if isinstance(model, Checkpoint):
        source = _open_checkpoint(model, field, vocab, vocabulary, set_vocab)
    else:
        source = _open_folder(model, field, vocab, vocabulary, set_vocab)
    if source.vocabulary is not None:
        source.config.count_rows(source.vocabulary.size)
        if vocabulary is not None:
            _check_same_vocabulary(source, source.vocabulary, vocabulary, field)
    return source


def check_dimensions(source: Source, config: ModelConfig, *, words: int) -> None:
    """Refuse a source of other dimensions than `config`; heads show in no tensor's shape.

    Raises:
        BadInput: naming the first dimension that differs.
    """
    for name in DIMENSIONS:
        theirs, ours = getattr(source.config, name), getattr(config, name)
        if theirs != ours:
            raise BadInput(
                f"model.{name} is {ours}, but model.init_from ({source.path}) has {theirs}"
            )
    rows = source.config.count_rows(words)
    if config.count_rows(words) != rows:
        raise BadInput(
            f"model.init_from ({source.path}) has {rows} rows of word embeddings for the {words} "
            f"words of {config.vocab}: set model.vocab_rows={rows}"
        )


# Checkpoints


def _open_checkpoint(
    checkpoint: Checkpoint,
    field: str,
    vocab: Path | None,
    vocabulary: Vocabulary | None,
    set_vocab: str,
) -> Source:
    try:
        model = {**checkpoint.section("config", "model"), "init_from": None}
        config = ModelConfig.model_validate(model)
    except ValidationError:
        raise BadInput(
            f"{field}: {checkpoint.path} does not describe a model that this release knows: use "
            "the release that wrote it"
        ) from None
    identity = checkpoint.section("identity", "model")
    file = vocabulary.path if vocabulary is not None else vocab or config.vocab
    if not (file.is_file() or (file.is_dir() and has_tokenizer(file))):
        raise BadInput(f"the vocabulary {file} of {checkpoint.path} is not there: {set_vocab}")
    try:
        settings = TokenizerSettings.model_validate(identity.get("tokenizer") or {})
    except ValidationError:
        raise checkpoint.damaged_at("identity", "model", "tokenizer") from None
    own = load_vocabulary(file, lower_case=identity.get("lower_case"), settings=settings)
    if identity.get("vocab_sha256", own.sha256) != own.sha256:
        raise BadInput(
            f"{field}: {checkpoint.path} was trained with another vocabulary than {file}: "
            f"{set_vocab}"
        )
    labels = checkpoint.state.get("labels")
    return Source(
        path=checkpoint.path,
        model=checkpoint,
        config=config.model_copy(update={"vocab": file}),
        vocabulary=own,
        labels=[str(label) for label in labels] if isinstance(labels, list) else None,
    )


# Hugging Face folders


def _open_folder(
    stored: StoredWeights,
    field: str,
    vocab: Path | None,
    vocabulary: Vocabulary | None,
    set_vocab: str,
) -> Source:
    folder = stored.folder
    bert_config = read_bert_config(folder)
    own = _find_folder_vocabulary(folder, vocab, vocabulary, set_vocab)
    config = build_model_config(
        bert_config,
        folder=folder,
        vocab=own.path if own is not None else vocabulary_file(folder),
        words=own.size if own is not None else None,
    )
    rows = config.vocab_rows or (own.size if own is not None else 0)
    check_encoder(stored, encoder_shapes(config, rows=rows), is_needed=is_needed)
    if own is not None and rows < own.size:
        raise BadInput(
            f"{field}: {folder} has {rows} rows of word embeddings, and {own.path} has {own.size} "
            f"words: {set_vocab}"
        )
    if own is not None and rows > own.size:
        log.warning("%s has %d rows of word embeddings for %d words", folder, rows, own.size)
    return Source(
        path=folder,
        model=stored,
        config=config,
        vocabulary=own,
        labels=_read_labels(bert_config),
    )


def is_needed(name: str) -> bool:
    """Whether a weight of the encoder must be there: a pooler, pretraining does without."""
    return not name.startswith("pooler.")


def encoder_shapes(config: ModelConfig, *, rows: int) -> Shapes:
    """Shapes of the weights of a BertModel, pooler included, by canonical name."""
    shapes = weight_shapes(config, vocab_size=rows)
    encoder = {name: shape for name, shape in shapes.items() if name.startswith(ENCODER)}
    width = config.hidden_size
    return {**encoder, "pooler.dense.weight": (width, width), "pooler.dense.bias": (width,)}


def _find_folder_vocabulary(
    folder: Path, vocab: Path | None, vocabulary: Vocabulary | None, set_vocab: str
) -> Vocabulary | None:
    """The folder's vocabulary; None if it has none and `vocabulary` is taken for it."""
    if has_tokenizer(folder):
        known = vocabulary.lower_case if vocabulary is not None else None
        own = load_folder_vocabulary(folder, lower_case=known)
        if vocab is not None and load_vocabulary(vocab).words != own.words:
            raise BadInput(f"{vocab} is not the vocabulary of {folder}: leave out model.vocab")
        return own
    if vocabulary is not None:
        return None
    if vocab is None or not vocab.exists():
        file = vocab or vocabulary_file(folder)
        raise BadInput(f"the vocabulary {file} of {folder} is not there: {set_vocab}")
    if vocab.is_dir() or vocab.suffix == ".json":
        return load_vocabulary(vocab)
    return load_folder_vocabulary(folder, words=vocab)


def _read_labels(bert_config: dict[str, Any]) -> list[str] | None:
    by_id = bert_config.get("id2label") or {}
    try:
        labels = [str(by_id[key]) for key in sorted(by_id, key=int)]
    except (TypeError, ValueError):
        return None
    # Hugging Face writes LABEL_0, LABEL_1, ... where nobody has named them.
    return labels if any(label != f"LABEL_{i}" for i, label in enumerate(labels)) else None


def _check_same_vocabulary(
    source: Source, theirs: Vocabulary, ours: Vocabulary, field: str
) -> None:
    if theirs.words != ours.words:
        raise BadInput(f"{ours.path} is not the vocabulary of {field} ({source.path})")
    known = {"lower_case": theirs.lower_case, **theirs.settings.model_dump(mode="json")}
    given = {"lower_case": ours.lower_case, **ours.settings.model_dump(mode="json")}
    tokenizer = "its export" if source.checkpoint is not None else str(source.path)
    advice = (
        f"prepare the text with --vocab and set model.vocab, both to {tokenizer}"
        if field == "model.init_from"
        else "give a model that reads text alike"
    )
    for name, value in known.items():
        if value != given[name]:
            raise BadInput(
                f"{field}: {source.path} reads text with {name} {json.dumps(value)}, and "
                f"{ours.path} with {json.dumps(given[name])}: {advice}"
            )
