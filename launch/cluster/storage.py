"""Whether all nodes see one storage: a run folder on one node's own disk is lost with the node."""

import os
import secrets
import time
from pathlib import Path
from typing import Any

from distributed.errors import BadInput, first_line
from launch.cluster.nodes import count_places, task_on_node
from launch.recipes import AnyRecipe

# Storage may show a new file on other nodes with a delay.
_DELAY_SECONDS = 10.0
_ANSWER_SECONDS = 120.0
# Where Ray unpacks what `ray job submit --working-dir` uploads, on each node and for a while.
_UPLOAD = Path("runtime_resources", "working_dir_files")


def check_shared_storage(recipe: AnyRecipe, *, use_gpu: bool) -> None:
    """Check that each node that can hold a worker sees what this one sees.

    Args:
        recipe: of the run; a cluster is connected.
        use_gpu: whether workers have a GPU each.

    Raises:
        BadInput: a node lacks the run folder's storage, the data or this project.
    """
    import ray

    launch = recipe.config.launch
    runs_dir = launch.runs_dir
    if str(_UPLOAD) in str(runs_dir):
        raise BadInput(
            f"launch.runs_dir is {runs_dir}, in what was uploaded for this job, which Ray removes: "
            "set it to an absolute path on storage that all nodes share"
        )
    own = ray.get_runtime_context().get_node_id()
    others = [
        node
        for node in ray.nodes()
        if node["Alive"]
        and node["NodeID"] != own
        and count_places(launch, [node["Resources"]], use_gpu=use_gpu)
    ]
    if not others:
        return
    runs_dir.mkdir(parents=True, exist_ok=True)
    probe = runs_dir / f".probe-{secrets.token_hex(8)}"
    probe.touch()
    try:
        answers = _ask(others, probe, recipe.input_files())
        for node, answer in zip(others, answers, strict=True):
            _judge(f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})", answer, probe)
    finally:
        for left in runs_dir.glob(f"{probe.name}*"):
            left.unlink(missing_ok=True)


def _ask(
    nodes: list[dict[str, Any]], probe: Path, inputs: dict[str, list[str]]
) -> list[dict[str, Any]]:
    """What each node sees. It writes a file beside the probe, if it can."""
    import ray

    # A function within this one travels whole: the node need not have this project to answer.
    def look(
        probe: str, reply: str, inputs: dict[str, list[str]], seconds: float
    ) -> dict[str, Any]:
        import importlib.util
        import os
        import time

        deadline = time.monotonic() + seconds
        while not os.path.exists(probe) and time.monotonic() < deadline:
            time.sleep(0.2)
        error = None
        try:
            open(reply, "x").close()
        except OSError as refused:
            error = str(refused)
        return {
            "sees_probe": os.path.exists(probe),
            "error": error,
            "reply": reply,
            "missing": [
                [field, path]
                for field, paths in inputs.items()
                for path in paths
                if not os.path.exists(path)
            ],
            "has_project": importlib.util.find_spec("launch") is not None,
        }

    asked = [
        task_on_node(look, node["NodeID"]).remote(
            str(probe), f"{probe}-{number}", inputs, _DELAY_SECONDS
        )
        for number, node in enumerate(nodes)
    ]
    try:
        answers: list[dict[str, Any]] = ray.get(asked, timeout=_ANSWER_SECONDS)
    except (ray.exceptions.RayError, TimeoutError) as error:
        raise BadInput(
            f"a node of the Ray cluster cannot run a task ({first_line(error)})"
        ) from error
    return answers


def _judge(node: str, answer: dict[str, Any], probe: Path) -> None:
    runs_dir = probe.parent
    if not answer["sees_probe"] or answer["error"] or not _appears(Path(answer["reply"])):
        reason = f" ({answer['error']})" if answer["error"] else ""
        raise BadInput(
            f"launch.runs_dir is {runs_dir}, and the node {node} does not share it{reason}: set it "
            "to a path on storage that all nodes of the cluster share"
        )
    if answer["missing"]:
        field, path = answer["missing"][0]
        raise BadInput(
            f"{field} has {path}, which the node {node} does not see: put it on storage that all "
            "nodes of the cluster share"
        )
    if not answer["has_project"]:
        raise BadInput(
            f"the node {node} has no sparsebert: submit the run with `sparsebert submit --ray`, "
            "which takes it along, or install it on all nodes"
        )


def _appears(file: Path) -> bool:
    deadline = time.monotonic() + _DELAY_SECONDS
    while not os.path.exists(file) and time.monotonic() < deadline:
        time.sleep(0.2)
    return os.path.exists(file)
