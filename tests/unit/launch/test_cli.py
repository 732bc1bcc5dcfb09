"""The command line as a user meets it: exit codes, one-line errors, help."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from distributed.checkpoint.manifest import seal
from launch import __main__ as cli
from training.folder import RunFolder

ROOT = Path(__file__).parents[3]
MakeRun = Callable[..., RunFolder]
Write = Callable[..., Path]


class Outcome(SimpleNamespace):
    code: int
    out: str
    err: str


@pytest.fixture
def sparsebert(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Outcome]:
    """Run a command in this process, through `main` as the console script does."""

    def run(*arguments: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["sparsebert", *map(str, arguments)])
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        code = left.value.code
        return Outcome(
            code=code if isinstance(code, int) else 0, out=captured.out, err=captured.err
        )

    return run


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for Ray: remembers what `pretrain` was called with."""
    calls: list[tuple[Any, bool]] = []
    fake = SimpleNamespace(calls=calls, result=0)

    def run(recipe: Any, *, local: bool) -> int:
        calls.append((recipe.config, local))
        if isinstance(fake.result, BaseException):
            raise fake.result
        return int(fake.result)

    fake.run = run
    monkeypatch.setitem(sys.modules, "launch.run", fake)
    return fake


def in_a_process(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        cwd=options.get("cwd", ROOT),
        check=False,
    )


def test_help_is_fast_because_it_imports_no_torch() -> None:
    script = (
        "import sys\nsys.argv = ['sparsebert', 'pretrain', '--help']\n"
        "from launch.__main__ import main\n"
        "try: main()\nexcept SystemExit as left: assert not left.code\n"
        "print([name for name in ('torch', 'ray', 'transformers', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_versions_that_a_report_of_a_fault_needs() -> None:
    done = in_a_process("--version")
    named = [line.split()[0] for line in done.stdout.splitlines()]
    assert done.returncode == 0
    assert named == ["sparsebert", "torch", "deepspeed", "ray", "transformers"]
    assert f"torch {metadata.version('torch')}" in done.stdout


def test_a_mistyped_path_or_override_imports_no_torch(tmp_path: Path) -> None:
    good = tmp_path / "good.yaml"
    good.write_text("name: a\n")
    for arguments in ([str(tmp_path / "none.yaml")], [str(good), "seed"]):
        script = (
            f"import sys\nsys.argv = ['sparsebert', 'pretrain', *{arguments!r}]\n"
            "from launch.__main__ import main\n"
            "try: main()\nexcept SystemExit as left: assert left.code == 2\n"
            "print('torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert done.stdout == "False\n"


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ("prepare", ["--source", "--input PATH...", "--output", "--vocab", "data.shards"]),
        ("pretrain", ["[field=value ...]", "launch.num_workers=3", "torchrun", "checkpoint"]),
        ("inspect", ["--json", "digest", "manifest.json"]),
        ("export", ["OUT_DIR", "AutoModelForMaskedLM", "model section"]),
    ],
)
def test_help_teaches(sparsebert: Callable[..., Outcome], command: str, taught: list[str]) -> None:
    outcome = sparsebert(command, "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.split())
    for part in [*taught, "Example", f"sparsebert {command} "]:
        assert part in text
    assert "\\b" not in outcome.out
    assert f"\n    sparsebert {command} " in outcome.out, "an example keeps its line"
    assert command in sparsebert("--help").out


def test_pretrain_passes_a_resolved_configuration(
    sparsebert: Callable[..., Outcome],
    driver: SimpleNamespace,
    write_config: Write,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = write_config()
    assert sparsebert("pretrain", path.name, "zero.stage=3", "--local").code == 0
    config, local = driver.calls[0]
    assert local
    assert config.zero.stage == 3
    assert config.data.shards == [tmp_path / "data/general"]
    driver.result = 5
    assert sparsebert("pretrain", path).code == 5, "the driver's own code"
    assert not driver.calls[1][1]


def test_bad_configuration(
    sparsebert: Callable[..., Outcome], driver: SimpleNamespace, write_config: Write
) -> None:
    path = write_config()
    before = sorted(path.parent.iterdir())
    outcome = sparsebert("pretrain", path, "zero.stag=3")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err == (
        "error: zero.stag on the command line is not a known field: did you mean zero.stage?\n"
    )
    assert driver.calls == []
    assert sorted(path.parent.iterdir()) == before, "nothing is written"


def test_bad_input_from_within_is_one_line(
    sparsebert: Callable[..., Outcome], driver: SimpleNamespace, write_config: Write
) -> None:
    from distributed.errors import BadInput

    driver.result = BadInput("launch.num_workers is 9:\n  lower it")
    outcome = sparsebert("pretrain", write_config())
    assert (outcome.code, outcome.err) == (2, "error: launch.num_workers is 9: lower it\n")


def test_interrupt(
    sparsebert: Callable[..., Outcome], driver: SimpleNamespace, write_config: Write
) -> None:
    driver.result = KeyboardInterrupt()
    outcome = sparsebert("pretrain", write_config())
    assert outcome.code == 130
    assert "Traceback" not in outcome.err


def test_anything_else_is_a_traceback(
    driver: SimpleNamespace, write_config: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.result = RuntimeError("broken")
    monkeypatch.setattr(sys, "argv", ["sparsebert", "pretrain", str(write_config())])
    with pytest.raises(RuntimeError, match="broken"):
        cli.main()


@pytest.mark.parametrize(
    "arguments",
    [
        ["prepare", "--source", "poems"],
        ["prepare", "--source", "text"],
        ["pretrain"],
        ["inspect"],
        ["export", "runs/x"],
        ["inspect", "x", "--jsn"],
        ["no-such-command"],
    ],
)
def test_usage_errors(sparsebert: Callable[..., Outcome], arguments: list[str]) -> None:
    outcome = sparsebert(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert "Error" in outcome.err


def test_schema(sparsebert: Callable[..., Outcome]) -> None:
    outcome = sparsebert("pretrain", "--schema")
    assert outcome.code == 0
    schema = json.loads(outcome.out)
    assert schema["properties"]["sparsity"]["default"] is None
    assert set(schema["required"]) == {"name", "model", "data", "train"}


def test_inspect(sparsebert: Callable[..., Outcome], make_run: MakeRun) -> None:
    run = make_run(10)
    outcome = sparsebert("inspect", run.path, "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert report["sparsity"]["over_prunable"] == 0.75
    outcome = sparsebert("inspect", run.checkpoints / "step-00000010")
    assert outcome.code == 0
    assert report["sparsity"]["digest"] in outcome.out

    manifest = run.checkpoints / "step-00000010" / "manifest.json"
    content = json.loads(manifest.read_text())
    del content["sha256"]
    content["state"]["sparsity"]["digest"] = "f" * 16
    manifest.write_bytes(seal(content))
    outcome = sparsebert("inspect", run.path)
    assert outcome.code == 1
    assert "problem: the manifest's mask digest is ffff" in outcome.out

    outcome = sparsebert("inspect", run.path / "nowhere")
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith("error: ")


def test_export(sparsebert: Callable[..., Outcome], make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(10)
    outcome = sparsebert("export", run.path, tmp_path / "out", "--json")
    assert outcome.code == 0
    report = json.loads(outcome.out)
    assert (report["step"], report["already_done"]) == (10, False)
    outcome = sparsebert("export", run.path, tmp_path / "out")
    assert outcome.code == 0
    assert "is there already" in outcome.out
    assert report["digest"] in outcome.out
    outcome = sparsebert("export", tmp_path, tmp_path / "other")
    assert outcome.code == 2
    assert not (tmp_path / "other").exists()


def test_prepare(sparsebert: Callable[..., Outcome], tmp_path: Path, vocab: Path) -> None:
    for part in ("one", "two"):
        documents = [f"{part} {chr(97 + i)} some words to be read " * 8 for i in range(20)]
        lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
        (tmp_path / f"{part}.jsonl").write_text(lines)
    inputs = ["--input", tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    options = ["--output", tmp_path / "out", "--vocab", vocab, "--validation-fraction", "0.3"]
    command = ["prepare", "--source", "text", *inputs, *options]
    outcome = sparsebert(*command, "--json")
    assert outcome.code == 0, outcome.err
    report = json.loads(outcome.out)
    assert report["documents"] + report["validation_documents"] == 40, "of both inputs"
    assert not report["already_done"]
    outcome = sparsebert(*command)
    assert outcome.code == 0
    assert "is there already" in outcome.out
    assert str(tmp_path / "out-validation") in outcome.out

    missing = sparsebert("prepare", "--source", "text", "--input", tmp_path / "none", *options)
    assert missing.code == 2
    assert missing.err.startswith("error: ")
    assert missing.err.count("\n") == 1


def test_prepare_says_what_it_read_and_what_not(
    sparsebert: Callable[..., Outcome], tmp_path: Path, vocab: Path
) -> None:
    folder = tmp_path / "pubmed"
    folder.mkdir()
    shutil.copy(ROOT / "samples" / "pubmed.xml.gz", folder / "pubmed16n0902.xml.gz")
    (folder / "pubmed16n0902.xml.gz.md5").write_text(f"MD5(pubmed16n0902.xml.gz)= {'0a' * 16}\n")
    (folder / "pubmed16n0902_stats.html").write_text("<html><body>604</body></html>\n")
    (folder / "README.txt").write_text("These files hold the citations of MEDLINE.\n")
    command = ["prepare", "--source", "pubmed", "--input", folder, "--vocab", vocab, "--output"]
    outcome = sparsebert(*command, tmp_path / "out")
    assert outcome.code == 0, outcome.err
    # 604 citations, 526 of them with an abstract (samples/README.md).
    assert "documents by format: 526 PubMed XML\n" in outcome.out
    assert "passed over 1 (checksum): pubmed16n0902.xml.gz.md5\n" in outcome.out
    assert "passed over 1 (HTML): pubmed16n0902_stats.html\n" in outcome.out
    assert "passed over 1 (README or licence): README.txt\n" in outcome.out
    report = json.loads(sparsebert(*command, tmp_path / "other", "--json").out)
    assert report["documents_by_format"] == {"xml": 526}
    assert report["documents"] + report["validation_documents"] == 526
    assert report["passed_over"] == [
        {"name": str(folder / "README.txt"), "reason": "README or licence"},
        {"name": str(folder / "pubmed16n0902.xml.gz.md5"), "reason": "checksum"},
        {"name": str(folder / "pubmed16n0902_stats.html"), "reason": "HTML"},
    ]


@pytest.mark.parametrize(
    ("source", "content", "said"),
    [
        ("wikipedia", b'<doc id="7" url="x" title="A">\nA\n\nWords.\n</doc>\n', "wikiextractor"),
        ("text", b"id,text\n1,words\n2,words\n", "comma-separated table (CSV)"),
        ("pubmed", b"\nPMID- 100\nOWN - NLM\nTI  - A title\n", "MEDLINE text"),
        ("books", b"One\nand two\nand caf\xe9\n", "line 3 is not UTF-8"),
        ("text", b'{"text": "a"}\n{"text": {"a": "b"}}\n', "line 2: the field 'text' is an object"),
    ],
)
def test_prepare_refuses_what_is_no_plain_text(
    sparsebert: Callable[..., Outcome],
    tmp_path: Path,
    vocab: Path,
    source: str,
    content: bytes,
    said: str,
) -> None:
    path = tmp_path / "input"
    path.write_bytes(content)
    options = ["--output", tmp_path / "out", "--vocab", vocab]
    outcome = sparsebert("prepare", "--source", source, "--input", path, *options)
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: {path} ") and said in line
    assert {file.name for file in tmp_path.iterdir()} == {"input", "vocab.txt"}


def test_a_process_from_elsewhere(write_config: Write, tmp_path: Path) -> None:
    path = write_config(train={"total_steps": 40})
    done = in_a_process("pretrain", path, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "sparsity.prune_end_step (50) must be below train.total_steps (40)" in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert yaml.safe_load(path.read_text())["name"] == "demo"
