"""Tab-separated tables: whose quotes enclose cells, and whose are text."""

from tests.unit.bert.tasks.reading import Write, load, texts


def test_a_quoted_text_with_a_tab_in_a_table_without_quotes(write: Write) -> None:
    file = write("b.tsv", 'sentence\tlabel\nan "odd" one\t0\n"two\tparts"\t1\n')
    assert texts(load(str(file))) == [('an "odd" one', None, "0"), ("two\tparts", None, "1")]
