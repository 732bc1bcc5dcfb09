"""results.json of a fine-tuning run."""

import json
from typing import Any

from training.folder import RunFolder


def read_results(folder: RunFolder) -> dict[str, Any] | None:
    """The scores of a run; None if it has none yet."""
    try:
        results = json.loads(folder.results_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return results if isinstance(results, dict) else None
