"""`sparsebert submit`: a run as a job of a SLURM cluster, or of a Ray cluster that is elsewhere."""

from pathlib import Path
from typing import Annotated

import typer


def submit(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="field=value ...", help="Fields to set over the file's."),
    ] = None,
    slurm: Annotated[
        bool, typer.Option("--slurm", help="Write a job script and submit it to SLURM.")
    ] = False,
    print_only: Annotated[
        bool, typer.Option("--print", help="With --slurm: print the job script, submit nothing.")
    ] = False,
) -> None:
    """Pretrain as a job of a cluster.

    Paths of CONFIG mean there what they mean here, as on storage that all nodes share. A job is
    submitted again with the same command, and continues from the newest checkpoint.

    \b
    Examples:
      sparsebert submit --slurm configs/demo_general.yaml slurm.nodes=2 slurm.time=24:00:00
      sparsebert submit --slurm configs/demo_general.yaml --print
    """  # noqa: D301 (\b keeps the lines below it apart)
    from distributed.errors import BadInput

    if not slurm:
        raise BadInput("submit needs to know where to: give --slurm")
    from launch.configuration import load_config, resolve_paths

    resolved = resolve_paths(load_config(config, overrides or []))

    from launch.slurm.script import submit_to_slurm

    raise typer.Exit(submit_to_slurm(resolved, print_only=print_only))
