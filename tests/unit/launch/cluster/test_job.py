"""What a job brings along, and its log over connections that break."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from distributed.errors import BadInput
from launch.cluster import job as ray_job
from launch.config_loading import load_config

LOG = "connecting\nstep 1/3\nstep 2/3\nstep 3/3\ncomplete\n"


class Status:
    def __init__(self, ended: bool) -> None:
        self._ended = ended

    def is_terminal(self) -> bool:
        return self._ended


class BreakingClient:
    """Sends the log from its beginning at each connection, and breaks off after so many characters,
    as Ray's interface does behind a tunnel that closes."""

    def __init__(self, lengths: list[int], chunk: int) -> None:
        self._lengths = lengths
        self._chunk = chunk

    async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
        length = self._lengths.pop(0)
        for at in range(0, length, self._chunk):
            yield LOG[at : min(at + self._chunk, length)]
        if self._lengths:
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_status(self, job: str) -> Status:
        return Status(ended=not self._lengths)


@pytest.mark.parametrize("chunk", [1, 4, 7, 1000])
@pytest.mark.parametrize("lengths", [[len(LOG)], [0, 5, 20, len(LOG)], [20, 5, len(LOG)]])
def test_each_line_of_the_log_is_printed_once(
    lengths: list[int],
    chunk: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_job, "_RECONNECT_SECONDS", 0.0)
    asyncio.run(ray_job._print_log(BreakingClient(list(lengths), chunk), "job"))
    assert capsys.readouterr().out == LOG


def test_what_is_uploaded(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    train = {"total_steps": 9, "global_batch_rows": 8, "micro_batch_rows": 1, "learning_rate": 1}
    config = {"name": "x", "model": {"vocab": "v"}, "data": {"shards": "d"}, "train": train}
    file.write_text(yaml.safe_dump(config))
    config = load_config(file)
    with ray_job.upload_folder(config) as folder:
        assert {path.name for path in folder.iterdir()} == {*ray_job._PACKAGES, "config.yaml"}
        assert load_config(folder / "config.yaml") == config
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert {path.suffix for path in files} == {
            *(".py", ".yaml", ".sbatch"),
            *(".cpp", ".h", ".md", ".sh", ".toml", ".typed", ""),  # sparsebert/ is a project too
        }
        assert sum(path.stat().st_size for path in files) < 2_000_000
    assert not folder.exists()


@pytest.mark.parametrize("address", ["ray://head:10001", "auto://x"])
def test_an_address_that_is_no_dashboards(address: str) -> None:
    with pytest.raises(BadInput, match="give the address of the cluster's dashboard"):
        ray_job.connect(address)


def test_nobody_answers() -> None:
    with pytest.raises(BadInput, match="no Ray dashboard answers at http://127.0.0.1:1: give"):
        ray_job.connect("127.0.0.1:1")
