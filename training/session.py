"""A run's folder while a launcher works on it: held against others, and begun."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from distributed.errors import BadInput
from training.config import dump_yaml
from training.folder import RunFolder, run_folder_of
from training.identity import check_identity, write_identity
from training.lease import hold
from training.recipe import Plan, Recipe
from training.stopping import forget_signal


@contextmanager
def hold_run(folder: RunFolder, *, say: bool = True) -> Iterator[threading.Event]:
    """Hold the run folder, creating it if need be, and nobody else trains in it meanwhile.

    Yields an event: it was lost to another launcher, after this one was away for too long.

    Raises:
        BadInput: somebody else does, or nothing can be written there.
    """
    with ExitStack() as stack:
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            lost = stack.enter_context(hold(folder.path, say=say))
        except OSError as error:
            raise BadInput(
                f"{folder.path} cannot be written ({error.strerror}): set launch.runs_dir to a "
                "folder that can, or free some space"
            ) from error
        yield lost


def begin_run(recipe: Recipe[Plan], plan: Plan) -> None:
    """Write what a run begins with, or go on with what is there. Its folder is held.

    Raises:
        BadInput: another run has begun there since the recipe's check.
    """
    config, folder = recipe.config, run_folder_of(recipe.config)
    folder.create()
    check_identity(folder, plan.identity)
    if not folder.identity_file.exists():
        write_identity(folder, plan.identity)
    folder.write_config(dump_yaml(config))
    forget_signal(folder.stop_file)
    recipe.begin(plan)
