"""A process that has imported slow libraries, and a fork of it for each thing to run.

Importing torch, DeepSpeed and transformers costs a command more than most of what it then does.
"""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_SERVER = """
import importlib, json, os, signal, sys

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)  # libraries print while they are imported
for name in json.loads(sys.argv[1]):
    importlib.import_module(name)
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if child == 0:
        signal.alarm(job["seconds"])
        for descriptor, file in ((1, job["out"]), (2, job["err"])):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        os.chdir(job["cwd"])
        sys.path.insert(0, job["cwd"])
        code = 1
        try:
            exec(job["code"], {"arguments": job["arguments"]})
            code = 0
        except SystemExit as left:
            code = int(left.code or 0)
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


class ForkServer:
    """Runs Python code, each time in a fork of a process that has imported `preload`."""

    def __init__(self, preload: Sequence[str], *, env: Mapping[str, str], cwd: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _SERVER, json.dumps(list(preload))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=cwd,
            env=dict(env),
        )

    def run(
        self,
        code: str,
        *arguments: str | Path,
        out: Path,
        err: Path,
        cwd: Path,
        seconds: int = 300,
    ) -> int:
        """Run `code`, which sees its `arguments` as strings, in the folder `cwd`.

        Returns:
            Its exit code; negative, the signal that ended it (SIGALRM after `seconds`).
        """
        job = {"code": code, "arguments": [*map(str, arguments)], "seconds": seconds}
        job |= {"out": str(out), "err": str(err), "cwd": str(cwd)}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that forks has ended: see the test's captured stderr"
        return int(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)
