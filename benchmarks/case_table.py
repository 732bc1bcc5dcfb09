"""Results of case_runner.py as Markdown: a table for each machine and code that measured them."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = "| case | seconds | figures |\n|---|---:|---|"


def render(results: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    """One table for each place, the last result of each case, in `order`."""
    places: dict[str, list[Mapping[str, Any]]] = {}
    for result in results:
        places.setdefault(describe(result), []).append(result)
    return "\n".join(_render_place(place, here, order) for place, here in places.items())


def describe(result: Mapping[str, Any]) -> str:
    """Card, driver, versions and code of a result, as the lines above its table."""
    machine = dict(result.get("machine", {}))
    card = machine.pop("card", "unknown machine")
    driver = machine.pop("driver", None)
    versions = ", ".join(f"{name} {version}" for name, version in machine.items())
    heading = f"## {card}" + (f", driver {driver}" if driver else "")
    commit = result.get("commit") or "unknown"
    return f"{heading}\n\n{versions}. Commit {commit}, code {result.get('code')}.\n"


def _render_place(place: str, here: Sequence[Mapping[str, Any]], order: Sequence[str]) -> str:
    commands = dict.fromkeys(f"    {result.get('command')}" for result in here)
    by_case = {result["case"]: result for result in here}
    known = [name for name in order if name in by_case]
    names = known + [name for name in by_case if name not in known]
    rows = [
        f"| {name} | {by_case[name].get('seconds', '')} | {_cell(by_case[name])} |"
        for name in names
    ]
    return "\n".join([place, *commands, "", HEAD, *rows, ""])


def _cell(result: Mapping[str, Any]) -> str:
    parts = [f"{name} {_show(value)}" for name, value in result["figures"].items() if _fits(value)]
    if result["status"] != "measured":
        parts.insert(0, f"**{result['status']}**: {result.get('error', '')}")
    return "; ".join(parts).replace("|", "\\|").replace("\n", " ")


def _fits(value: Any) -> bool:
    return not isinstance(value, dict | list)  # those are for results.json


def _show(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
