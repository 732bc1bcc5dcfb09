"""Everything that waits for a GPU, on one GPU: tests, figures, and the peers' figures.

    python3 benchmarks/gpu.py OUT              # ten minutes at most; again to go on
    python3 benchmarks/gpu.py OUT --smoke      # every case on the CPU, with tiny sizes

Each case runs in a process of its own with a time limit, the most valuable first
(benchmarks/gpu_cases/cases.py). OUT/results.json and OUT/table.md are written, and the table is
printed, after every case, so nothing that was measured is lost when the machine is. The same
command goes on with the cases that are left: those that the same code has measured on the same
machine are not repeated. Exit code: 0 all cases measured, 1 some failed or ran out of time, 75 some
are left, 2 wrong use.

Needed: a CUDA build of torch with Triton, transformers, accelerate, numpy, PyYAML, pytest,
hypothesis, and these wheels, which an image that is made for PyTorch often lacks: deepspeed, hjson,
pydantic, pydantic-core, annotated-types, typing-inspection (5 MB). Ray is not needed, nor is
sparsebert installed. Where the machine reaches no package index, build the wheels on one that does,
with the same version of Python, and bring them along:

    pip wheel --no-deps --wheel-dir wheels deepspeed==0.19.8 hjson
    pip wheel --wheel-dir wheels 'pydantic>=2.10,<3'
    # on the machine with the GPU:
    pip install --no-index --no-deps --target site wheels/*.whl
    PYTHONPATH=site python3 benchmarks/gpu.py OUT

benchmarks/README.md says how to do that with another version of Python.
"""

import argparse
import hashlib
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # not needed where sparsebert is installed

CASES = "benchmarks.gpu_cases.cases"
CODE = (
    "distributed",
    "sparsity",
    "training",
    "bert",
    "benchmarks",
    "tests/gpu",
    "tests/unit/sparsity",
)
OFTEN_MISSING = {  # module: package
    "deepspeed": "deepspeed",
    "hjson": "hjson",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
}
NEEDED = OFTEN_MISSING | {
    **{name: name for name in ("torch", "transformers", "accelerate", "numpy", "safetensors")},
    **{name: name for name in ("scipy", "pytest", "hypothesis")},
    "yaml": "PyYAML",
    "pytest_timeout": "pytest-timeout",
}


def check_packages() -> None:
    """Raise BadInput if a package that the cases need is not there."""
    from distributed.errors import BadInput

    missing = [package for name, package in NEEDED.items() if not importlib.util.find_spec(name)]
    if missing:
        raise BadInput(
            f"these packages are missing: {', '.join(missing)}; see benchmarks/README.md for wheels"
        )


def hash_code() -> str:
    """A digest of every file that a case may run: results of other code are not good for it."""
    digest = hashlib.sha256()
    files = sorted(file for folder in CODE for file in (ROOT / folder).rglob("*.py"))
    for file in files:
        digest.update(f"{file.relative_to(ROOT)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def find_commit() -> str | None:
    """The commit of this checkout, with a plus if files differ from it; None outside git."""
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True)
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True)
    except OSError:
        return None
    if commit.returncode or changes.returncode:
        return None
    return commit.stdout.decode().strip() + ("+" if changes.stdout.strip() else "")


def find_machine(device: str) -> dict[str, str]:
    """Card, driver and versions; asked in another process, which then frees the GPU again.

    Raises:
        BadInput: there is no GPU, or torch cannot be imported.
    """
    from distributed.errors import BadInput

    program = [sys.executable, "-m", "benchmarks.gpu_cases.machine", device]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise BadInput(reason)
    machine: dict[str, str] = json.loads(done.stdout.splitlines()[-1])
    return machine


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the results")
    parser.add_argument("--smoke", action="store_true", help="on the CPU, with tiny sizes")
    parser.add_argument(
        "--budget",
        type=float,
        metavar="SECONDS",
        help="of this call: 570 unless given, with --smoke an hour",
    )
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time, with --smoke")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE", help="names of cases")
    parser.add_argument("--again", action="store_true", help="also those that are measured already")
    parser.add_argument(
        "--previous", nargs="+", default=[], type=Path, metavar="FILE", help="results.json to go on"
    )
    parser.add_argument("--commit", help="what to note where the checkout has no .git")
    return parser


def main() -> int:
    from benchmarks.case_runner import Runner
    from distributed.errors import BadInput

    options = build_parser().parse_args()
    device = "cpu" if options.smoke else "cuda"
    try:
        check_packages()
        where = {
            "machine": find_machine(device),
            "code": hash_code(),
            "smoke": options.smoke,
            "commit": options.commit or find_commit(),
            "command": shlex.join(["python3", *sys.argv]),
        }
        runner = Runner(CASES, options.out, device=device, smoke=options.smoke, where=where)
        for file in options.previous:
            runner.add_results(file)
        return runner.run(
            budget_seconds=options.budget or (3600 if options.smoke else 570),
            only=options.only,
            again=options.again,
            jobs=options.jobs if options.smoke else 1,
        )
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
