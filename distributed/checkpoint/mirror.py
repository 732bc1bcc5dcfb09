"""Copies of a run's checkpoints elsewhere, in object storage above all, made beside training.

    FOLDER/checkpoints/step-00000050/{rank-*.safetensors, manifest.json}   the run's, on shared disk
    URI/checkpoints/step-00000050/{rank-*.safetensors, manifest.json}      its copy

Object storage has no rename, so a copy's manifest is uploaded last and removed first: a checkpoint
that has one is whole. Reading a copy back verifies every file, like any checkpoint.

The storages are pyarrow's: s3://BUCKET/PATH, gs://, abfs://, hdfs://, and file:/// for a second
disk. Credentials come from where those tools look for them.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from distributed.checkpoint.manifest import MANIFEST, STEP_NAME, BadCheckpoint, read_manifest
from distributed.checkpoint.reading import Checkpoint, list_steps, step_folder
from distributed.checkpoint.retention import set_aside
from distributed.errors import BadInput, first_line
from distributed.files import remove_folder, sync_folder, write_atomically

CHECKPOINTS = "checkpoints"
_PIECE = 1 << 22  # bytes that one request reads


class Mirror:
    """The copy of one run's folder at a URI. Every method may raise OSError: no answer."""

    def __init__(self, uri: str, name: str, *, owner_file: str) -> None:
        """The copy at URI/NAME; nothing is looked at yet.

        Args:
            uri: see `CheckpointConfig.mirror`.
            name: of the run.
            owner_file: the file in a run's folder that no other run has alike.
        """
        self.uri = f"{uri.partition('?')[0].rstrip('/')}/{name}"
        self._given, self._name, self._owner_file = uri, name, owner_file
        self._manifests: dict[int, bytes] | None = None  # of the copies; None: not looked yet

    def steps(self) -> list[int]:
        """Steps that have a whole copy, ascending."""
        return sorted(step for step, is_whole in self._list().items() if is_whole)

    def check_owner(self, run: Path) -> None:
        """See that the copies are of the run in that folder, as far as both are there.

        Raises:
            BadInput: they are another run's.
        """
        with contextlib.suppress(FileNotFoundError):
            here = (run / self._owner_file).read_bytes()
            if self._read(f"{self._path}/{self._owner_file}") != here and self.steps():
                raise BadInput(
                    f"checkpoint.mirror ({self.uri}) holds the checkpoints of another run: choose "
                    "another name or another checkpoint.mirror"
                )

    def upload(
        self, run: Path, files: Iterable[str], keep: Callable[[list[int]], set[int]]
    ) -> list[int]:
        """Copy the checkpoints of `run` that have no copy, newest first; their steps.

        Args:
            run: the run's folder.
            files: of the folder, what goes with a checkpoint.
            keep: of the steps of copies, ascending, those to keep; the others are removed at the
                end. Copies that are newer than the run's newest checkpoint stay.

        Raises:
            BadInput: the copies are another run's.
        """
        if self._manifests is None:
            self.check_owner(run)  # once: what is looked at every few seconds costs requests
            self._manifests = self._look()
        there, copied, tried = self._manifests, [], set[int]()
        while (missing := self._newest_missing(run, but=tried)) is not None:
            step, manifest = missing
            # Retention may take it away at any time: then it is no longer wanted.
            with (
                contextlib.suppress(FileNotFoundError, BadCheckpoint),
                _pinned(run / CHECKPOINTS, step) as source,
            ):
                # First: they say as much as the checkpoint that follows, or more.
                for name in (self._owner_file, *files):
                    if (run / name).exists():
                        self._put(run / name, f"{self._path}/{name}")
                names = (*read_manifest(source).files, MANIFEST)
                if there.pop(step, None) is not None:
                    self._remove(step)
                for name in names:
                    self._put(source / name, f"{self._folder(step)}/{name}")
                there[step] = manifest
                copied.append(step)
            tried.add(step)
        newest = max(list_steps(run / CHECKPOINTS), default=-1)
        old = [step for step in sorted(there) if step <= newest]
        for step in sorted(set(old) - keep(old)):
            self._remove(step)
            del there[step]
        return copied

    def download(
        self, run: Path, files: Iterable[str], *, newer_than: int
    ) -> tuple[int | None, list[str]]:
        """Fetch the newest good copy into `run`, with `files`, if it is of a later step.

        Returns its step, None if there is none, and why newer ones were passed over. Checkpoints of
        `run` that are not older are set aside.
        """
        refused: list[str] = []
        for step in reversed([step for step in self.steps() if step > newer_than]):
            folder = run / CHECKPOINTS
            final = step_folder(folder, step)
            partial = final.with_name(f".{final.name}.download")
            remove_folder(partial)
            partial.mkdir(parents=True)
            try:
                (partial / MANIFEST).write_bytes(self._read(f"{self._folder(step)}/{MANIFEST}"))
                for name in read_manifest(partial).files:
                    # Not by copy_files: a Ctrl-C would have to wait until it has the whole file.
                    with (
                        self._storage.open_input_stream(f"{self._folder(step)}/{name}") as opened,
                        open(partial / name, "wb") as out,
                    ):
                        shutil.copyfileobj(opened, out, _PIECE)
                Checkpoint(partial)
            except (BadCheckpoint, FileNotFoundError) as error:
                refused.append(str(error).replace(str(partial), f"{self.uri}/{final.name}"))
                remove_folder(partial)
                continue
            for name in (self._owner_file, *files):
                with contextlib.suppress(FileNotFoundError):
                    write_atomically(run / name, self._read(f"{self._path}/{name}"))
            set_aside(folder, newer_than=step - 1)
            partial.rename(final)  # last: what is there is not fetched again
            sync_folder(folder)
            return step, refused
        return None, refused

    def _newest_missing(self, run: Path, *, but: set[int]) -> tuple[int, bytes] | None:
        assert self._manifests is not None
        for step in reversed(list_steps(run / CHECKPOINTS)):
            folder = step_folder(run / CHECKPOINTS, step)
            try:
                manifest = (folder / MANIFEST).read_bytes()
                # A return to an earlier checkpoint writes other ones of the same steps.
                if step not in but and self._manifests.get(step) != manifest:
                    read_manifest(folder)
                    return step, manifest
            except (FileNotFoundError, BadCheckpoint):
                continue  # taken away, or damaged: nothing to copy
        return None

    def _look(self) -> dict[int, bytes]:
        """Manifests of the whole copies; what is left of broken uploads and removals is removed."""
        found = {}
        for step, is_whole in self._list().items():
            if is_whole:
                found[step] = self._read(f"{self._folder(step)}/{MANIFEST}")
            else:
                self._remove(step)
        return found

    def _list(self) -> dict[int, bool]:
        """Whether each copy is whole."""
        from pyarrow import fs

        selector = fs.FileSelector(
            f"{self._path}/{CHECKPOINTS}", recursive=True, allow_not_found=True
        )
        whole: dict[int, bool] = {}
        for info in self._storage.get_file_info(selector):
            match = STEP_NAME.fullmatch(Path(info.path).parent.name)
            if match is not None:
                step = int(match[1])
                whole[step] = whole.get(step, False) or info.base_name == MANIFEST
        return whole

    def _remove(self, step: int) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._storage.delete_file(f"{self._folder(step)}/{MANIFEST}")
        with contextlib.suppress(FileNotFoundError):
            self._storage.delete_dir(self._folder(step))

    def _folder(self, step: int) -> str:
        return f"{self._path}/{CHECKPOINTS}/{step_folder(Path(), step).name}"

    def _read(self, source: str) -> bytes:
        with self._storage.open_input_file(source) as opened:  # a stream asks for 256 kB at a time
            return bytes(opened.read())

    def _put(self, source: Path, target: str) -> None:
        from pyarrow import fs

        has_rename = not isinstance(self._storage, fs.S3FileSystem)  # S3 shows whole objects only
        if has_rename:
            self._storage.create_dir(target.rpartition("/")[0])
        written = f"{target}.part" if has_rename else target
        # A thread of pyarrow's would keep the process from ending until the file is copied.
        fs.copy_files(str(source), written, fs.LocalFileSystem(), self._storage, use_threads=False)
        if has_rename:
            self._storage.move(written, target)

    @property
    def _path(self) -> str:
        return self._opened[1]

    @property
    def _storage(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        from pyarrow import ArrowException, fs

        try:
            storage, path = fs.FileSystem.from_uri(self._given)
        except (ArrowException, ValueError) as error:
            raise OSError(first_line(error)) from error
        return storage, f"{path.rstrip('/')}/{self._name}"


@contextmanager
def _pinned(folder: Path, step: int) -> Iterator[Path]:
    """A folder with the checkpoint's files that no retention removes, where links can be made."""
    source, pin = step_folder(folder, step), folder / ".mirror"
    remove_folder(pin)
    pin.mkdir()
    try:
        try:
            for name in (*read_manifest(source).files, MANIFEST):
                os.link(source / name, pin / name)
        except FileNotFoundError:
            raise
        except OSError:
            yield source
        else:
            yield pin
    finally:
        remove_folder(pin)
