"""Markup in the place of plain text: XML, HTML, wikiextractor's <doc>, wikitext, LaTeX."""

import re

from bert.corpora.text_files import CONVERT, Unread

# What begins like a tag. "<3", "<< quoted >>" and "< 5 mg" do not.
TAG = re.compile(r"<[A-Za-z_!?/%|]")
# What may stand before the first element of an XML document.
PROLOG = re.compile(r"\s+|<\?.*?\?>|<!--.*?-->|<!DOCTYPE[^\[>]*(?:\[.*?\]\s*)?>", re.S | re.I)
ELEMENT = re.compile(r"<([A-Za-z_][\w.:-]*)([^>]*)")
# Of pages and of parts of pages.
HTML_TAG = re.compile(
    r"a|b|blockquote|body|br|center|div|em|font|form|h[1-6]|head|header|hr|html|i|img|li|link|main|"
    r"meta|nav|ol|p|pre|script|section|span|strong|style|table|tbody|td|title|tr|u|ul",
    re.I,
)
DECLARATION = re.compile(r"<\?xml|<!doctype", re.I)
DTD = re.compile(r"<!(?:ELEMENT|ENTITY|ATTLIST)")
DOC_LINE = re.compile(r'<doc id="[^"]*" .*title=".*">|</doc>')
END_OF_TEXT_LINE = "<|endoftext|>"
WIKIEXTRACTOR = "extract its text first, for example with wikiextractor --json"
DOC = Unread(
    "in wikiextractor's <doc> form",
    "run wikiextractor with --json and give the JSON lines that it writes",
)
END_OF_TEXT = Unread(
    f"text with marks such as {END_OF_TEXT_LINE} between documents",
    "write JSON lines, one document a line, or a blank line in the place of each mark",
)
WIKITEXT = Unread("wikitext, the markup of MediaWiki", WIKIEXTRACTOR)
WIKI_START = re.compile(r"\{\{\s*\w|\{\||#redirect\s*:?\s*\[\[|\[\[(?:file|image|category):", re.I)
WIKI_LINK = re.compile(r"\[\[[^\s\[\]][^\[\]\n]{0,200}\]\]")
WIKI_OTHER = re.compile(r"\{\{[^{}\s]|'''|^==+[^=\n]+==+\s*$", re.M)
MIN_WIKI_LINKS = 5
LATEX = re.compile(r"^\\(?:documentclass|documentstyle|begin\{document\})", re.M)


def find_markup(text: str) -> Unread | None:
    """What markup `text` is, None if it is none that is known.

    Args:
        text: the start of a file or of a record's text, without white space before it.
    """
    if DOC_LINE.match(text):
        return DOC
    if TAG.match(text):
        root = find_root(text) or ""
        is_known = HTML_TAG.fullmatch(root) or re.match(r"mediawiki|jats:", root)
        return name_tags(text) if is_known or DECLARATION.match(text) else None
    links = len(WIKI_LINK.findall(text))
    if WIKI_START.match(text) or (links >= MIN_WIKI_LINKS and WIKI_OTHER.search(text)):
        return WIKITEXT
    return Unread("LaTeX source", CONVERT) if LATEX.search(text) else None


def find_root(text: str) -> str | None:
    """The name of the first element of an XML document, None if there is none in `text`."""
    element = ELEMENT.match(text, _prolog_end(text))
    return None if element is None else element[1]


def name_tags(text: str) -> Unread:
    """What a text is that begins with TAG."""
    if text.startswith("<|"):
        return END_OF_TEXT
    prolog_end = _prolog_end(text)
    if DTD.match(text, prolog_end):
        return Unread("a DTD", "leave it out", holds_text=False)
    element = ELEMENT.match(text, prolog_end)
    if element is None and DECLARATION.match(text):
        return Unread("XML without an element in its first part", "fetch it again")
    if element is None:
        return Unread("markup (it begins with <)", CONVERT)
    root, attributes = element[1], element[2]
    if root == "doc" and " id=" in attributes:
        return DOC
    if root == "mediawiki":
        return Unread("a MediaWiki dump", WIKIEXTRACTOR)
    if root == "DOC":
        return Unread("SGML with <DOC> elements (TREC)", CONVERT)
    if HTML_TAG.fullmatch(root) or re.match(r"<!doctype html", text, re.I):
        how = f"{CONVERT}, or fetch the data again if this is a server's page about an error"
        return Unread("HTML", how, holds_text=False)
    if root in ("PubmedArticle", "PubmedBookArticle", "MedlineCitation"):
        how = "put its records into one <PubmedArticleSet> element, as in PubMed's own files"
        return Unread(f"PubMed XML without its root (it begins with <{root}>)", how)
    if DECLARATION.match(text) or "xmlns" in attributes:
        return Unread(f"XML with the root <{root}>", CONVERT)
    return Unread(f"markup (it begins with <{root}>)", CONVERT)


def _prolog_end(text: str) -> int:
    end = 0
    while (part := PROLOG.match(text, end)) is not None:
        end = part.end()
    return end
