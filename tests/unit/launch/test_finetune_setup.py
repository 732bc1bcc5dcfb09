"""What a fine-tuned model says of its labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from launch.finetune_setup import _labels_of
from launch.run_folder import RunFolder
from tests.unit.launch.test_run_folder import MakeRun


@pytest.mark.parametrize(
    ("config", "labels"),
    [
        ({"id2label": {"1": "pos", "0": "neg", "10": "c", "2": "b"}}, ["neg", "pos", "b", "c"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, None),
        ({}, None),
    ],
)
def test_of_a_hugging_face_folder(
    tmp_path: Path, config: dict[str, Any], labels: list[str] | None
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert _labels_of(tmp_path) == labels


def test_of_a_checkpoint(make_run: MakeRun) -> None:
    folder: RunFolder = make_run(3, labels=["no", "yes"])
    assert _labels_of(folder.checkpoints / "step-00000003") == ["no", "yes"]
    folder = make_run(4)
    assert _labels_of(folder.checkpoints / "step-00000004") is None
