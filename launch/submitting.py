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
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Submit to the Ray cluster with this dashboard."),
    ] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="With --ray: do not follow the job.")
    ] = False,
) -> None:
    """Pretrain as a job of a cluster.

    Paths of CONFIG mean there what they mean here, as on storage that all nodes share. The same
    command continues a run that was stopped, from its newest checkpoint. With --ray it follows the
    job and leaves with its exit code; Ctrl-C saves and stops the job.

    \b
    Examples:
      sparsebert submit --slurm configs/demo_general.yaml slurm.nodes=2 slurm.time=24:00:00
      sparsebert submit --slurm configs/demo_general.yaml --print
      sparsebert submit --ray http://head:8265 configs/demo_general.yaml
    """  # noqa: D301 (\b keeps the lines below it apart)
    from distributed.errors import BadInput

    if slurm == (ray is not None):
        raise BadInput("submit needs to know where to: give either --slurm or --ray ADDRESS")
    if (print_only and not slurm) or (detach and slurm):
        raise BadInput("--print belongs to --slurm, and --detach to --ray: leave it out")
    from launch.config_loading import load_config

    resolved = load_config(config, overrides or []).resolved()
    if ray is not None:
        from launch.cluster.job import submit_to_ray

        raise typer.Exit(submit_to_ray(resolved, address=ray, detach=detach))

    from launch.slurm.script import submit_to_slurm

    raise typer.Exit(submit_to_slurm(resolved, print_only=print_only))
