"""A sparse model as a model of fastembed.

register("minilm-sparse", "serving")
model = TextEmbedding("minilm-sparse")
vectors = list(model.embed(["a text", "another"]))
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from fastembed import TextEmbedding
from fastembed.common.model_description import DenseModelDescription, ModelSource
from fastembed.text.text_embedding_base import TextEmbeddingBase
from transformers import AutoTokenizer, BertConfig

from sparsebert.inference.convert import find_bert
from sparsebert.inference.errors import BadInput
from sparsebert.inference.sparse_folder import load_sparse

Array = np.ndarray[Any, np.dtype[np.float32]]
Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class _Registered:
    folder: Path
    pooling: Pooling
    normalize: bool
    description: DenseModelDescription


_registered: dict[str, _Registered] = {}  # by lower-case name


def register(
    name: str, folder: str | Path, *, pooling: Pooling = "mean", normalize: bool = True
) -> None:
    """Make a sparse folder known to `fastembed.TextEmbedding`.

    Args:
        name: to open it by.
        folder: of `save_sparse`, `save_sentence_transformer` or `sparsebert export`.
        pooling: over the tokens of a text, or its first one.
        normalize: give vectors of length 1.

    Raises:
        BadInput: the name is taken, or the folder has no configuration.
    """
    if name.lower() in {known["model"].lower() for known in TextEmbedding.list_supported_models()}:
        raise BadInput(f"fastembed has a model {name} already: choose another name")
    if pooling not in ("mean", "cls"):
        raise BadInput(f"pooling is {pooling!r}: choose mean or cls")
    try:
        config = BertConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError):
        raise BadInput(f"{folder} has no config.json: give a sparse folder") from None
    description = DenseModelDescription(
        model=name,
        sources=ModelSource(url=Path(folder).resolve().as_uri()),
        model_file="sparse.safetensors",
        description="a sparse BERT",
        license="",
        size_in_GB=0.0,
        dim=config.hidden_size,
    )
    _registered[name.lower()] = _Registered(Path(folder), pooling, normalize, description)
    if SparseTextEmbedding not in TextEmbedding.EMBEDDINGS_REGISTRY:
        TextEmbedding.EMBEDDINGS_REGISTRY.append(SparseTextEmbedding)


class SparseTextEmbedding(TextEmbeddingBase):  # type: ignore[misc]  # which has no types
    """What TextEmbedding makes of a registered name."""

    def __init__(
        self,
        model_name: str,
        cache_dir: str | None = None,
        threads: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model_name, cache_dir, threads, **kwargs)
        self._settings = _registered[model_name.lower()]
        self._model = find_bert(load_sparse(self._settings.folder))
        self._tokenizer = AutoTokenizer.from_pretrained(
            self._settings.folder, local_files_only=True
        )
        longest = self._model.config.max_position_embeddings
        self._longest = min(self._tokenizer.model_max_length, longest)

    @classmethod
    def _list_supported_models(cls) -> list[DenseModelDescription]:
        return [known.description for known in _registered.values()]

    @property
    def embedding_size(self) -> int:
        """Numbers of a vector."""
        return int(self._model.config.hidden_size)

    def token_count(self, texts: str | Iterable[str], **kwargs: Any) -> int:
        """Tokens of all texts together, the special ones too."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        return sum(len(ids) for ids in self._encode(listed, padding=False)["input_ids"])

    def embed(
        self,
        documents: str | Iterable[str],
        batch_size: int = 256,
        parallel: int | None = None,
        **kwargs: Any,
    ) -> Iterable[Array]:
        """Vectors, one a text, in order. `parallel` is ignored: threads share a batch."""
        texts = iter([documents] if isinstance(documents, str) else documents)
        while batch := list(islice(texts, batch_size)):
            yield from self._embed_batch(batch)

    def _encode(self, texts: list[str], **options: Any) -> Any:
        return self._tokenizer(texts, truncation=True, max_length=self._longest, **options)

    def _embed_batch(self, texts: list[str]) -> Array:
        features = self._encode(texts, padding=True, return_tensors="pt")
        before = torch.get_num_threads()
        if self.threads:
            torch.set_num_threads(self.threads)
        try:
            with torch.inference_mode():
                tokens = self._model(**features).last_hidden_state
        finally:
            torch.set_num_threads(before)
        if self._settings.pooling == "cls":
            pooled = tokens[:, 0]
        else:
            weights = features["attention_mask"][..., None].to(tokens.dtype)
            pooled = (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
        if self._settings.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=1)
        found: Array = pooled.numpy()
        return found


__all__ = ["SparseTextEmbedding", "register"]
