"""A sparse model in sentence-transformers: its `encode`, batching, pooling and prompts.

    model = SentenceTransformer("some/bert")     # pruned
    to_sparse(model, values="int8")
    save_sentence_transformer(model, "serving")
    model = load_sentence_transformer("serving")

sentence-transformers imports a class that is not its own from a folder's modules.json with
trust_remote_code=True alone, wherever the class comes from. `load_sentence_transformer` builds the
modules itself and needs no such trust: it takes this class and sentence-transformers' own.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as their_modules
from sentence_transformers.sentence_transformer.modules import InputModule
from transformers import AutoTokenizer

from sparsebert.inference.convert import find_bert
from sparsebert.inference.errors import BadInput
from sparsebert.inference.module import SparseEncoder
from sparsebert.inference.sparse_folder import load_sparse, write_sparse

_MODULES_FILE = "modules.json"
_CONFIG_FILE = "config_sentence_transformers.json"


class SparseTransformer(InputModule):  # type: ignore[misc]  # which has no types
    """The first module: texts -> token_embeddings [B, S, H]."""

    config_file_name = "sentence_bert_config.json"
    config_keys = ["max_seq_length"]

    def __init__(self, model: Any, tokenizer: Any, max_seq_length: int | None = None) -> None:
        super().__init__()
        self.model = model  # a BertModel whose encoder is sparse
        self.tokenizer = tokenizer
        longest = model.config.max_position_embeddings
        self.max_seq_length = min(max_seq_length or longest, longest)

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Ids and masks of a batch of texts, padded to its longest."""
        texts = self._prepend_prompt(list(inputs), prompt) if prompt else list(inputs)
        features = self.tokenizer(
            texts,
            padding=True,
            truncation="longest_first",
            max_length=self.max_seq_length,
            return_tensors="pt",
        )
        if prompt:  # pooling may leave the prompt's tokens out
            tokens = self.tokenizer(prompt, add_special_tokens=True)["input_ids"]
            features["prompt_length"] = len(tokens) - 1  # without [SEP]
        return dict(features)

    def forward(self, features: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Add `token_embeddings`."""
        names = ("input_ids", "attention_mask", "token_type_ids")
        given = {name: features[name] for name in names if name in features}
        features["token_embeddings"] = self.model(**given).last_hidden_state
        return features

    def get_embedding_dimension(self) -> int:
        """Features of a token."""
        return int(self.model.config.hidden_size)

    def save(self, output_path: str, *args: Any, **kwargs: Any) -> None:
        """Write the sparse file, the tokenizer and the longest length into an existing folder."""
        write_sparse(self.model, Path(output_path))
        self.save_tokenizer(output_path)
        self.save_config(output_path)

    @classmethod
    def load(
        cls, model_name_or_path: str, subfolder: str = "", **kwargs: Any
    ) -> "SparseTransformer":
        """Open what `save` wrote; nothing is downloaded."""
        folder = Path(model_name_or_path, subfolder)
        model = load_sparse(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = cls.load_config(model_name_or_path, subfolder=subfolder)
        return cls(model, tokenizer, config.get("max_seq_length"))


def save_sentence_transformer(model: SentenceTransformer, folder: str | Path) -> None:
    """Write a model whose BERT `to_sparse` made sparse, with its other modules and prompts.

    Raises:
        BadInput: its encoder is dense, or the folder exists.
    """
    if Path(folder).exists():
        raise BadInput(f"{folder} exists already: choose another folder")
    first = model[0]
    bert = find_bert(first)
    if not isinstance(bert.encoder, SparseEncoder):
        raise BadInput("the model's encoder is dense: call to_sparse first")
    if not isinstance(first, SparseTransformer):
        first = SparseTransformer(bert, model.tokenizer, model.max_seq_length)
    _assemble([first, *list(model)[1:]], _settings(model)).save(str(folder))


def load_sentence_transformer(folder: str | Path) -> SentenceTransformer:
    """Open what `save_sentence_transformer` wrote.

    Raises:
        BadInput: it is no such folder, or its file is damaged.
    """
    folder = Path(folder)
    try:
        listed = json.loads((folder / _MODULES_FILE).read_text(encoding="utf-8"))
        settings = json.loads((folder / _CONFIG_FILE).read_text(encoding="utf-8"))
        entries = [(str(entry["type"]), str(entry["path"])) for entry in listed]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{folder} is no folder that save_sentence_transformer wrote ({error})"
        ) from None
    modules = []
    for kind, path in entries:
        if not (folder / path).resolve().is_relative_to(folder.resolve()):
            raise BadInput(f"{folder / _MODULES_FILE} names {path}, outside its folder")
        modules.append(_module_class(kind).load(str(folder), subfolder=path))
    names = ("prompts", "default_prompt_name", "similarity_fn_name")
    return _assemble(modules, {name: settings.get(name) for name in names})


def _module_class(kind: str) -> Any:
    name = kind.rpartition(".")[2]
    if name == SparseTransformer.__name__:
        return SparseTransformer
    if kind.startswith("sentence_transformers.") and name in their_modules.__all__:
        return getattr(their_modules, name)
    raise BadInput(f"the module {kind} is not of sentence-transformers: it is not imported")


def _settings(model: SentenceTransformer) -> dict[str, Any]:
    return {
        "prompts": model.prompts,
        "default_prompt_name": model.default_prompt_name,
        "similarity_fn_name": model.similarity_fn_name,
    }


def _assemble(modules: list[Any], settings: dict[str, Any]) -> SentenceTransformer:
    return SentenceTransformer(modules=modules, device="cpu", **settings)


__all__ = ["SparseTransformer", "load_sentence_transformer", "save_sentence_transformer"]
