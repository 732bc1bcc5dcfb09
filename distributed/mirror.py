"""Copies of a run's checkpoints elsewhere, in object storage above all, made beside training.

    FOLDER/checkpoints/step-00000050/{rank-*.safetensors, manifest.json}   the run's, on shared disk
    URI/checkpoints/step-00000050/{rank-*.safetensors, manifest.json}      its copy

Object storage has no rename, so a copy's manifest is uploaded last and removed first: a checkpoint
that has one is whole. Reading a copy back verifies every file, like any checkpoint.

The storages are pyarrow's: s3://BUCKET/PATH, gs://, abfs://, hdfs://, and file:/// for a second
disk. Credentials come from where those tools look for them, or stand in the URI.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from pyarrow import ArrowException, fs

from distributed.checkpoint import Checkpoint, list_steps, step_folder
from distributed.checkpoint_manifest import MANIFEST, STEP_NAME, BadCheckpoint, read_manifest
from distributed.errors import BadInput, first_line
from distributed.files import remove_folder, sync_folder

CHECKPOINTS = "checkpoints"
_PIECE = 1 << 22


class Mirror:
    """The copy of one run's folder at a URI."""

    def __init__(self, uri: str, name: str) -> None:
        """Open URI/NAME; nothing is looked at yet.

        Raises:
            BadInput: the URI is of no storage that pyarrow knows.
        """
        scheme, _, place = uri.partition("?")[0].rpartition("://")
        # As it may be shown: keys and options stay out.
        self.uri = f"{scheme}://{place.rpartition('@')[2].rstrip('/')}/{name}"
        try:
            self._storage, path = fs.FileSystem.from_uri(uri)
            if not path.strip("/"):
                raise ValueError("it names no folder")
        except (ArrowException, OSError, ValueError) as error:
            raise BadInput(
                f"checkpoint.mirror cannot be used ({first_line(error)}): set it to a URI such as "
                "s3://BUCKET/PATH or file:///PATH, or to null"
            ) from None
        self._path = f"{path.rstrip('/')}/{name}"
        self._manifests: dict[int, bytes] | None = None  # of the copies; None: not looked yet

    def steps(self) -> list[int]:
        """Steps that have a whole copy, ascending.

        Raises:
            OSError: the storage does not answer.
        """
        selector = fs.FileSelector(
            f"{self._path}/{CHECKPOINTS}", recursive=True, allow_not_found=True
        )
        manifests = [
            Path(info.path).parent.name
            for info in self._storage.get_file_info(selector)
            if info.base_name == MANIFEST
        ]
        return sorted(int(m[1]) for name in manifests if (m := STEP_NAME.fullmatch(name)))

    def upload(self, run: Path, files: Iterable[str]) -> list[int]:
        """Make the copy hold the checkpoints that `run` holds, and `files` of it; the steps copied.

        What the run has removed is removed here after that, so that there is always a whole copy.

        Raises:
            OSError: a copy could not be made; those before are untouched.
        """
        there = self._manifests
        if there is None:
            there = {step: self._read(f"{self._folder(step)}/{MANIFEST}") for step in self.steps()}
            self._manifests = there
        here = {}
        for step in list_steps(run / CHECKPOINTS):
            # Retention may take one away at any time: then it is no longer wanted.
            with contextlib.suppress(FileNotFoundError):
                here[step] = (step_folder(run / CHECKPOINTS, step) / MANIFEST).read_bytes()
        # A return to an earlier checkpoint writes other ones of the same steps.
        missing = [step for step, manifest in here.items() if there.get(step) != manifest]
        if missing:
            for name in files:  # first: they say as much as the checkpoints that follow, or more
                with contextlib.suppress(FileNotFoundError):
                    self._put(run / name, f"{self._path}/{name}")
        copied = []
        for step in missing:
            with contextlib.suppress(FileNotFoundError):
                self._upload_checkpoint(step_folder(run / CHECKPOINTS, step), step)
                there[step] = here[step]
                copied.append(step)
        if here.keys() & there.keys():
            for step in sorted(there.keys() - here.keys()):
                self._remove(step)
                del there[step]
        return copied

    def download(self, run: Path, files: Iterable[str]) -> tuple[int | None, list[str]]:
        """Fetch the newest good copy, with `files`, into `run`, which has no checkpoint.

        Returns its step, None if there is none, and why newer ones were passed over.

        Raises:
            OSError: the storage does not answer, or the disk takes no more.
        """
        refused: list[str] = []
        for step in reversed(self.steps()):
            folder = run / CHECKPOINTS
            final = step_folder(folder, step)
            partial = final.with_name(f".{final.name}.download")
            remove_folder(partial)
            partial.mkdir(parents=True)
            remote = self._folder(step)
            try:
                self._get(f"{remote}/{MANIFEST}", partial / MANIFEST)
                for name in read_manifest(partial).files:
                    self._get(f"{remote}/{name}", partial / name)
                Checkpoint(partial)
            except (BadCheckpoint, FileNotFoundError) as error:
                refused.append(str(error).replace(str(partial), f"{self.uri}/{final.name}"))
                remove_folder(partial)
                continue
            for name in files:
                with contextlib.suppress(FileNotFoundError):
                    self._get(f"{self._path}/{name}", run / name)
            partial.rename(final)  # last: a run that has a checkpoint is not fetched again
            sync_folder(folder)
            return step, refused
        return None, refused

    def _folder(self, step: int) -> str:
        return f"{self._path}/{CHECKPOINTS}/{step_folder(Path(), step).name}"

    def _upload_checkpoint(self, source: Path, step: int) -> None:
        target = self._folder(step)
        if self._storage.get_file_info(f"{target}/{MANIFEST}").type == fs.FileType.File:
            self._storage.delete_file(f"{target}/{MANIFEST}")
        for name in read_manifest(source).files:
            self._put(source / name, f"{target}/{name}")
        self._put(source / MANIFEST, f"{target}/{MANIFEST}")

    def _remove(self, step: int) -> None:
        self._storage.delete_file(f"{self._folder(step)}/{MANIFEST}")
        self._storage.delete_dir(self._folder(step))

    def _read(self, source: str) -> bytes:
        with self._storage.open_input_stream(source) as opened:
            return bytes(opened.read())

    def _put(self, source: Path, target: str) -> None:
        with open(source, "rb") as opened:
            if not isinstance(self._storage, fs.S3FileSystem):
                self._storage.create_dir(target.rpartition("/")[0])
            with self._storage.open_output_stream(target) as out:
                while piece := opened.read(_PIECE):
                    out.write(piece)

    def _get(self, source: str, target: Path) -> None:
        with self._storage.open_input_stream(source) as opened, open(target, "wb") as out:
            while piece := opened.read(_PIECE):
                out.write(piece)
