"""Where a run trains: in this process or torchrun's, or on Ray."""

from distributed.imports import without_collector
from distributed.launcher import is_under_torchrun
from launch.recipes import AnyRecipe


def run(recipe: AnyRecipe, *, local: bool = False) -> int:
    """Train a run to its end, or continue it; the process's exit code.

    Under torchrun it is always `local`; torchrun takes the option --local for one of its own.

    Raises:
        BadInput: nothing is left behind of a run that has not begun.
    """
    with without_collector():
        if local or is_under_torchrun():
            from launch.local import run_locally as start
        else:
            from launch.cluster.driver import run_on_ray as start
    return start(recipe)
