import json
from pathlib import Path

import pytest

from examples import demo_report as demo

GENERAL_UNIGRAM, PUBMED_UNIGRAM = 7.0, 7.5


@pytest.fixture(autouse=True)
def in_a_folder_without_an_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    # A fresh process and an exported model: tests/integration and test_export.py have them.
    monkeypatch.setattr(demo, "fill_in_a_fresh_process", lambda: [("placebo", 0.25)])


def write_run(name: str, *, general: float, pubmed: float, last_step: int = 40) -> None:
    """A run of 40 steps whose last record has these validation losses."""
    folder = Path("runs") / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("train: {total_steps: 40}\n")
    records = [
        {
            "step": step,
            "train/tokens_seen": 2000 * step,
            "throughput/step_seconds": 0.5,
            "validation/general/mlm_loss": general + (last_step - step),
            "validation/general/unigram_loss": GENERAL_UNIGRAM,
            "validation/pubmed/mlm_loss": pubmed + (last_step - step),
            "validation/pubmed/unigram_loss": PUBMED_UNIGRAM,
            "sparsity/actual": 0.9,
            "sparsity/actual_all_weights": 0.068,
            "sparsity/digest": "0123456789abcdef",
        }
        for step in (last_step // 2, last_step)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def write_runs(*, general: float = 6.5, pubmed: float = 7.0, control: float = 7.1) -> None:
    """Losses of the three runs, each on the text of its own stage."""
    write_run("demo-general", general=general, pubmed=9.0)
    write_run("demo-pubmed", general=9.0, pubmed=pubmed)
    write_run("demo-control", general=control, pubmed=9.0)


def test_the_report_sums_up_each_run(capsys: pytest.CaptureFixture[str]) -> None:
    write_runs()
    assert demo.main() == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if "demo-pubmed" in line)
    for figure in ("40", "80,000", "20", "4,000", "7.000 (7.500)", "0.500", "90.0%", "6.8%"):
        assert figure in row
    assert "placebo" in shown and "broken promise" not in shown


@pytest.mark.parametrize(
    ("losses", "broken"),
    [
        ({"general": 6.81}, "demo-general"),
        ({"pubmed": 7.31}, "demo-pubmed"),
        ({"control": 6.79}, "demo-control"),
        ({"general": 7.0, "pubmed": 8.0}, "demo-general, demo-pubmed"),
    ],
)
def test_a_margin_on_the_wrong_side_fails(
    losses: dict[str, float], broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both stages must be 0.2 nats below the unigram on their own text, the control must not."""
    write_runs(**losses)
    assert demo.main() == 1
    assert f"broken promise: {broken}," in capsys.readouterr().out


@pytest.mark.parametrize("losses", [{"general": 6.79}, {"pubmed": 7.29}, {"control": 6.81}])
def test_a_margin_just_on_the_right_side_passes(losses: dict[str, float]) -> None:
    write_runs(**losses)
    assert demo.main() == 0


def test_a_run_that_did_not_finish_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    write_runs()
    write_run("demo-pubmed", general=6.0, pubmed=6.0, last_step=20)
    assert demo.main() == 2
    assert "runs/demo-pubmed is not complete" in capsys.readouterr().err
