"""`sparsebert tensorboard`: TensorBoard over some runs, open to this machine only."""

import getpass
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer


def tensorboard(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run folders, or folders of runs.")
    ],
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="The first free one from 6006 on if left out."),
    ] = None,
) -> None:
    """Show runs in TensorBoard, on this machine's loopback, until Ctrl-C.

    The tab "Custom Scalars" begins with the five curves that matter first; "Images" has the density
    of each layer, "Text" the configuration and the mask digests, "HParams" compares runs.

    \b
    Examples:
      sparsebert tensorboard runs/demo-general runs/demo-pubmed
      sparsebert tensorboard runs
    """  # noqa: D301 (\b keeps the lines below it apart)
    logs = find_logs(runs)
    chosen = choose_port(port)
    with tempfile.TemporaryDirectory(prefix="sparsebert-board-") as made:
        # One folder with a name for each run: TensorBoard shows the names.
        for name, folder in logs.items():
            (Path(made) / name).symlink_to(folder)
        program = [sys.executable, "-m", "tensorboard.main", "--logdir", made]
        process = subprocess.Popen(
            [*program, "--host", "127.0.0.1", "--port", str(chosen)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: process.terminate())
        typer.echo(
            f"{len(logs)} run(s), Ctrl-C ends it: http://127.0.0.1:{chosen}/#custom_scalars\n"
            f"from another machine, first: ssh -N -L {chosen}:127.0.0.1:{chosen} "
            f"{getpass.getuser()}@{socket.gethostname()}"
        )
        _, told = process.communicate()
    if process.returncode > 0:
        typer.echo(told, err=True)
    raise typer.Exit(max(process.returncode, 0))


def find_logs(runs: list[Path]) -> dict[str, Path]:
    """TensorBoard's folder of each run, by a name that is its own.

    Raises:
        BadInput: there is none in one of `runs`.
    """
    from distributed.errors import BadInput

    logs: dict[str, Path] = {}
    for given in runs:
        run = given.resolve()
        found = [folder for folder in (run, *sorted(run.glob("*"))) if _has_log(folder)]
        if not found:
            raise BadInput(
                f"{given} {'has no tensorboard folder' if run.is_dir() else 'does not exist'}: "
                "give a run folder such as runs/demo-general, or a folder of runs"
            )
        for folder in found:
            log = folder / "tensorboard"
            if log in logs.values():
                continue
            name = folder.name
            while name in logs:
                name = f"{name}-of-{folder.parent.name}"
            logs[name] = log
    return logs


def _has_log(folder: Path) -> bool:
    return (folder / "tensorboard").is_dir()


def choose_port(wanted: int | None) -> int:
    """`wanted`, or the first port from 6006 on that is free on loopback.

    Raises:
        BadInput: it is taken.
    """
    from distributed.errors import BadInput

    for port in [wanted] if wanted is not None else range(6006, 6106):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    taken = f"--port is {wanted}, which is" if wanted is not None else "the ports 6006 to 6105 are"
    raise BadInput(f"{taken} in use or not allowed here: choose another with --port")
