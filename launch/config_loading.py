"""YAML file < dotted overrides -> a validated configuration, or one sentence on what to change.

    configs/demo.yaml --read_yaml--> nested dict --apply_overrides--> the same --validate--> model

Knows no particular configuration: the root model is an argument.
"""

import difflib
import json
import logging
import re
import typing
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bert.config import PretrainConfig
from distributed.errors import BadInput
from launch.text_fields import settle
from training.config import AnyModel
from training.yaml_values import Typed, describe_problem, parse, parse_override, without_texts

log = logging.getLogger(__name__)


Root = TypeVar("Root", bound=BaseModel)

_UNKNOWN_KEY = ("extra_forbidden", "invalid_key")
_RULES = {
    "model_type": "must be a section with fields of its own",
    "dict_type": "must be a section with fields of its own",
    "path_type": "must be a path",
}
# Pydantic's words and ours.
_WORDS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    " or a valid tuple": ", or [fewest, most]",
}


def load(path: Path, overrides: Sequence[str], root: type[Root]) -> Root:
    """Read `path`, put `overrides` over it, validate against `root`."""
    data = read_yaml(path)
    overridden = apply_overrides(data, overrides)
    return validate(root, data, path=path, overridden=overridden)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise BadInput(_missing_file(path)) from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not UTF-8 text: give a YAML configuration") from None
    except OSError as error:
        raise BadInput(
            f"{path} cannot be read ({error.strerror}): give a YAML configuration file"
        ) from None
    try:
        data = parse(text)
    except (yaml.YAMLError, ValueError) as error:
        raise BadInput(describe_problem(error, source=str(path))) from None
    if not isinstance(data, dict):
        raise BadInput(f"{path} holds no fields: it must be a YAML mapping such as `name: demo`")
    return data


def find_repeated(overrides: Sequence[str]) -> list[str]:
    """Overrides that a later one replaces by another value: the last one counts."""
    repeated = []
    for i, override in enumerate(overrides):
        field = override.partition("=")[0]
        for later in overrides[i + 1 :]:
            by = later.partition("=")[0]
            if later != override and (by == field or field.startswith(f"{by}.")):
                repeated.append(f"{override} is followed by {later}, which counts")
    return repeated


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> set[str]:
    """Set `a.b=value` for each override, in `data`; the dotted fields that were set."""
    overridden = set()
    for override in overrides:
        field, equals, text = override.partition("=")
        if not equals or not all(field.split(".")):
            raise BadInput(
                f"{override!r} is not of the form field=value, for example train.total_steps=500"
            )
        *sections, key = field.split(".")
        inner = data
        for depth, section in enumerate(sections, start=1):
            if without_texts(inner.get(section)) is None:
                inner[section] = {}  # a section that was left out or null
            elif isinstance(inner[section], Typed):  # an earlier override set all of it
                inner[section] = inner[section].value
            inner = inner[section]
            if not isinstance(inner, dict):
                owner = ".".join(sections[:depth])
                raise BadInput(
                    f"{field} cannot be set on the command line because {owner} is "
                    f"{_show(without_texts(inner))}, not a section: set {owner} as a whole"
                )
        inner[key] = parse_override(text, source=f"{field} on the command line")
        overridden.add(field)
    return overridden


def validate(
    root: type[Root], data: Mapping[str, Any], *, path: Path, overridden: Collection[str] = ()
) -> Root:
    """`data` as a `root`; `overridden` are the fields that do not come from the file `path`."""
    data, misread = settle(root, data, path=path, overridden=overridden)
    problems: dict[str, list[ErrorDetails]] = {}
    try:
        config = root.model_validate(data)
        if not misread:
            return config
    except ValidationError as error:
        problems = _group(error.errors(include_url=False), data)
    # An unknown key first: it is usually the reason for what else is missing. Then what YAML reads
    # as something else than was typed.
    unknown = [field for field, errors in problems.items() if errors[0]["type"] in _UNKNOWN_KEY]
    first = [*unknown, *misread, *problems][0]
    if first in misread:
        sentence = misread[first]
    else:
        sentence = _explain(
            first, problems[first], fields=list_fields(root), path=path, overridden=overridden
        )
    more = len(misread.keys() | problems.keys()) - 1
    if more:
        sentence += f" (and {more} more problem{'s' if more > 1 else ''})"
    raise BadInput(sentence)


def list_fields(root: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every field and section of a configuration by its dotted name."""
    fields = {}
    for name, info in root.model_fields.items():
        fields[prefix + name] = info
        for section in _models_in(info.annotation):
            fields |= list_fields(section, f"{prefix}{name}.")
    return fields


def find_nearest(field: str, candidates: Iterable[str]) -> str | None:
    """The candidate that `field` was probably meant to be; None if none resembles it."""

    def similarity(candidate: str) -> float:
        whole = difflib.SequenceMatcher(a=field, b=candidate).ratio()
        # The right field in the wrong section, or in none.
        last = difflib.SequenceMatcher(a=field.split(".")[-1], b=candidate.split(".")[-1]).ratio()
        return max(whole, last - 0.05)

    # Its own section is no better answer than what is in it.
    others = [c for c in candidates if not field.startswith(f"{c}.")]
    best = max(others, key=similarity, default=None)
    return best if best is not None and similarity(best) >= 0.6 else None


def _missing_file(path: Path) -> str:
    folders = (Path("configs"), path.parent)  # the latter wins where both have the name
    by_stem = {found.stem: found for folder in folders for found in sorted(folder.glob("*.y*ml"))}
    close = difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=0.0)
    hint = f"did you mean {by_stem[close[0]]}?" if close else "give a YAML configuration file"
    return f"{path} does not exist: {hint}"


def _group(errors: Sequence[ErrorDetails], data: Any) -> dict[str, list[ErrorDetails]]:
    """Errors by dotted field; the members of a union complain about the same field."""
    grouped: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        grouped.setdefault(_dotted(error, data), []).append(error)
    return grouped


def _dotted(error: ErrorDetails, data: Any) -> str:
    """The field's name as the user writes it: pydantic's location less the types of unions."""
    parts: list[str] = []
    for part in error["loc"]:
        in_list = isinstance(data, list) and isinstance(part, int) and part < len(data)
        if in_list or (isinstance(data, Mapping) and part in data):
            data = data[part]
        elif error["type"] != "missing":
            break
        parts.append(str(part))
    return ".".join(parts)


def _explain(
    field: str,
    errors: Sequence[ErrorDetails],
    *,
    fields: Mapping[str, FieldInfo],
    path: Path,
    overridden: Collection[str],
) -> str:
    error = errors[0]
    from_command_line = any(field == o or field.startswith(f"{o}.") for o in overridden)
    where = "on the command line" if from_command_line else f"in {path}"
    if error["type"] in _UNKNOWN_KEY:
        return f"{field} {where} is not a known field: {_suggest(field, fields)}"
    if error["type"] == "missing":
        description = fields[field].description if field in fields else None
        missing = f"{field} is missing {where}: add it"
        return missing + (f" ({description})" if description else "")
    if error["type"] == "value_error":  # written by us, in a validator: names its fields
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    rules = [_rule(each) for each in errors]
    allowed = " or ".join([rules[0], *(r.removeprefix("must be ") for r in rules[1:])])
    return f"{field} {where} is {_show(error['input'])}: it {allowed}"


def _suggest(field: str, fields: Mapping[str, FieldInfo]) -> str:
    nearest = find_nearest(field, fields)
    if nearest is not None:
        return f"did you mean {nearest}?"
    section = field.rpartition(".")[0]
    there = [name for name in fields if name.rpartition(".")[0] == section]
    return f"choose one of {', '.join(there)}"


def _rule(error: ErrorDetails) -> str:
    """What is allowed, from pydantic's words: `must be at least 1`."""
    if error["type"] in _RULES:
        return _RULES[error["type"]]
    message = re.split(r", (?:unable|got|not)\b| after validation", error["msg"])[0]
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    found = re.match(r"(?:\w+ )+?should (.*)", message)
    return f"must {found[1]}" if found else f"is refused ({message})"


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """Models that `annotation` is or, as in `Section | None`, may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (dict, list, tuple):
        return []
    return [model for part in typing.get_args(annotation) for model in _models_in(part)]


@overload
def load_config(path: Path | str, overrides: Sequence[str] = ()) -> PretrainConfig: ...


@overload
def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, root: type[AnyModel]
) -> AnyModel: ...


def load_config(
    path: Path | str, overrides: Sequence[str] = (), *, root: type[BaseModel] = PretrainConfig
) -> BaseModel:
    """The configuration in the YAML file `path` with `overrides` (`a.b=value`) over it.

    Raises:
        BadInput: one sentence on the first problem, with its field and its file.
    """
    for repeated in find_repeated(overrides):
        log.warning("%s", repeated)
    return load(Path(path), overrides, root)
