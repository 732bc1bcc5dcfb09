"""Which fields are text, and the text that was typed for them where YAML made something else of it.

    name=010, name=2024-11-27     on the command line a text field takes the text as typed
    name: 010                     in a file it is an error that shows the form in quotes
    train.total_steps=1_000       other fields take what YAML reads

Paths are text, and so are the items of a list and the keys and values of a dictionary of texts.
"""

import datetime
import json
import types
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel

from training.yaml_values import PlainKey, PlainScalar, Typed

_NULLS = ("", "null", "Null", "NULL", "~")

Kinds = Sequence[Any]  # the types that a field may hold, without the union around them


def settle(
    root: type[BaseModel], data: Any, *, path: Path, overridden: Collection[str]
) -> tuple[Any, dict[str, str]]:
    """What to validate against `root`, and the sentence on each field that must be written anew.

    Args:
        root: the configuration.
        data: as `yaml_values.parse` reads it, with overrides from `parse_override` in it.
        path: of the file.
        overridden: dotted fields that come from the command line.
    """
    settling = _Settling(path, overridden)
    return settling.settle([root], data, "", typed=False), settling.problems


class _Settling:
    def __init__(self, path: Path, overridden: Collection[str]) -> None:
        self.problems: dict[str, str] = {}
        self._overridden = overridden
        self._path = path
        self._inside: list[int] = []  # an alias in the file may name what it stands in

    def settle(self, kinds: Kinds, value: Any, field: str, *, typed: bool) -> Any:
        """`value`, for a field that holds one of `kinds`; `typed` on the command line."""
        typed = typed or field in self._overridden
        if isinstance(value, Typed):
            return self._settle_override(kinds, value, field)
        if isinstance(value, PlainScalar):
            return self._settle_scalar(_of_scalar(kinds), value, field, typed=typed)
        if not isinstance(value, list | dict):
            return value
        if id(value) in self._inside:
            self.problems[field] = f"{field} {self._where(typed)} contains itself"
            return None
        self._inside.append(id(value))
        if isinstance(value, dict):
            settled: Any = {
                str(key): self.settle(
                    self._settle_key(kinds, key, _join(field, key), typed=typed),
                    item,
                    _join(field, key),
                    typed=typed,
                )
                for key, item in value.items()
            }
        else:
            settled = [
                self.settle(_of_item(kinds, i), item, _join(field, i), typed=typed)
                for i, item in enumerate(value)
            ]
        self._inside.pop()
        return settled

    def _settle_override(self, kinds: Kinds, override: Typed, field: str) -> Any:
        """A text field takes all of it: what YAML reads may be less, or nothing at all."""
        value, text = override.value, override.text.strip() or override.text
        looks_like_one = text.startswith(("[", "{"))
        if any(map(_is_collection, kinds)):
            is_text = not (looks_like_one or isinstance(value, list | dict))
        else:
            is_text = str in kinds or not looks_like_one  # no path has a list's brackets
        if not is_text:
            if override.problem is None:
                return self.settle(kinds, value, field, typed=True)
            self.problems[field] = override.problem
            return None
        kinds = _of_scalar(kinds)
        if override.problem is not None and not _takes_text(kinds):
            self.problems[field] = override.problem
        value = value.value if isinstance(value, PlainScalar) else value
        return self._settle_scalar(kinds, PlainScalar(value, text), field, typed=True)

    def _settle_scalar(self, kinds: Kinds, scalar: PlainScalar, field: str, *, typed: bool) -> Any:
        value, text = scalar.value, scalar.text
        if value is None and (not text or (type(None) in kinds and text.strip() in _NULLS)):
            return None
        if not _takes_text(kinds):
            self._check_number(kinds, scalar, field, typed=typed)
            return value
        if type(value) in kinds and (_is_truth_value(scalar) or _reads_as_typed(scalar)):
            return value
        if not typed and not _reads_as_typed(scalar):
            self.problems[field] = (
                f"{field} {self._where(typed)} is {text}, which YAML reads as {_reading(value)}: "
                f"for that text write {_quoted(field, text)}"
            )
        return text

    def _settle_key(self, kinds: Kinds, key: Any, field: str, *, typed: bool) -> Kinds:
        """The kinds of what stands at `key`."""
        models = [kind for kind in kinds if is_model(kind)]
        infos = [model.model_fields[key] for model in models if key in model.model_fields]
        if infos:
            return [kind for info in infos for kind in members(info.annotation)]
        if isinstance(key, PlainKey) and not models and not typed:
            scalar = PlainScalar(key.value, str(key))
            if not _reads_as_typed(scalar):
                self.problems[field] = (
                    f"{field} {self._where(typed)} has the key {key}, which YAML reads as "
                    f"{_reading(key.value)}: for that text write {_quoted('', key)}"
                )
        return [m for k in kinds if _origin(k) is dict for m in members(typing.get_args(k)[1])]

    def _check_number(self, kinds: Kinds, scalar: PlainScalar, field: str, *, typed: bool) -> None:
        """Refuse a yes and an octal number where a number belongs: another one, in silence."""
        if not {int, float}.intersection(kinds):
            return
        said = f"{field} {self._where(typed)} is {scalar.text}, which YAML reads as"
        digits = scalar.text.lstrip("+-").replace("_", "")
        if type(scalar.value) is bool and bool not in kinds:
            self.problems[field] = f"{said} {_reading(scalar.value)}: it must be a number"
        elif type(scalar.value) is int and digits.isdigit() and digits[0] == "0" != digits:
            decimal = -int(digits) if scalar.value < 0 else int(digits)
            self.problems[field] = (
                f"{said} {scalar.value}, in octal: write {scalar.value} or {decimal}"
            )

    def _where(self, typed: bool) -> str:
        return "on the command line" if typed else f"in {self._path}"


def _origin(kind: Any) -> Any:
    return typing.get_origin(kind)  # Any, as mypy takes it for a few types only


def members(annotation: Any) -> Iterator[Any]:
    """The types that a field of this annotation may hold: those of a union, or its only one."""
    origin = _origin(annotation)
    if origin is Annotated:
        yield from members(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(annotation):
            yield from members(part)
    else:
        yield annotation


def _of_scalar(kinds: Kinds) -> Kinds:
    """With what one scalar stands for: a list of one item, or a section's only needed field."""
    kinds = _with_short_forms(kinds)
    return [*kinds, *(kind for k in kinds if _origin(k) is list for kind in _items(k, 0))]


def _of_item(kinds: Kinds, index: int) -> Kinds:
    return [kind for k in _with_short_forms(kinds) for kind in _items(k, index)]


def _items(kind: Any, index: int) -> Iterator[Any]:
    arguments = typing.get_args(kind)
    if _origin(kind) is list:
        yield from members(arguments[0])
    elif _origin(kind) is tuple and index < len(arguments):
        yield from members(arguments[index])


def _with_short_forms(kinds: Kinds) -> Kinds:
    """With the kinds of the field that a section written without field names stands for."""
    short = [k.model_fields[k.short_form] for k in kinds if getattr(k, "short_form", None)]
    return [*kinds, *(kind for info in short for kind in members(info.annotation))]


def is_model(kind: Any) -> bool:
    """Whether a type is a section with fields of its own."""
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _is_collection(kind: Any) -> bool:
    return is_model(kind) or _origin(kind) in (list, dict, tuple)


def _takes_text(kinds: Kinds) -> bool:
    return str in kinds or Path in kinds


def _reads_as_typed(scalar: PlainScalar) -> bool:
    """Whether nothing is lost if the number is written as text again."""
    return type(scalar.value) in (int, float) and str(scalar.value) == scalar.text


def _is_truth_value(scalar: PlainScalar) -> bool:
    """Whether it is true or false: yes, no, on and off are texts where a text may stand."""
    return type(scalar.value) is bool and scalar.text.lower() in ("true", "false")


def _join(field: str, part: Any) -> str:
    return f"{field}.{part}" if field else str(part)


def _quoted(field: str, text: str) -> str:
    key = field.rpartition(".")[2]
    quoted = json.dumps(text, ensure_ascii=False)
    return f"{key}: {quoted}" if key and not key.isdigit() else quoted


def _reading(value: Any) -> str:
    """What YAML made of a text, in words."""
    if isinstance(value, str):
        return "a date that does not exist"
    if isinstance(value, datetime.date):
        return "a date"
    return json.dumps(value, default=str)
