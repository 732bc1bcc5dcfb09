"""Which first weights a run that goes on began with."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from distributed.errors import BadInput
from launch.run_folder import RunFolder, resolve_source
from launch.run_setup import begun_with, fingerprint

OLD = "a" * 64


@pytest.fixture
def begun(tmp_path: Path) -> Callable[[Path | None], RunFolder]:
    """The folder of a run that started from the path given."""

    def begin(init_from: Path | None) -> RunFolder:
        folder = RunFolder(tmp_path / "begun")
        folder.path.mkdir(exist_ok=True)
        source = None if init_from is None else str(init_from)
        folder.write_config(yaml.safe_dump({"model": {"init_from": source}}))
        return folder

    return begin


def test_the_same_source_is_history_whatever_became_of_it(
    begun: Callable[[Path | None], RunFolder],
) -> None:
    assert begun_with(begun(Path("/gone")), Path("/gone"), OLD) == OLD
    assert begun_with(begun(None), None, None) is None
    assert begun_with(begun(Path("/gone")), None, OLD) is None, "it began with weights"


def test_another_source_counts_by_its_weights(
    begun: Callable[[Path | None], RunFolder],
    make_run: Callable[..., RunFolder],
    tmp_path: Path,
) -> None:
    source = make_run(7).path
    old = fingerprint(resolve_source(source))
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    folder = begun(source)
    assert begun_with(folder, copy, old) == old
    shutil.rmtree(copy)
    make_run(8)
    shutil.copytree(source, copy)
    assert begun_with(folder, copy, old) != old
    assert begun_with(folder, None, old) is None
    with pytest.raises(BadInput, match="does not exist"):
        begun_with(folder, tmp_path / "nowhere", old)


def test_without_a_record_the_weights_are_looked_at(
    begun: Callable[[Path | None], RunFolder], make_run: Callable[..., RunFolder]
) -> None:
    source, folder = make_run(7).path, begun(None)
    folder.config_file.write_text("model: [")
    assert begun_with(folder, source, OLD) == fingerprint(resolve_source(source))
    assert begun_with(folder, None, None) is None
