"""YAML file < dotted overrides -> a validated configuration, or one sentence on what to change.

    configs/demo.yaml --read_yaml--> nested dict --apply_overrides--> the same --validate--> model

The root model is an argument; by default it is a pretraining run's.
"""

import difflib
import itertools
import json
import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from bert.config import PretrainConfig
from distributed.errors import BadInput
from launch.text_fields import is_model, members, settle
from training.config import AnyModel
from training.yaml_values import Typed, describe_problem, parse, parse_override, without_texts

log = logging.getLogger(__name__)

# Instead of pydantic's messages that name Python classes.
_RULES = {
    "model_type": "it must be a section with fields of its own",
    "dict_type": "it must be a section with fields of its own",
    "path_type": "it must be a path",
}


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

    Warns where an override replaces an earlier one by another value.

    Raises:
        BadInput: one sentence on the first problem, with its field and its file.
    """
    for earlier, later in itertools.combinations(overrides, 2):
        if earlier != later and _is_in(earlier.partition("=")[0], later.partition("=")[0]):
            log.warning("%s is followed by %s, which counts", earlier, later)
    return load(Path(path), overrides, root)


def load(path: Path, overrides: Sequence[str], root: type[AnyModel]) -> AnyModel:
    """As `load_config`, without warnings: a task's overrides may replace those of its study."""
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
    root: type[AnyModel], data: Mapping[str, Any], *, path: Path, overridden: Collection[str] = ()
) -> AnyModel:
    """`data` as a `root`; `overridden` are the fields that do not come from the file `path`."""
    data, misread = settle(root, data, path=path, overridden=overridden)
    problems: dict[str, list[ErrorDetails]] = {}  # each member of a union has its own for a field
    try:
        config = root.model_validate(data)
        if not misread:
            return config
    except ValidationError as error:
        for details in error.errors(include_url=False):
            problems.setdefault(_dotted(details, data), []).append(details)
    # An unknown key first: it is usually the reason for what else is missing. Then what YAML reads
    # as something else than was typed.
    unknown = [f for f, errors in problems.items() if errors[0]["type"] == "extra_forbidden"]
    first = [*unknown, *misread, *problems][0]
    sentence = misread.get(first) or _explain(first, problems[first], root, path, overridden)
    more = len(misread.keys() | problems.keys()) - 1
    if more:
        sentence += f" (and {more} more problem{'s' if more > 1 else ''})"
    raise BadInput(sentence)


def list_fields(root: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Every field and section of a configuration by its dotted name."""
    fields = {}
    for name, info in root.model_fields.items():
        fields[prefix + name] = info
        for section in filter(is_model, members(info.annotation)):
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
    return max((c for c in others if similarity(c) >= 0.6), key=similarity, default=None)


def _missing_file(path: Path) -> str:
    folders = (Path("configs"), path.parent)  # the latter wins where both have the name
    by_stem = {found.stem: found for folder in folders for found in sorted(folder.glob("*.y*ml"))}
    close = difflib.get_close_matches(path.stem, by_stem, n=1, cutoff=0.0)
    hint = f"did you mean {by_stem[close[0]]}?" if close else "give a YAML configuration file"
    return f"{path} does not exist: {hint}"


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
    root: type[BaseModel],
    path: Path,
    overridden: Collection[str],
) -> str:
    error, fields = errors[0], list_fields(root)
    is_typed = any(_is_in(field, typed) for typed in overridden)
    where = "on the command line" if is_typed else f"in {path}"
    if error["type"] == "extra_forbidden":
        return f"{field} {where} is not a known field: {_suggest(field, fields)}"
    if error["type"] == "missing":
        description = fields[field].description if field in fields else None
        return f"{field} is missing {where}: add it" + (f" ({description})" if description else "")
    if error["type"] == "value_error":  # written by us, in a validator: names its fields
        return f"{path}: {error['msg'].removeprefix('Value error, ')}"
    # A union's members of another type than the value tell less than the rest.
    telling = [each for each in errors if not each["type"].endswith("_type")] or errors
    rules = [_RULES.get(e["type"], e["msg"][0].lower() + e["msg"][1:]) for e in telling]
    return f"{field} {where} is {_show(error['input'])}: {' or '.join(dict.fromkeys(rules))}"


def _suggest(field: str, fields: Iterable[str]) -> str:
    nearest = find_nearest(field, fields)
    if nearest is not None:
        return f"did you mean {nearest}?"
    section = field.rpartition(".")[0]
    there = [name for name in fields if name.rpartition(".")[0] == section]
    return f"choose one of {', '.join(there)}"


def _is_in(field: str, section: str) -> bool:
    """Whether `section` is `field` or holds it."""
    return f"{field}.".startswith(f"{section}.")


def _show(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
