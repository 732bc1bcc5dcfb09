"""The tokenizer of a Hugging Face folder, as transformers' AutoTokenizer understands its files.

Which file counts where several say something (tokenizer.json, tokenizer_config.json, vocab.txt,
special_tokens_map.json, added_tokens.json) is for transformers to decide: the folder is loaded with
AutoTokenizer, and what it built is taken over. What our tokenizer cannot do is refused by name, and
so is what tokenizer.json says and AutoTokenizer passes over.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from bert.folders.stored_weights import read_json
from bert.vocabulary import (
    SPECIAL_TOKENS,
    TOKENIZER_FILE,
    VOCAB_FILE,
    AddedWord,
    TokenizerSettings,
    Vocabulary,
    load_vocabulary,
    vocabulary_file,
)
from distributed.errors import BadInput, first_line

_CONFIG_FILE = "tokenizer_config.json"
# What belongs to a tokenizer besides its words.
_SETTINGS_FILES = (_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json")
# tokenizer.json's name of a setting -> tokenizer_config.json's.
_NORMALIZER = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
    "clean_text": "clean_text",
}
_MODEL = {
    "type": "WordPiece",
    "unk_token": "[UNK]",
    "continuing_subword_prefix": "##",
    "max_input_chars_per_word": 100,
}
_NAMES = dict(
    zip(
        ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"),
        SPECIAL_TOKENS,
        strict=True,
    )
)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has words of its own."""
    return vocabulary_file(folder).is_file()


def load_folder_vocabulary(
    folder: Path, *, words: Path | None = None, lower_case: bool | None = None
) -> Vocabulary:
    """The vocabulary whose ids are those of AutoTokenizer.

    Args:
        folder: a Hugging Face folder.
        words: a vocab.txt, if it is not in the folder.
        lower_case: for a folder that leaves it open; None refuses one.

    Raises:
        BadInput: it has no words, or its tokenizer is one that ours cannot follow.
    """
    file = words or vocabulary_file(folder)
    plain = load_vocabulary(file, settings=TokenizerSettings())
    try:
        stated = read_json(folder / _CONFIG_FILE)
    except FileNotFoundError:
        stated = {}
    built = _load_automatically(folder, words)
    state = json.loads(built.backend_tokenizer.to_str())
    _check_state(folder, built, state, stated)
    has_file = words is None and (folder / TOKENIZER_FILE).is_file()
    if has_file:
        _check_tokenizer_file(folder, state, stated)
    _check_words(plain, state["model"]["vocab"], folder / TOKENIZER_FILE if has_file else None)
    normalizer = state["normalizer"]
    if type(built).__name__ != "TokenizersBackend" and "do_lower_case" not in stated:
        if plain.is_cased and lower_case is None:
            raise BadInput(
                f"{folder} does not say do_lower_case, and its vocabulary has capital letters, "
                "which transformers would lower: write do_lower_case (false, if the model reads "
                f"them) into {folder / _CONFIG_FILE}"
            )
        normalizer["lowercase"] = normalizer["lowercase"] if lower_case is None else lower_case
    settings = TokenizerSettings(
        strip_accents=normalizer["strip_accents"],
        tokenize_chinese_chars=normalizer["handle_chinese_chars"],
        added_words=_read_added_words(folder, built, state, plain),
    )
    return load_vocabulary(file, lower_case=normalizer["lowercase"], settings=settings)


def _load_automatically(folder: Path, words: Path | None) -> Any:
    """What AutoTokenizer makes of the folder."""
    from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast

    try:
        named = read_json(folder / "config.json").get("tokenizer_class")
    except FileNotFoundError:
        named = None
    with ExitStack() as held:
        files = folder
        if words is not None:
            files = Path(held.enter_context(tempfile.TemporaryDirectory()))
            shutil.copyfile(words, files / VOCAB_FILE)
            for name in _SETTINGS_FILES:
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, files / name)
        try:
            built = AutoTokenizer.from_pretrained(
                files,
                # config.json need not say model_type, without which AutoTokenizer knows no class.
                config=BertConfig(tokenizer_class=named),
                local_files_only=True,
                trust_remote_code=False,
            )
        except Exception as error:  # transformers raises whatever a malformed file leads to
            raise BadInput(
                f"transformers cannot load the tokenizer of {folder}: {first_line(error)}"
            ) from None
    if not isinstance(built, PreTrainedTokenizerFast):
        raise _unknown(folder, "tokenizer_class", type(built).__name__, "BertTokenizer")
    return built


def _check_state(
    folder: Path, built: Any, state: Mapping[str, Any], stated: Mapping[str, Any]
) -> None:
    """Refuse a tokenizer that ours cannot follow."""
    for name, wanted in _NAMES.items():
        if getattr(built, name) not in (wanted, None):
            raise _unknown(folder, name, getattr(built, name), wanted)
    _check_parts(folder, state)
    # The slow tokenizers of before transformers 5 followed these.
    for name, usual in {"do_basic_tokenize": True, "never_split": None}.items():
        if stated.get(name, usual) not in (usual, []):
            raise _unknown(folder, name, stated[name], usual)
    _check_template(folder, built.backend_tokenizer)


def _check_parts(folder: Path, state: Mapping[str, Any]) -> None:
    """Model, normalizer and pre-tokenizer of a tokenizer, as tokenizer.json spells them."""
    model = state.get("model") or {}
    for name, wanted in _MODEL.items():
        # The first files of the format do not name the model's type.
        if model.get(name, "WordPiece" if name == "type" else None) != wanted:
            raise _unknown(folder, f"model.{name}", model.get(name), wanted)
    for part, wanted in {
        "normalizer": "BertNormalizer",
        "pre_tokenizer": "BertPreTokenizer",
    }.items():
        found = (state.get(part) or {}).get("type")
        if found != wanted:
            raise _unknown(folder, part, found, wanted)
    if not state["normalizer"].get("clean_text", True):
        raise _unknown(folder, "clean_text", False, True)


def _check_template(folder: Path, tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer that does not set texts between [CLS] and [SEP] as BERT does."""
    tokenizer.no_padding()  # some files say how their batches were cut and filled up
    tokenizer.no_truncation()
    pair = tokenizer.encode("", "")
    if pair.tokens != ["[CLS]", "[SEP]", "[SEP]"] or pair.type_ids != [0, 0, 1]:
        raise _unknown(folder, "post_processor", " ".join(pair.tokens), "[CLS] A [SEP] B [SEP]")


def _check_words(plain: Vocabulary, ids: Mapping[str, int], file: Path | None) -> None:
    """Refuse words that transformers, which reads them from `file` if there is one, has not."""
    ours = {word: index for index, word in enumerate(plain.words)}
    for word, index in sorted(ids.items(), key=lambda item: item[1]):
        # transformers cuts white space off a line: a word of nothing else is never found anyway.
        if word and ours.get(word) != index:
            here = repr(plain.words[index]) if index < len(plain.words) else "nothing"
            raise BadInput(
                f"{plain.path} has {here} as word {index}, and {file} has {word!r}: remove the "
                "file that is not the model's"
                if file is not None
                else f"{plain.path} has {here} on line {index + 1}, which transformers reads as "
                f"{word!r}: remove the white space after it"
            )
    missing = [word for word in plain.words if word.strip() and word not in ids]
    if missing:
        raise BadInput(
            f"{plain.path} has {missing[0]!r}, which transformers does not read from "
            f"{file or plain.path}: remove the file that is not the model's"
        )


def _check_tokenizer_file(
    folder: Path, state: Mapping[str, Any], stated: Mapping[str, Any]
) -> None:
    """Refuse what tokenizer.json says and AutoTokenizer passes over."""
    file = folder / TOKENIZER_FILE
    said = read_json(file)
    _check_parts(folder, said)
    for theirs, name in _NORMALIZER.items():
        if said["normalizer"].get(theirs) != state["normalizer"][theirs] and name not in stated:
            raise BadInput(
                f"{file} has {theirs} {json.dumps(said['normalizer'].get(theirs))}, which "
                f"transformers passes over: write {name} into {folder / _CONFIG_FILE}"
            )
    if said.get("post_processor"):
        _check_template(folder, Tokenizer.from_file(str(file)))
    added = {(word["id"], word["content"]) for word in state["added_tokens"]}
    for word in said.get("added_tokens") or []:
        if (word["id"], word["content"]) not in added:
            raise BadInput(
                f"{file} has the added token {word['content']!r} with the id {word['id']}, and "
                "transformers does not take it over: save the tokenizer again"
            )


def _read_added_words(
    folder: Path, built: Any, state: Mapping[str, Any], plain: Vocabulary
) -> tuple[AddedWord, ...]:
    """The tokens that a text is searched for before it is cut into words."""
    found = []
    for token in state["added_tokens"]:
        index, content = token["id"], token["content"]
        is_new = index >= len(plain.words)
        if content in SPECIAL_TOKENS and not is_new:
            continue
        if token["special"] and built.split_special_tokens and content not in SPECIAL_TOKENS:
            raise _unknown(folder, "split_special_tokens", True, False)
        flags = {name: token[name] for name in ("single_word", "lstrip", "rstrip", "normalized")}
        found.append(AddedWord(id=index, content=content, **flags))
    new = sorted(word.id for word in found if word.id >= len(plain.words))
    if new != list(range(len(plain.words), len(plain.words) + len(new))):
        raise BadInput(
            f"the added tokens of {folder} do not follow its {len(plain.words)} words: their ids "
            f"are {', '.join(map(str, new))}"
        )
    return tuple(found)


def _unknown(folder: Path, name: str, found: object, wanted: object) -> BadInput:
    return BadInput(
        f"the tokenizer of {folder} has {name} {json.dumps(found, default=str)}; only "
        f"{json.dumps(wanted)} is supported"
    )
