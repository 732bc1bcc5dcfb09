import unicodedata
from collections import Counter
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from bert.corpora.cleaning import CleanDocument, clean_documents, normalise_text
from bert.corpora.readers import Document


def clean(
    texts: Sequence[str], *, fraction: float = 0.5, min_characters: int = 1
) -> tuple[list[CleanDocument], Counter[str]]:
    dropped: Counter[str] = Counter()
    documents = clean_documents(
        [Document(text, "input", "text") for text in texts],
        validation_fraction=fraction,
        min_characters=min_characters,
        dropped=dropped,
    )
    return list(documents), dropped


def test_normalise_text() -> None:
    assert normalise_text(" a\tb\r\n\u00a0c\u2028d\x85e ") == "a b c d e"
    assert normalise_text("cafe\u0301") == "caf\u00e9"
    assert normalise_text("\ufeffa\0b\x07\u200bc\ufffd\ud800") == "abc"


@given(st.text(st.characters(codec=None)))
def test_normalised_text_is_clean_and_stays_as_it_is(text: str) -> None:
    once = normalise_text(text)
    once.encode("utf-8")
    assert normalise_text(once) == once
    assert unicodedata.is_normalized("NFC", once)
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in once)


def test_short_and_repeated_texts_are_dropped_and_counted() -> None:
    documents, dropped = clean(
        ["long enough", "short", "", "long\n enough ", "LONG enough"], min_characters=6
    )
    assert [document.text for document in documents] == ["long enough", "LONG enough"]
    assert dropped == {"too_short": 2, "duplicates": 1}


def test_split_depends_on_the_text_alone() -> None:
    texts = [f"document number {n}" for n in range(4000)]
    split = {document.text: document.is_validation for document in clean(texts, fraction=0.05)[0]}
    backwards = {d.text: d.is_validation for d in clean(texts[::-3], fraction=0.05)[0]}
    assert all(split[text] == backwards[text] for text in backwards)
    assert 150 < sum(split.values()) < 250
    larger = {d.text for d in clean(texts, fraction=0.1)[0] if d.is_validation}
    assert larger > {text for text, is_validation in split.items() if is_validation}
