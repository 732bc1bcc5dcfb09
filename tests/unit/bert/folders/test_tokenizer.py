"""The ids of a folder's texts are those of AutoTokenizer, or the folder is refused by a name."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

from bert.architecture import named_weights
from bert.config import ModelConfig
from bert.corpora.manifest import load_manifest
from bert.corpora.prepare import prepare
from bert.corpora.shards import open_corpus
from bert.folders.export import export_model
from bert.folders.source import open_source
from bert.folders.tokenizer import load_folder_vocabulary
from bert.model import build_model
from bert.vocabulary import Vocabulary, load_vocabulary
from distributed.errors import BadInput
from tests.unit.bert.folders.writing import change_config, write_folder

SAMPLES = Path(__file__).parents[4] / "samples"
TEXTS = [
    "Er MÖCHTE es, er mochte es; schön wär's.",
    "e\u0301cole Ecole \u00c9COLE naïve Ångström",
    "möchte中文x 中文 漢字かな交じり文 한국어",
    "a\x00b\x07c\u200bd\u00ade\tf\ng\u3000h \ufffd i\x85j",
    "İstanbul Iı STRASSE ß ﬁ ① ²",
    "[MASK] [SEP] [mask] ##ing " + "x" * 101,
    "",
]


def read_words() -> list[str]:
    """Part of BERT's vocabulary, words with accents and capitals, and every single character."""
    base = (SAMPLES / "vocab.txt").read_text("utf-8").removesuffix("\n").split("\n")
    words = base[:110] + base[1996:2400]
    words += ["mochte", "möchte", "schon", "schön", "wär", "##ä", "ä", "##ö", "ö", "É", "##É"]
    words += ["Er", "M", "##Ö", "##C", "##H", "##T", "##E", "école", "ecole", "Å", "漢", "##文"]
    words += [word for word in base if len(word.removeprefix("##")) == 1]
    return list(dict.fromkeys(words))


WORDS = read_words()
LOWER = [word for word in WORDS if word == word.lower() or word.startswith("[")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "bert", words=WORDS)


def configure(folder: Path, **settings: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def ids_of_transformers(folder: Path, texts: list[str] = TEXTS) -> list[list[int]]:
    """Without special tokens, and with those that a text spells taken for text."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    options = {"add_special_tokens": False, "split_special_tokens": True}
    ids: list[list[int]] = tokenizer(texts, **options)["input_ids"]
    return ids


def ids_of(vocabulary: Vocabulary, texts: list[str] = TEXTS) -> list[list[int]]:
    return [ids.tolist() for ids in vocabulary.encode(texts)]


def write_export(vocabulary: Vocabulary, output: Path, *, rows: int | None = None) -> Path:
    config = ModelConfig(
        hidden_size=16, num_layers=1, num_heads=2, intermediate_size=24,
        max_position_embeddings=20, vocab=vocabulary.path, vocab_rows=rows,
    )  # fmt: skip
    module = build_model(
        config, vocab_size=config.count_rows(vocabulary.size), pad_id=vocabulary.pad_id,
        hidden_dropout=0.0, attention_dropout=0.0, seed=1,
    )  # fmt: skip
    state = {name: weight.detach() for name, weight in named_weights(module)}
    assert export_model(
        state, model_config=config, vocabulary=vocabulary, keep_masks=None, digest=None,
        report={"name": "x", "step": 1}, output=output,
    )  # fmt: skip
    return output


SETTINGS = [
    {name: value for name, value in zip(names, values, strict=True) if value != "absent"}
    for names in [("do_lower_case", "strip_accents", "tokenize_chinese_chars")]
    for values in itertools.product(
        (True, False), ("absent", None, True, False), ("absent", True, False)
    )
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: json.dumps(s)[1:-1])
def test_every_combination(folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    configure(folder, **settings)
    want = ids_of_transformers(folder)
    vocabulary = load_folder_vocabulary(folder)
    assert ids_of(vocabulary) == want
    # What a run keeps beside its vocab.txt, in its identity and for its workers.
    vocabulary.write(tmp_path / "vocab.txt")
    record = json.loads(json.dumps(vocabulary.record()))
    kept = load_vocabulary(tmp_path / "vocab.txt", **record)
    assert ids_of(kept) == want and kept.sha256 == vocabulary.sha256
    # What an export gives, in transformers and here.
    output = write_export(vocabulary, tmp_path / "out")
    assert ids_of_transformers(output) == want
    assert ids_of(load_folder_vocabulary(output)) == want


def test_combinations_differ() -> None:
    """The texts would show a setting that is passed over."""
    found = {
        json.dumps(settings): json.dumps(
            ids_of(
                load_vocabulary(
                    SAMPLES / "vocab.txt",
                    lower_case=settings["do_lower_case"],
                    settings={n: v for n, v in settings.items() if n != "do_lower_case"},
                )
            )
        )
        for settings in SETTINGS
        if len(settings) == 3 and settings["strip_accents"] is not None
    }
    assert len(found) == 8 and len(set(found.values())) >= 6


def test_words_in_capitals_and_a_folder_that_does_not_say_do_lower_case(folder: Path) -> None:
    configure(folder, strip_accents=False)
    with pytest.raises(BadInput, match="does not say do_lower_case, and its vocabulary has capit"):
        load_folder_vocabulary(folder)
    assert not load_folder_vocabulary(folder, lower_case=False).lower_case
    (folder / "vocab.txt").write_text("\n".join(LOWER) + "\n")
    assert ids_of(load_folder_vocabulary(folder)) == ids_of_transformers(folder)


# tokenizer.json


def test_a_tokenizer_json_alone_is_complete(folder: Path, tmp_path: Path) -> None:
    """As transformers 5 writes it: no vocab.txt."""
    text = (folder / "vocab.txt").read_bytes()
    want = load_vocabulary(folder / "vocab.txt", lower_case=True, settings={"strip_accents": False})
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), strip_accents=False)
    (folder / "vocab.txt").unlink()
    tokenizer.save_pretrained(folder)
    assert not (folder / "vocab.txt").exists()
    found = open_source(folder)
    assert found.vocabulary is not None and found.config.vocab == folder / "tokenizer.json"
    assert found.vocabulary.sha256 == want.sha256 and found.vocabulary.data == text
    assert ids_of(found.vocabulary) == ids_of_transformers(folder) == ids_of(want)
    # By its own path, as model.vocab or --vocab may name it.
    assert ids_of(load_vocabulary(folder / "tokenizer.json")) == ids_of(want)
    assert ids_of_transformers(write_export(found.vocabulary, tmp_path / "out")) == ids_of(want)


def test_tokenizer_json_as_the_class_of_any_tokenizer_reads_it(folder: Path) -> None:
    BertTokenizer(
        vocab=str(folder / "vocab.txt"), do_lower_case=False, tokenize_chinese_chars=False
    ).save_pretrained(folder)
    configure(folder, tokenizer_class="PreTrainedTokenizerFast")
    assert type(AutoTokenizer.from_pretrained(folder)) is PreTrainedTokenizerFast
    assert ids_of(load_folder_vocabulary(folder)) == ids_of_transformers(folder)


def test_how_batches_were_cut_and_filled_up_is_no_part_of_reading(folder: Path) -> None:
    """As sentence-transformers writes it."""
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.backend_tokenizer.enable_padding(length=16)
    tokenizer.backend_tokenizer.enable_truncation(12)
    tokenizer.save_pretrained(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["padding"]["strategy"]
    want = AutoTokenizer.from_pretrained(folder)(
        TEXTS, add_special_tokens=False, split_special_tokens=True, padding=False, truncation=False
    )["input_ids"]
    assert ids_of(load_folder_vocabulary(folder)) == want


def test_white_space_after_a_word(folder: Path) -> None:
    """transformers cuts it off, and without it the words would be others."""
    (folder / "vocab.txt").write_text("\n".join(f"{word} " for word in WORDS) + "\n")
    with pytest.raises(BadInput, match=r"lacks \[PAD\]"):
        load_folder_vocabulary(folder)
    odd = [*WORDS[:-1], f"{WORDS[-1]} ", "\u2028", "\u3000"]
    (folder / "vocab.txt").write_text("\n".join(odd) + "\n")
    configure(folder, do_lower_case=True)
    with pytest.raises(BadInput, match="on line .*, which transformers reads as .* white space"):
        load_folder_vocabulary(folder)
    (folder / "vocab.txt").write_text("\n".join([*WORDS, "\u2028", "\u3000"]) + "\n")
    assert ids_of(load_folder_vocabulary(folder)) == ids_of_transformers(folder)
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    assert ids_of(load_folder_vocabulary(folder)) == ids_of_transformers(folder)


def change_tokenizer(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """Save the folder's tokenizer and change its tokenizer.json."""

    def apply(folder: Path) -> None:
        BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
        file = folder / "tokenizer.json"
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    return apply


def change_settings(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **{"do_lower_case": True, **settings})


def silence(name: str, value: Any) -> Callable[[Path], None]:
    """tokenizer.json says something, and tokenizer_config.json nothing."""

    def apply(folder: Path) -> None:
        change_tokenizer(lambda t: t["normalizer"].update({name: value}))(folder)
        configure(folder)

    return apply


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (change_settings(unk_token="<unk>"), "has unk_token"),
    (change_settings(pad_token="the"), "has pad_token"),
    (change_settings(cls_token="the"), 'has cls_token "the"'),
    (change_settings(sep_token="the"), 'has sep_token "the"'),
    (change_settings(mask_token="the"), 'has mask_token "the"'),
    (change_settings(do_basic_tokenize=False), "has do_basic_tokenize false"),
    (change_settings(never_split=["Er"]), "has never_split"),
    (change_settings(tokenizer_class="BertJapaneseTokenizer"), "BertJapanese|cannot load"),
    (
        lambda folder: change_config(folder, tokenizer_class="BertJapaneseTokenizer"),
        "BertJapanese|cannot load",
    ),
    (change_settings(strip_accents="no"), "transformers cannot load the tokenizer of"),
    (lambda folder: (folder / "tokenizer_config.json").write_text("{"), "is not JSON"),
    (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot load|has model"),
    (silence("strip_accents", False), r"has strip_accents false, which .*: write strip_accents"),
    (silence("lowercase", False), r"has lowercase false, which .*: write do_lower_case"),
    (silence("handle_chinese_chars", False), "write tokenize_chinese_chars into"),
    (change_tokenizer(lambda t: t["normalizer"].update(clean_text=False)), "has clean_text false"),
    (change_tokenizer(lambda t: t.update(normalizer={"type": "NFC"})), 'has normalizer "NFC"'),
    (change_tokenizer(lambda t: t.update(normalizer=None)), "has normalizer null"),
    (
        change_tokenizer(lambda t: t.update(pre_tokenizer={"type": "WhitespaceSplit"})),
        'has pre_tokenizer "WhitespaceSplit"; only "BertPreTokenizer" is supported',
    ),
    (change_tokenizer(lambda t: t["model"].update(type="WordLevel")), 'has model.type "WordLevel"'),
    (change_tokenizer(lambda t: t["model"].update(unk_token="Er")), 'has model.unk_token "Er"'),
    (
        change_tokenizer(lambda t: t["model"].update(max_input_chars_per_word=200)),
        "has model.max_input_chars_per_word 200; only 100 is supported",
    ),
    (
        change_tokenizer(lambda t: t["model"].update(continuing_subword_prefix="@@")),
        "has model.continuing_subword_prefix",
    ),
    (change_tokenizer(lambda t: t["post_processor"]["pair"].pop()), "has post_processor"),
    (
        change_tokenizer(lambda t: t["model"]["vocab"].update({"schon": WORDS.index("schön"),
                                                               "schön": WORDS.index("schon")})),
        r"has 'sch.n' as word \d+, and .*tokenizer.json has 'sch.n'",
    ),
    (
        change_tokenizer(lambda t: t["added_tokens"].append(
            {"id": 7000, "content": "far", "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": True, "special": False})),
        "added token 'far' with the id 7000|do not follow",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_ours_cannot_follow_is_refused_by_name(
    folder: Path, change: Callable[[Path], None], said: str
) -> None:
    change(folder)
    with pytest.raises(BadInput, match=said):
        load_folder_vocabulary(folder)


def test_the_configuration_wins_over_tokenizer_json_as_in_transformers(folder: Path) -> None:
    change_tokenizer(lambda t: t["normalizer"].update(lowercase=True))(folder)
    configure(folder, do_lower_case=False)
    assert ids_of(load_folder_vocabulary(folder)) == ids_of_transformers(folder)


# Added words


def with_added_words(folder: Path, *, extra: dict[str, Any] | None = None) -> BertTokenizer:
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"), **(extra or {}))
    tokenizer.add_tokens(["covid19", "Möchte", "[unused5]"])
    tokenizer.add_tokens([AddedToken("DRUG", single_word=True, normalized=False)])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]})
    return tokenizer


ADDED_TEXTS = [
    *TEXTS,
    "covid19 Covid19 xcovid19y möchte Möchte MÖCHTE [unused5] DRUG DRUGS drug",
    "the [E1] aspirin [/E1] and[E1]more",
]


@pytest.mark.parametrize("form", ["transformers 5", "transformers 4"])
def test_added_words_have_their_ids(folder: Path, tmp_path: Path, form: str) -> None:
    tokenizer = with_added_words(folder, extra={"strip_accents": False})
    rows = len(tokenizer)
    assert rows == len(WORDS) + 5
    folder = write_folder(tmp_path / "resized", words=WORDS, rows=rows)
    if form == "transformers 5":
        (folder / "vocab.txt").unlink()
        tokenizer.save_pretrained(folder)
    else:
        added = {word: i for word, i in tokenizer.get_vocab().items() if i >= len(WORDS)}
        (folder / "added_tokens.json").write_text(json.dumps(added))
        special = {"additional_special_tokens": ["[E1]", "[/E1]"]}
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        configure(folder, do_lower_case=True, strip_accents=False)
    options = {"add_special_tokens": False}
    texts = [text for text in ADDED_TEXTS if "[MASK]" not in text]
    want = AutoTokenizer.from_pretrained(folder)(texts, **options)["input_ids"]
    found = open_source(folder)
    vocabulary = found.vocabulary
    assert vocabulary is not None and vocabulary.size == rows and found.config.vocab_rows is None
    assert ids_of(vocabulary, texts) == want
    assert any(i >= len(WORDS) for ids in want for i in ids)
    vocabulary.write(tmp_path / "vocab.txt")
    kept = load_vocabulary(tmp_path / "vocab.txt", **json.loads(json.dumps(vocabulary.record())))
    assert ids_of(kept, texts) == want
    output = write_export(vocabulary, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(output)(texts, **options)["input_ids"] == want
    assert ids_of(load_folder_vocabulary(output), texts) == want


def test_more_words_than_rows(folder: Path) -> None:
    with_added_words(folder).save_pretrained(folder)
    with pytest.raises(BadInput, match=r"rows of word embeddings, and .* words: set model.vocab"):
        open_source(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(BadInput, match="rows of word embeddings"):
        open_source(folder)


def test_padded_rows_are_exported_as_they_are(tmp_path: Path) -> None:
    from transformers import AutoModelForMaskedLM

    folder = write_folder(tmp_path / "padded", words=LOWER, rows=len(LOWER) + 31)
    found = open_source(folder)
    assert found.vocabulary is not None
    output = write_export(found.vocabulary, tmp_path / "out", rows=found.config.vocab_rows)
    model, info = AutoModelForMaskedLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values()), info
    shape = (len(LOWER) + 31, 16)
    assert model.get_input_embeddings().weight.shape == shape
    assert model(torch.tensor([[1, 2]])).logits.shape == (1, 2, shape[0])
    assert open_source(output).config.vocab_rows == shape[0]


# Shards


def test_prepare_reads_text_as_the_folder_does(folder: Path, tmp_path: Path) -> None:
    configure(folder, do_lower_case=True, strip_accents=False)
    (tmp_path / "text.txt").write_text(
        "\n\n".join(
            f"Er möchte {i} mal, er mochte nicht; " + "schön war es. " * 12 for i in range(40)
        ),
        encoding="utf-8",
    )
    plain, own = (
        prepare("text", [tmp_path / "text.txt"], tmp_path / name, vocab, validation_fraction=0.3)
        for name, vocab in (("plain", folder / "vocab.txt"), ("own", folder))
    )
    assert load_manifest(plain.output).vocabulary.settings is None
    settings = load_manifest(own.output).vocabulary.settings
    assert settings is not None and settings.strip_accents is False
    vocabulary = load_vocabulary(folder)
    corpus = open_corpus([own.output], vocabulary=vocabulary, verify=True)
    assert vocabulary.words.index("möchte") in corpus.shards[0].tokens
    with pytest.raises(BadInput, match=r"made with another vocabulary .*strip_accents false"):
        open_corpus([plain.output], vocabulary=vocabulary)
    with pytest.raises(BadInput, match=r"another vocabulary \(.*strip_accents false"):
        open_corpus([own.output], vocabulary=load_vocabulary(folder / "vocab.txt", lower_case=True))
