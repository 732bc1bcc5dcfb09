"""YAML whose plain scalars remember what was typed: 010 is the number 8, and the text 010.

    name: 010        PlainScalar(8, "010")       launch/text_fields.py decides which of the two
    name: "010"      "010"
    name=010         Typed("010", ...)           an override: the text of all that follows "="

PyYAML reads YAML 1.1, which makes other values of many texts: on, no, null, 2024-11-27, 1_000.
"""

import re
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import yaml

_STRING, _FLOAT = "tag:yaml.org,2002:str", "tag:yaml.org,2002:float"
_FIRST_OF_NUMBERS = "-+.0123456789"
# As YAML 1.2 does; to YAML 1.1, 5e-4 is text, 24:00:00 is 86400, and = means something else.
_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
_CLOCK = re.compile(r"[-+]?\d+(?::[0-5]?\d)+(?:\.\d*)?$")
_EQUALS = re.compile(r"=$")


@dataclass(frozen=True)
class PlainScalar:
    """What YAML made of a text without quotes that is no text to YAML."""

    value: Any
    text: str


class PlainKey(str):
    """A key that is no text to YAML: as typed, and what YAML makes of it."""

    value: Any


@dataclass(frozen=True)
class Typed:
    """An override's value: the text as typed, and what YAML makes of it or says against it."""

    text: str
    value: Any
    problem: str | None = None


class Loader(yaml.SafeLoader):
    """safe_load that refuses a repeated key, and whose plain scalars keep their text.

    It reads 5e-4 as a number, and 24:00:00 and = as text.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if not isinstance(node, yaml.ScalarNode) or node.style is not None:
            return super().construct_object(node, deep)
        try:
            value = super().construct_object(node, deep)
        except ValueError:  # a date such as 2024-02-31
            value = node.value
        return PlainScalar(value, node.value) if node.tag != _STRING else value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value} is there twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
        return {_as_key(k): v for k, v in super().construct_mapping(node, deep).items()}


class Dumper(yaml.SafeDumper):
    """safe_dump that quotes what `Loader` would not read as the same text."""


for _reader in (Loader, Dumper):
    _reader.add_implicit_resolver(_FLOAT, _EXPONENT, list(_FIRST_OF_NUMBERS))
for _first in "-+0123456789":
    Loader.yaml_implicit_resolvers[_first].insert(0, (_STRING, _CLOCK))
Loader.yaml_implicit_resolvers["="].insert(0, (_STRING, _EQUALS))


def parse(text: str) -> Any:
    """The content of a file.

    Raises:
        yaml.YAMLError: it is not valid YAML.
    """
    return yaml.load(text, Loader=Loader)  # a SafeLoader


def dump(data: Any) -> str:
    """`data` as YAML that `parse` reads back; texts that look like something else are in quotes."""
    return yaml.dump(data, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def parse_override(text: str, *, source: str) -> Any:
    """What follows "=" on the command line: `Typed`, or a string if it was quoted as YAML does."""
    try:
        node = yaml.compose(text, Loader=Loader)
        value = parse(text)
    except (yaml.YAMLError, ValueError) as error:
        return Typed(text, text, describe_problem(error, source=source))
    is_quoted = isinstance(node, yaml.ScalarNode) and node.style in ("'", '"')
    is_tagged = isinstance(value, str) and text.lstrip().startswith("!")
    return value if is_quoted or is_tagged else Typed(text, value)


def describe_problem(error: Exception, *, source: str) -> str:
    """One sentence: where `source` is not valid YAML, and why."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{source} is not valid YAML{where}: {problem}"


def without_texts(value: Any) -> Any:
    """The same as YAML alone would read it."""
    if isinstance(value, PlainScalar | Typed):
        return without_texts(value.value)
    if isinstance(value, dict):
        return {str(key): without_texts(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_texts(item) for item in value]
    return value


def _as_key(key: Hashable) -> Hashable:
    if not isinstance(key, PlainScalar):
        return key
    typed = PlainKey(key.text)
    typed.value = key.value
    return typed
