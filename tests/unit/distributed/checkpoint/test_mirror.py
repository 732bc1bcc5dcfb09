"""Copies of checkpoints in other storage: on a second disk, and on a server that speaks S3."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from distributed.checkpoint.manifest import MANIFEST
from distributed.checkpoint.mirror import Mirror
from distributed.checkpoint.reading import Checkpoint, list_steps
from distributed.config import CheckpointConfig
from distributed.errors import BadInput
from tests.unit.distributed.conftest import write

FILES = ["metrics.jsonl", "not-there.json"]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """HOST:PORT of an S3 server in memory."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/other-disk"
    address = request.getfixturevalue("s3")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    options = f"scheme=http&endpoint_override={address}&region=us-east-1&allow_bucket_creation=true"
    bucket = tmp_path.name.replace("_", "-").lower()
    server, _ = fs.FileSystem.from_uri(f"s3://{bucket}/?{options}")
    server.create_dir(bucket)
    return f"s3://{bucket}/runs?{options}"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with two checkpoints."""
    folder = tmp_path / "run"
    for step in (25, 50):
        write(folder / "checkpoints", step=step, seed=step)
    (folder / "identity.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("50 lines")
    return folder


def open_mirror(uri: str) -> Mirror:
    return Mirror(uri, "name", owner_file="identity.json")


def keep_last_two(steps: list[int]) -> set[int]:
    return set(steps[-2:])


def upload(mirror: Mirror, run: Path) -> list[int]:
    return mirror.upload(run, FILES, keep_last_two)


def storage(uri: str) -> tuple[fs.FileSystem, str]:
    found, path = fs.FileSystem.from_uri(uri)
    return found, f"{path}/name/checkpoints"


def read_files(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


def test_copied_and_fetched(uri: str, run: Path, tmp_path: Path) -> None:
    assert upload(open_mirror(uri), run) == [50, 25]
    fresh = tmp_path / "fresh"
    step, refused = open_mirror(uri).download(fresh, FILES, newer_than=-1)
    assert (step, refused) == (50, [])
    assert list_steps(fresh / "checkpoints") == [50]
    for part in ("checkpoints/step-00000050", "."):
        assert read_files(fresh / part) == read_files(run / part)
    other = Mirror(uri, "other", owner_file="identity.json")
    assert other.download(fresh, FILES, newer_than=-1) == (None, [])


def test_old_copies_go_by_the_rule_and_not_by_what_the_folder_lost(uri: str, run: Path) -> None:
    mirror = open_mirror(uri)
    upload(mirror, run)
    assert upload(mirror, run) == []
    shutil.rmtree(run / "checkpoints" / "step-00000025")
    assert upload(mirror, run) == [] and mirror.steps() == [25, 50]
    write(run / "checkpoints", step=75, seed=75)
    assert upload(open_mirror(uri), run) == [75]  # as after a restart
    assert mirror.steps() == [50, 75]
    assert not (run / "checkpoints" / ".mirror").exists()


def test_a_folder_that_is_behind_takes_no_copy_away(uri: str, run: Path, tmp_path: Path) -> None:
    upload(open_mirror(uri), run)
    for steps in ([], [25]):
        behind = tmp_path / f"behind-{len(steps)}"
        for step in steps:
            write(behind / "checkpoints", step=step, seed=step)
        assert upload(open_mirror(uri), behind) == []
        assert open_mirror(uri).steps() == [25, 50]
    step, _ = open_mirror(uri).download(behind, FILES, newer_than=25)
    assert step == 50 and list_steps(behind / "checkpoints") == [25, 50]
    assert open_mirror(uri).download(behind, FILES, newer_than=50) == (None, [])


def test_another_runs_copies_are_left_alone(uri: str, run: Path, tmp_path: Path) -> None:
    upload(open_mirror(uri), run)
    other = tmp_path / "other"
    write(other / "checkpoints", step=75)
    (other / "identity.json").write_text('{"seed": 2}')
    with pytest.raises(BadInput, match="holds the checkpoints of another run"):
        upload(open_mirror(uri), other)
    assert open_mirror(uri).steps() == [25, 50]


def test_other_weights_of_the_same_step_replace_the_copy(
    uri: str, run: Path, tmp_path: Path
) -> None:
    mirror = open_mirror(uri)
    upload(mirror, run)
    shutil.rmtree(run / "checkpoints" / "step-00000050")
    write(run / "checkpoints", step=50, seed=9)
    assert upload(mirror, run) == [50]
    open_mirror(uri).download(tmp_path / "fresh", FILES, newer_than=-1)
    fetched = tmp_path / "fresh" / "checkpoints" / "step-00000050"
    assert read_files(fetched) == read_files(run / "checkpoints" / "step-00000050")


def test_a_damaged_checkpoint_does_not_replace_its_copy(uri: str, run: Path) -> None:
    upload(open_mirror(uri), run)
    manifest = run / "checkpoints" / "step-00000050" / MANIFEST
    manifest.write_bytes(manifest.read_bytes()[:-9])
    assert upload(open_mirror(uri), run) == []
    assert open_mirror(uri).steps() == [25, 50]
    step, _ = open_mirror(uri).download(run, FILES, newer_than=25)
    assert step == 50
    Checkpoint(run / "checkpoints" / "step-00000050")


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_a_damaged_copy_is_passed_over(uri: str, run: Path, tmp_path: Path, damage: str) -> None:
    upload(open_mirror(uri), run)
    there, path = storage(uri)
    file = f"{path}/step-00000050/rank-00001.safetensors"
    if damage == "missing":
        there.delete_file(file)
    else:
        with there.open_output_stream(file) as out:
            out.write(b"short")
    step, refused = open_mirror(uri).download(tmp_path / "fresh", FILES, newer_than=-1)
    assert step == 25 and len(refused) == 1
    assert "step-00000050" in refused[0] and "rank-00001.safetensors" in refused[0]
    assert list_steps(tmp_path / "fresh" / "checkpoints") == [25]
    Checkpoint(tmp_path / "fresh" / "checkpoints" / "step-00000025")


def test_what_broke_off_is_made_anew_or_removed(uri: str, run: Path) -> None:
    upload(open_mirror(uri), run)
    there, path = storage(uri)
    for step in (25, 50):
        there.delete_file(f"{path}/step-{step:08d}/{MANIFEST}")
    shutil.rmtree(run / "checkpoints" / "step-00000025")
    assert open_mirror(uri).steps() == []
    assert upload(open_mirror(uri), run) == [50]
    folders = there.get_file_info(fs.FileSelector(path))
    assert [info.base_name for info in folders] == ["step-00000050"]


def test_a_broken_upload_leaves_no_whole_copy(
    uri: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line drops while other weights replace a copy: it is neither the old nor the new."""
    mirror = open_mirror(uri)
    upload(mirror, run)
    shutil.rmtree(run / "checkpoints" / "step-00000050")
    write(run / "checkpoints", step=50, seed=9)
    put = mirror._put

    def drop(source: Path, target: str) -> None:
        if source.name == "rank-00001.safetensors":
            raise OSError("the connection is reset")
        put(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(mirror, "_put", drop)
        with pytest.raises(OSError, match="reset"):
            upload(mirror, run)
    assert open_mirror(uri).steps() == [25]
    assert upload(mirror, run) == [50]
    assert open_mirror(uri).steps() == [25, 50]


def test_nothing_is_removed_where_nothing_is(
    uri: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some storages have other errors for a folder that is not there."""
    mirror = open_mirror(uri)
    monkeypatch.setattr(mirror, "_remove", lambda step: pytest.fail(f"step {step} is removed"))
    upload(mirror, run)
    assert mirror.steps()


def test_a_storage_that_does_not_answer(run: Path) -> None:
    mirror = open_mirror("s3://bucket/runs?scheme=http&endpoint_override=127.0.0.1:9&region=x")
    with pytest.raises(OSError):
        mirror.steps()


@pytest.mark.parametrize(
    ("uri", "told"),
    [
        ("runs", "must be a URI"),
        ("nonsense://bucket/path", "must be a URI"),
        ("s3://", "must be a URI"),
        ("s3://key:secret/part@bucket/runs", "no keys"),
        ("s3://key@bucket/runs", "no keys"),
    ],
)
def test_refused_by_the_configuration(uri: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        CheckpointConfig(mirror=uri)


def test_a_broken_download_leaves_what_is_there(
    uri: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line drops in the middle of the metrics: they and the identity stay as they were."""
    open_mirror(uri).upload(run, FILES, keep_last_two)
    here = tmp_path / "here"
    here.mkdir()
    for name in ("identity.json", "metrics.jsonl"):
        (here / name).write_text(f"{{}} of before: {name}")

    class Dropped:
        def __init__(self, stream: Any) -> None:
            self._pieces = [stream.read(2)]

        def __enter__(self) -> "Dropped":
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def read(self, size: int = -1) -> bytes:
            if size < 0 or not self._pieces:
                raise OSError("the connection is reset")
            return bytes(self._pieces.pop())

    mirror = open_mirror(uri)
    storage = mirror._storage

    class Storage:
        def __getattr__(self, name: str) -> Any:
            found = getattr(storage, name)
            if name not in ("open_input_stream", "open_input_file"):
                return found

            def open_input(source: str) -> Any:
                is_beside = source.endswith((".json", ".jsonl")) and "/checkpoints/" not in source
                return Dropped(found(source)) if is_beside else found(source)

            return open_input

    monkeypatch.setattr(mirror, "_opened", (Storage(), mirror._path))
    with pytest.raises(OSError, match="reset"):
        mirror.download(here, FILES, newer_than=0)
    for name in ("identity.json", "metrics.jsonl"):
        assert (here / name).read_text() == f"{{}} of before: {name}"
    assert set(read_files(here)) == {"identity.json", "metrics.jsonl"}
    assert list_steps(here / "checkpoints") == []
