import gzip
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from bert.corpora.pubmed import Citation, Deletion, read_citations, read_pubmed
from distributed.errors import BadInput

SAMPLES = Path(__file__).parents[4] / "samples"


def citation(pmid: int, abstract: str | None, *, version: int = 1, title: str = "A title.") -> str:
    body = "" if abstract is None else f"<Abstract>{abstract}</Abstract>"
    return (
        f'<PubmedArticle><MedlineCitation><PMID Version="{version}">{pmid}</PMID><Article>'
        f"<ArticleTitle>{title}</ArticleTitle>{body}</Article></MedlineCitation>"
        "<PubmedData><ArticleIdList/></PubmedData></PubmedArticle>"
    )


def text(words: str) -> str:
    return f"<AbstractText>{words}</AbstractText>"


def write(path: Path, *parts: str, root: str = "PubmedArticleSet", head: str = "") -> Path:
    path.write_text(f'<?xml version="1.0"?>\n{head}<{root}>{"".join(parts)}</{root}>\n')
    return path


def delete(*pmids: int) -> str:
    inside = "".join(f'<PMID Version="1">{pmid}</PMID>' for pmid in pmids)
    return f"<DeleteCitation>{inside}</DeleteCitation>"


def read(*paths: Path) -> tuple[list[str], Counter[str]]:
    dropped: Counter[str] = Counter()
    return [words for _, words in read_pubmed(paths, dropped=dropped)], dropped


def test_real_medline_file() -> None:
    texts, dropped = read(SAMPLES / "pubmed.xml.gz")
    assert len(texts) == 526
    assert dropped == {"without_abstract": 78}
    assert texts[0].startswith("Neuroplasticity in the processing of pitch dimensions: a multi")
    assert "\nPURPOSE: An auditory electrophysiological study was" in texts[0]


def test_real_pubmed_record_with_inline_markup() -> None:
    (words,), _ = read(SAMPLES / "pubmed-29768149.xml")
    assert words.startswith("Inhaled Combined Budesonide-Formoterol as Needed in Mild Asthma.\n")
    assert "an inhaled glucocorticoid plus a fast-acting \u03b2 2-agonist may be" in words
    assert "\nCONCLUSIONS: In patients with mild asthma, as-needed" in words and "  " not in words


def test_labels_and_markup_are_flattened(tmp_path: Path) -> None:
    abstract = (
        '<AbstractText Label="AIM">H<sub>2</sub>O &lt; <i>E. <b>coli</b></i> &#946;.</AbstractText>'
        '<AbstractText Label="UNLABELLED">Plain.</AbstractText><AbstractText Label="EMPTY"/>'
        "<CopyrightInformation>Copyright.</CopyrightInformation>"
    )
    path = write(tmp_path / "a.xml", citation(1, abstract, title="<i>In vivo</i> test."))
    assert read(path)[0] == ["In vivo test.\nAIM: H2O < E. coli \u03b2.\nPlain."]


def test_later_files_replace_and_delete(tmp_path: Path) -> None:
    baseline = write(
        tmp_path / "1.xml",
        citation(1, text("old one")),
        citation(2, text("old two")),
        citation(3, text("three")),
        citation(4, text("four, later without abstract")),
    )
    update = write(
        tmp_path / "2.xml", citation(1, text("new one")), citation(4, None), delete(2, 9)
    )
    second = write(tmp_path / "3.xml", citation(2, text("two again")))
    texts, dropped = read(baseline, update, second)
    assert sorted(texts) == [f"A title.\n{w}" for w in ("new one", "three", "two again")]
    assert dropped == {"replaced_by_later_version": 3, "without_abstract": 1}


def test_within_a_file_the_highest_version_then_the_last_wins(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.xml",
        citation(1, text("version two"), version=2),
        citation(1, text("version one")),
        citation(2, text("first")),
        citation(2, text("last")),
        citation(3, text("deleted")),
        delete(3),
    )
    texts, dropped = read(path)
    assert sorted(texts) == ["A title.\nlast", "A title.\nversion two"]
    assert dropped == {"replaced_by_later_version": 2, "deleted": 1}


def test_both_roots_and_gzip(tmp_path: Path) -> None:
    inner = citation(5, text("words"))
    inner = inner[inner.index("<MedlineCitation>") : inner.index("<PubmedData>")]
    path = write(tmp_path / "old.xml", inner, delete(6), root="MedlineCitationSet")
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    expected = [Citation(5, 1, "A title.\nwords"), Deletion(6)]
    assert list(read_citations(path)) == list(read_citations(packed)) == expected


def test_not_well_formed_names_file_line_and_column(tmp_path: Path) -> None:
    path = write(tmp_path / "bad.xml", citation(1, "\n<AbstractText>a </b></AbstractText>"))
    with pytest.raises(BadInput, match=r"bad\.xml is not well-formed XML at line 3, column 19"):
        read(path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    whole = (SAMPLES / "pubmed.xml.gz").read_bytes()
    (tmp_path / "cut.xml.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut.xml").write_bytes(gzip.decompress(whole)[:100_000])
    with pytest.raises(BadInput, match=r"cut\.xml\.gz is damaged or incomplete .Compressed file"):
        read(tmp_path / "cut.xml.gz")
    with pytest.raises(BadInput, match=r"cut\.xml is not well-formed XML at line \d+.*incomplete"):
        read(tmp_path / "cut.xml")


WHOLE = (
    f'<?xml version="1.0"?>\n<PubmedArticleSet>\n{citation(1, text("words"))}\n</PubmedArticleSet>'
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{WHOLE}\n{WHOLE}", r"at line 5, column 1 \(another XML document begins.*separate files"),
        (f"{WHOLE}{WHOLE}", r"at line 4, column 20 \(another XML document begins"),
        (f"{WHOLE}\nThe end.", r"at line 5, column 1 \(something follows the end"),
        (f"\n{WHOLE}", r"at line 2, column 1 \(something stands before the XML declaration"),
        (WHOLE[:-30], r"at line 3, .*\(it ends before its last element does\): it is incomplete"),
        (
            WHOLE.replace("words", "a&nbsp;b"),
            r"at line 3, .*undefined entity.*the character itself",
        ),
        (WHOLE.replace("words", "a\0b"), r"at line 3, .*\(it holds NUL bytes\): it is damaged"),
        (WHOLE.replace("words", "a & b"), r"at line 3, .*\(not well-formed \(invalid token\)\)"),
        (WHOLE.replace('"1.0"', '"1.0" encoding="x-no"'), "declares an encoding that is not read"),
        (WHOLE.replace('"1.0"', '"1.0" encoding="shift_jis"'), "an encoding that is not read"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_the_reason_is_what_is_in_the_file(
    tmp_path: Path, content: str, said: str, packed: bool
) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    with pytest.raises(BadInput, match=said) as caught:
        read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_joined_gzip_files_are_joined_xml(tmp_path: Path) -> None:
    path = tmp_path / "a.xml.gz"
    path.write_bytes(gzip.compress(f"{WHOLE}\n".encode()) * 2)
    with pytest.raises(BadInput, match="another XML document begins here"):
        read(path)
    path.write_bytes(gzip.compress(WHOLE.encode()) + b"more")
    with pytest.raises(BadInput, match="has other bytes after its gzip data"):
        read(path)


def test_another_encoding_is_read_if_declared_and_named_by_line_if_not(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    for encoding in ("ISO-8859-1", "windows-1252"):
        declared = WHOLE.replace('"1.0"', f'"1.0" encoding="{encoding}"')
        path.write_bytes(declared.replace("words", "caf\u00e9").encode(encoding))
        assert read(path)[0] == ["A title.\ncaf\u00e9"]
        path.write_bytes(declared.replace("words", "caf\u00e9 & b").encode(encoding))
        with pytest.raises(BadInput, match=r"not well-formed XML at line 3.*invalid token"):
            read(path)
    for declaration in ('"1.0"', '"1.0" encoding="UTF-8"'):
        content = WHOLE.replace('"1.0"', declaration).replace("words", "caf\u00e9")
        path.write_bytes(content.encode("windows-1252"))
        with pytest.raises(BadInput, match=r"a\.xml line 3 is not UTF-8 text .byte 0xE9."):
            read(path)


@pytest.mark.parametrize(
    "declared",
    [
        '<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;&a;">',
        '<!ENTITY a SYSTEM "file:///etc/passwd">',
        '<!ENTITY % a SYSTEM "http://127.0.0.1:9/x.dtd"> %a;',
    ],
)
def test_entities_are_refused(tmp_path: Path, declared: str) -> None:
    head = f"<!DOCTYPE PubmedArticleSet [{declared}]>"
    path = write(tmp_path / "a.xml", citation(1, text("&a;")), head=head)
    with pytest.raises(BadInput, match=r"a\.xml declares XML entities"):
        read(path)


def test_other_xml_and_senseless_pmids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="root 'html'"):
        read(write(tmp_path / "a.xml", root="html"))
    with pytest.raises(BadInput, match="PMID '12345678901234'"):
        read(write(tmp_path / "b.xml", citation(12345678901234, text("words"))))


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    def peak(count: int) -> int:
        articles = (citation(n, text("word " * 200)) for n in range(count))
        path = write(tmp_path / f"{count}.xml", *articles)
        tracemalloc.start()
        try:
            for _ in read_citations(path):
                pass
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    assert peak(2000) < 1.5 * peak(200) + 100_000
