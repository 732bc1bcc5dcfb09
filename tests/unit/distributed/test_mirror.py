"""Copies of checkpoints in other storage: on a second disk, and on a server that speaks S3."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from distributed.checkpoint import Checkpoint, list_steps
from distributed.checkpoint_manifest import MANIFEST
from distributed.errors import BadInput
from distributed.mirror import Mirror
from tests.unit.distributed.conftest import write

FILES = ["identity.json", "metrics.jsonl", "not-there.json"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """HOST:PORT of an S3 server in memory."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/other-disk"
    address = request.getfixturevalue("s3")
    options = f"scheme=http&endpoint_override={address}&region=us-east-1&allow_bucket_creation=true"
    bucket = tmp_path.name.replace("_", "-").lower()
    server, _ = fs.FileSystem.from_uri(f"s3://key:secret@{bucket}/?{options}")
    server.create_dir(bucket)
    return f"s3://key:secret@{bucket}/runs?{options}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    folder = tmp_path / "run"
    for step in (25, 50):
        write(folder / "checkpoints", step=step, seed=step)
    (folder / "identity.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("50 lines")
    return folder


def read(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir()}


def storage(uri: str) -> tuple[fs.FileSystem, str]:
    found, path = fs.FileSystem.from_uri(uri)
    return found, f"{path}/name/checkpoints"


def test_copied_and_fetched(uri: str, run: Path, tmp_path: Path) -> None:
    assert Mirror(uri, "name").upload(run, FILES) == [25, 50]
    fresh = tmp_path / "fresh"
    step, refused = Mirror(uri, "name").download(fresh, FILES)
    assert (step, refused) == (50, [])
    assert list_steps(fresh / "checkpoints") == [50]
    for part in ("checkpoints/step-00000050", "."):
        files = {name: data for name, data in read_files(run / part).items()}
        assert read_files(fresh / part) == files
    assert Mirror(uri, "other").download(fresh, FILES) == (None, [])


def read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_the_copy_keeps_what_the_run_keeps(uri: str, run: Path) -> None:
    mirror = Mirror(uri, "name")
    mirror.upload(run, FILES)
    assert mirror.upload(run, FILES) == []
    shutil.rmtree(run / "checkpoints" / "step-00000025")
    write(run / "checkpoints", step=75, seed=75)
    assert Mirror(uri, "name").upload(run, FILES) == [75]  # as after a restart
    assert mirror.steps() == [50, 75]


def test_a_run_without_checkpoints_takes_none_away(uri: str, run: Path, tmp_path: Path) -> None:
    Mirror(uri, "name").upload(run, FILES)
    assert Mirror(uri, "name").upload(tmp_path / "empty", FILES) == []
    assert Mirror(uri, "name").steps() == [25, 50]


def test_other_weights_of_the_same_step_replace_the_copy(
    uri: str, run: Path, tmp_path: Path
) -> None:
    mirror = Mirror(uri, "name")
    mirror.upload(run, FILES)
    shutil.rmtree(run / "checkpoints" / "step-00000050")
    write(run / "checkpoints", step=50, seed=9)
    assert mirror.upload(run, FILES) == [50]
    Mirror(uri, "name").download(tmp_path / "fresh", FILES)
    fetched = tmp_path / "fresh" / "checkpoints" / "step-00000050"
    assert read_files(fetched) == read_files(run / "checkpoints" / "step-00000050")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_copy_is_passed_over(uri: str, run: Path, tmp_path: Path, damage: str) -> None:
    Mirror(uri, "name").upload(run, FILES)
    there, path = storage(uri)
    file = f"{path}/step-00000050/rank-00001.safetensors"
    if damage == "missing":
        there.delete_file(file)
    else:
        with there.open_output_stream(file) as out:
            out.write(b"short")
    step, refused = Mirror(uri, "name").download(tmp_path / "fresh", FILES)
    assert step == 25 and len(refused) == 1
    assert "step-00000050" in refused[0] and "rank-00001.safetensors" in refused[0]
    assert list_steps(tmp_path / "fresh" / "checkpoints") == [25]
    Checkpoint(tmp_path / "fresh" / "checkpoints" / "step-00000025")


def test_a_copy_without_its_manifest_is_none(uri: str, run: Path, tmp_path: Path) -> None:
    Mirror(uri, "name").upload(run, FILES)
    there, path = storage(uri)
    there.delete_file(f"{path}/step-00000050/{MANIFEST}")
    assert Mirror(uri, "name").steps() == [25]
    assert Mirror(uri, "name").upload(run, FILES) == [50]  # an upload that broke off is made anew


@pytest.mark.parametrize("uri", ["runs", "nonsense://bucket/path", "s3://"])
def test_no_storage(uri: str) -> None:
    with pytest.raises(BadInput, match="checkpoint.mirror cannot be used"):
        Mirror(uri, "name")


def test_secrets_of_the_uri_are_not_told() -> None:
    mirror = Mirror("s3://key:secret@bucket/runs?region=us-east-1", "name")
    assert mirror.uri == "s3://bucket/runs/name"
