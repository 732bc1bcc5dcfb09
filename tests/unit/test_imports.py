"""The import rule: launch -> bert -> training -> sparsity -> distributed; who imports what.

sparsebert/ stands beside them: only launch uses it, and it uses none of them.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Each package may import itself and those after it.
ORDER = ("launch", "bert", "training", "sparsity", "distributed")
# Where Ray may be imported.
RAY = ("launch/cluster/", "launch/slurm/")
FILES = sorted(file for package in ORDER for file in (ROOT / package).rglob("*.py"))
SERVING_FILES = sorted(
    file
    for part in ("inference", "integrations")
    for file in (ROOT / "sparsebert" / part).glob("*.py")
)


def imports(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every imported module with its line, wherever it stands; relative ones begin with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), node.lineno


def is_lazy(node: ast.AST) -> bool:
    """Whether what stands in `node` is not run when the file is imported."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def find_violations(source: str, path: str) -> list[str]:
    package = path.split("/")[0]
    forbidden = ORDER[: ORDER.index(package)]
    tree = ast.parse(source)
    lazy = {line for node in ast.walk(tree) if is_lazy(node) for _, line in imports(node)}
    violations = []
    for module, line in imports(tree):
        top = module.split(".")[0]
        if top in forbidden:
            violations.append(f"{path}:{line} imports {module}, against the order of packages")
        if top == "sparsebert" and package != "launch":
            violations.append(f"{path}:{line} imports {module} outside launch/")
        if module.startswith("."):
            violations.append(f"{path}:{line} has a relative import")
        if top == "ray" and not path.startswith(RAY):
            violations.append(f"{path}:{line} imports ray outside launch/cluster and launch/slurm")
        if top == "ray" and line not in lazy:
            violations.append(f"{path}:{line} imports ray when it is imported itself")
        if top == "deepspeed" and path != "distributed/zero.py":
            violations.append(f"{path}:{line} imports deepspeed outside distributed/zero.py")
        if top == "dask":
            violations.append(f"{path}:{line} imports dask, which installs another `distributed`")
    return violations


def test_files_are_found() -> None:
    assert {file.relative_to(ROOT).parts[0] for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_one_way(file: Path) -> None:
    assert find_violations(file.read_text(), file.relative_to(ROOT).as_posix()) == []


@pytest.mark.parametrize("file", SERVING_FILES, ids=lambda file: file.name)
def test_serving_imports_nothing_of_ours(file: Path) -> None:
    tops = {module.split(".")[0] for module, _ in imports(ast.parse(file.read_text()))}
    assert not tops & {*ORDER, "deepspeed", "ray", "datasets", "pydantic", "typer", "rich", ""}


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("distributed/a.py", "import sparsity.selection.masks"),
        ("sparsity/a.py", "from bert import model"),
        ("training/a.py", "from bert import model"),
        ("bert/a.py", "def f():\n    from launch.cluster.driver import run_on_ray"),
        ("bert/a.py", "from . import model"),
        ("bert/a.py", "def f():\n    import sparsebert.inference.convert"),
        ("bert/a.py", "def f():\n    import ray"),
        ("launch/a.py", "def f():\n    import ray"),
        ("launch/cluster/a.py", "import ray.train"),
        ("launch/cluster/a.py", "try:\n    import ray\nexcept ImportError:\n    pass"),
        ("sparsity/a.py", "def f():\n    import deepspeed.ops"),
        ("launch/a.py", "import dask"),
    ],
)
def test_a_violation_is_found(path: str, source: str) -> None:
    assert len(find_violations(source, path)) == 1


def test_what_is_allowed() -> None:
    assert find_violations("def f():\n    import ray", "launch/cluster/a.py") == []
    assert find_violations("import deepspeed", "distributed/zero.py") == []
    assert find_violations("import distributed.zero, sparsity, torch", "bert/a.py") == []


@pytest.mark.parametrize(
    ("modules", "slow"),
    [
        (
            "launch.__main__, training.config, bert.tasks.finetune_config, launch.study.plan",
            {"torch", "transformers", "deepspeed", "ray"},
        ),
        (
            "launch.cluster.driver, launch.cluster.worker",
            {"torch", "transformers", "deepspeed", "ray", "pyarrow"},
        ),
    ],
)
def test_a_start_waits_for_no_import_that_it_does_not_need(modules: str, slow: set[str]) -> None:
    program = f"import sys, {modules}; print(*{slow} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr


def test_deepspeed_brings_no_compiler() -> None:
    program = (
        "import os, sys; from distributed.zero import import_deepspeed; import_deepspeed('cpu')\n"
        "import deepspeed.runtime.zero.muon.original_muon\n"
        "print('torch._inductor.compile_fx' in sys.modules, 'TORCHDYNAMO_DISABLE' in os.environ)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TORCHDYNAMO_DISABLE"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "False False\n", done.stdout + done.stderr


def test_serving_runs_where_nothing_else_is_installed() -> None:
    """The whole way of a server, with every other package of ours and of training blocked."""
    program = """
import sys
for name in {BLOCKED}:
    sys.modules[name] = None
import torch
from transformers import BertConfig, BertModel
import sparsebert
from sparsebert import to_sparse
config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
model = to_sparse(BertModel(config), force=True)
assert model(torch.tensor([[1, 2, 3]])).last_hidden_state.shape == (1, 3, 8)
import sparsebert.inference.bench, sparsebert.inference.build
try:
    sparsebert.attach
except ImportError as error:
    assert "install the whole project" in str(error), error
else:
    raise AssertionError("attach was found")
"""
    blocked = {*ORDER, "deepspeed", "ray", "datasets", "typer", "defusedxml"}
    done = subprocess.run(
        [sys.executable, "-c", program.replace("{BLOCKED}", repr(blocked))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
