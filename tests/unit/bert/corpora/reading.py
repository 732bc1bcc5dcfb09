"""Reading documents without the counts that `prepare` keeps."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator

from bert.corpora.inputs import list_inputs
from bert.corpora.manifest import Source
from bert.corpora.readers import Document, read_inputs


def read_documents(source: Source, paths: Iterable[str | os.PathLike[str]]) -> Iterator[Document]:
    """Every document of `paths`: list_inputs() and read_inputs() in one, without the counts."""
    return read_inputs(source, list_inputs(source, paths).read, dropped=Counter())
