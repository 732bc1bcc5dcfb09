"""A mirror's URI goes into every checkpoint, so that it may hold no secret."""

import pytest

from distributed.config import CheckpointConfig


@pytest.mark.parametrize(
    "uri",
    [
        "s3://key:secret@bucket/runs",
        "abfss://box@account.dfs.core.windows.net/runs?client_secret=S&client_id=i&tenant_id=t",
        "abfss://box@account.dfs.core.windows.net/runs?sv=2022&sig=S",
        "s3://bucket/runs?region=eu&secret_key=",
    ],
)
def test_keys_are_refused(uri: str) -> None:
    with pytest.raises(ValueError, match="must hold no keys"):
        CheckpointConfig(mirror=uri)


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs?region=us-east-1&scheme=http&endpoint_override=127.0.0.1:9000",
        "abfss://box@account.dfs.core.windows.net/runs",
        "file:///mnt/other-disk",
    ],
)
def test_what_names_a_place_is_taken(uri: str) -> None:
    assert CheckpointConfig(mirror=uri).mirror == uri
