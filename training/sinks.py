"""The run's TensorBoard page: one curve over all restarts, the figures that matter first."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

DENSITIES = "sparsity/densities"
# The tab "Custom Scalars": heading -> chart -> the curves in it, by regular expression.
_LAYOUT = {
    "What matters": {
        "training loss": ["^train/mlm_loss$", "^train/loss$"],
        "validation losses": ["^validation/.*/mlm_loss$", "^dev/loss$"],
        "sparsity, target and actual": ["^sparsity/target$", "^sparsity/actual$"],
        "tokens per second": ["^throughput/tokens_per_second$"],
        "gradient norm": ["^train/grad_norm$"],
    },
    "Pruning": {
        "threshold": ["^sparsity/threshold$"],
        "churn": ["^sparsity/churn$"],
        "density of each matrix": ["^density/"],
    },
    "The machine": {
        "learning rate": ["^train/learning_rate$"],
        "utilisation of the peak": ["^throughput/model_flops_utilisation$"],
        "memory, GiB": ["^memory/peak_gib$"],
        "seconds a step": ["^throughput/step_seconds$"],
    },
}
# What the tab "HParams" compares runs by.
_RESULTS = ("train/mlm_loss", "sparsity/actual", "throughput/tokens_per_second")
_CELL_PIXELS, _ROW_LABEL_PIXELS, _COLUMN_LABEL_PIXELS = 48, 64, 16


class Board:
    """Writes one process's records to TensorBoard."""

    def __init__(
        self,
        folder: Path,
        *,
        start_step: int,
        config_text: str,
        digests: Mapping[str, str | None],
        matrix_titles: Mapping[str, str],
    ) -> None:
        """Open the log and write what does not change.

        Args:
            folder: holds one event file a start; TensorBoard reads them as one.
            start_step: finished steps: what an earlier start logged beyond them is discarded.
            config_text: the resolved configuration, YAML.
            digests: what the run was made from, by name; None where there is none.
            matrix_titles: what the heat map calls the matrices of a layer.
        """
        self._titles = matrix_titles
        first_step = start_step + 1
        # Imported where it is used: one of a run's processes writes, and all import this file.
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)
        self._writer.add_text("configuration", f"```yaml\n{config_text}\n```", first_step)
        table = [f"| {name} | {digest or 'none'} |" for name, digest in digests.items()]
        self._writer.add_text("digests", "\n".join(["| of | |", "|---|---|", *table]), first_step)
        self._writer.add_custom_scalars(
            {
                heading: {title: ["Multiline", tags] for title, tags in charts.items()}
                for heading, charts in _LAYOUT.items()
            }
        )
        config = yaml.safe_load(config_text) or {}
        validation = [
            f"validation/{name}/mlm_loss"
            for name in (config.get("evaluation") or {}).get("sets") or {}
        ]
        results = dict.fromkeys([*_RESULTS, *validation], 0.0)
        from torch.utils.tensorboard.summary import hparams

        # Into the run's own file: add_hparams would begin another run, and another curve.
        summaries = hparams(flatten(config), results)[:2]  # type: ignore[no-untyped-call]  # torch has no types here
        assert self._writer.file_writer is not None  # the writer is open
        for summary in summaries:
            self._writer.file_writer.add_summary(summary)

    def write(self, record: Mapping[str, Any], step: int) -> None:
        """Write one record of metrics.jsonl, through to the disk."""
        for name, value in record.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, step)
        densities = record.get(DENSITIES)
        if densities:
            for name, density in densities.items():
                self._writer.add_scalar(f"density/{name}", density, step)
            image = render_densities(densities, self._titles)
            self._writer.add_image("sparsity/density_by_layer", image, step, dataformats="HWC")
            digest = f"{record['sparsity/digest']} at sparsity {record['sparsity/actual']:.4f}"
            self._writer.add_text("mask digest", digest, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the file."""
        self._writer.close()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str | float | bool]:
    """A configuration's fields by dotted name, as TensorBoard takes them: nulls are left out."""
    flat: dict[str, str | float | bool] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        elif value is not None:
            plain = isinstance(value, str | int | float)
            flat[prefix + name] = value if plain else json.dumps(value, default=str)
    return flat


def render_densities(
    densities: Mapping[str, float], titles: Mapping[str, str] | None = None
) -> npt.NDArray[np.uint8]:
    """A heat map, uint8 [height, width, 3], with the kept percentage in each cell.

    One row a layer, one column a matrix of it, called titles[NAME], where the names say so
    (`encoder.layer.3.NAME`), in the order of their first appearance; otherwise one row. White keeps
    all weights of the matrix, dark blue none.
    """
    cells = {_place(name, titles or {}): density for name, density in densities.items()}
    rows = list(dict.fromkeys(row for row, _ in cells))
    columns = list(dict.fromkeys(column for _, column in cells))
    size = (
        _ROW_LABEL_PIXELS + _CELL_PIXELS * len(columns),
        _COLUMN_LABEL_PIXELS + _CELL_PIXELS * len(rows),
    )
    from PIL import Image, ImageDraw

    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for at, row in enumerate(rows):
        draw.text((4, _COLUMN_LABEL_PIXELS + _CELL_PIXELS * at + 18), row, fill="black")
    for at, column in enumerate(columns):
        draw.text((_ROW_LABEL_PIXELS + _CELL_PIXELS * at + 2, 2), column[:8], fill="black")
    for (row, column), density in cells.items():
        left = _ROW_LABEL_PIXELS + _CELL_PIXELS * columns.index(column)
        top = _COLUMN_LABEL_PIXELS + _CELL_PIXELS * rows.index(row)
        box = (left, top, left + _CELL_PIXELS - 1, top + _CELL_PIXELS - 1)
        draw.rectangle(box, fill=_colour(density), outline="lightgrey")
        ink = "black" if density > 0.5 else "white"
        draw.text((left + 8, top + 18), f"{100 * density:.1f}", fill=ink)
    return np.asarray(image, dtype=np.uint8)


def _place(name: str, titles: Mapping[str, str]) -> tuple[str, str]:
    """Row and column of a matrix: its layer, and what is left of its name."""
    number, _, matrix = name.partition("layer.")[2].partition(".")
    if not number.isdigit():
        return "", name
    matrix = matrix.removesuffix(".weight")
    return f"layer {number}", titles.get(matrix, matrix)


def _colour(density: float) -> tuple[int, int, int]:
    dark, light = (8, 29, 88), (255, 255, 255)
    red, green, blue = (round(d + density * (u - d)) for d, u in zip(dark, light, strict=True))
    return red, green, blue
