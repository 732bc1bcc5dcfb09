"""A sparse model in sentence-transformers: the same vectors there and back, and no foreign code."""

import json
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from transformers import BertTokenizer

from sparsebert import to_sparse
from sparsebert.inference.errors import BadInput
from sparsebert.integrations.sentence_transformers import (
    SparseTransformer,
    load_sentence_transformer,
    save_sentence_transformer,
)
from tests.unit.sparsebert.inference.models import build

TEXTS = [
    "the patients were treated with",
    "aspirin for six weeks and then it stopped " * 9,
    "treated",
    "",
]
WORDS = sorted({word for text in [*TEXTS, "query :"] for word in text.split()})


@pytest.fixture
def model(tmp_path: Path) -> SentenceTransformer:
    vocabulary = tmp_path / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    build(vocab_size=5 + len(WORDS), max_position_embeddings=64).save_pretrained(tmp_path / "bert")
    BertTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "bert")
    first = Transformer(str(tmp_path / "bert"), max_seq_length=40)
    pooling = Pooling(first.get_embedding_dimension(), pooling_mode="mean", include_prompt=False)
    return SentenceTransformer(
        modules=[first, pooling, Normalize()], prompts={"query": "query : "}, device="cpu"
    )


@pytest.mark.parametrize("values", ["fp32", "int8"])
def test_there_and_back(model: SentenceTransformer, tmp_path: Path, values: str) -> None:
    dense = model.encode(TEXTS)
    dense_query = model.encode(TEXTS, prompt_name="query")
    to_sparse(model, values=values)
    wanted, query = model.encode(TEXTS), model.encode(TEXTS, prompt_name="query")
    save_sentence_transformer(model, tmp_path / "serving")
    loaded = load_sentence_transformer(tmp_path / "serving")
    assert isinstance(loaded[0], SparseTransformer) and loaded.max_seq_length == 40
    assert np.array_equal(loaded.encode(TEXTS), wanted)
    assert np.array_equal(loaded.encode(TEXTS, prompt_name="query"), query)
    assert loaded.similarity_fn_name == model.similarity_fn_name
    for found, exact in ((wanted, dense), (query, dense_query)):
        assert (found * exact).sum(1).min() > (0.99999 if values == "fp32" else 0.99)
    # A text's vector is its own, whatever it is batched with.
    alone = np.stack([loaded.encode(text) for text in TEXTS])
    assert np.abs(alone - wanted).max() < 1e-6
    save_sentence_transformer(loaded, tmp_path / "again")
    again = load_sentence_transformer(tmp_path / "again")
    assert np.array_equal(again.encode(TEXTS), wanted)


def test_their_own_loader_works_where_code_is_trusted(
    model: SentenceTransformer, tmp_path: Path
) -> None:
    save_sentence_transformer(to_sparse(model), tmp_path / "serving")
    with pytest.raises(Exception, match="trust_remote_code"):
        SentenceTransformer(str(tmp_path / "serving"), device="cpu")
    opened = SentenceTransformer(str(tmp_path / "serving"), device="cpu", trust_remote_code=True)
    assert np.array_equal(opened.encode(TEXTS), model.encode(TEXTS))


def test_what_is_refused(model: SentenceTransformer, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="call to_sparse first"):
        save_sentence_transformer(model, tmp_path / "serving")
    save_sentence_transformer(to_sparse(model), tmp_path / "serving")
    with pytest.raises(BadInput, match="exists already"):
        save_sentence_transformer(model, tmp_path / "serving")
    with pytest.raises(BadInput, match="no folder that save_sentence_transformer wrote"):
        load_sentence_transformer(tmp_path / "nothing")
    file = tmp_path / "serving" / "modules.json"
    modules = json.loads(file.read_text())
    for change, named in (
        ({"type": "os.system"}, "module os.system is not of sentence-transformers"),
        ({"type": "sentence_transformers.evil.run"}, "is not of sentence-transformers"),
        ({"path": "../bert"}, "outside its folder"),
    ):
        file.write_text(json.dumps([modules[0], {**modules[1], **change}, *modules[2:]]))
        with pytest.raises(BadInput, match=named):
            load_sentence_transformer(tmp_path / "serving")
