"""The base of every section of a configuration, and the sections that this package owns.

Imports no torch, as no configuration does: a wrong field is told at once, not after the seconds
that torch takes.
"""

import os
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

_STORAGES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "file")  # pyarrow's
# What a URI may ask of them: no secret among it, such as a key or a shared access signature.
_OPTIONS = frozenset(
    {
        "allow_bucket_creation",
        "allow_bucket_deletion",
        "buffer_size",
        "connect_timeout",
        "default_block_size",
        "enable_tls",
        "endpoint_override",
        "region",
        "replication",
        "request_timeout",
        "retry_limit_seconds",
        "scheme",
        "user",
    }
)


class Config(BaseModel):
    """A component's settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def resolved(self) -> Self:
        """The same with absolute paths: workers run in other folders."""
        fields = {name: _resolve(getattr(self, name)) for name in type(self).model_fields}
        return self.model_copy(update=fields)


def _resolve(value: Any) -> Any:
    if isinstance(value, Path):
        return Path(os.path.abspath(value.expanduser()))
    if isinstance(value, Config):
        return value.resolved()
    if isinstance(value, dict):
        return {key: _resolve(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_resolve(item) for item in value)
    return value


class OptimizerConfig(Config):
    """AdamW's settings, and what the engine must know of a step beside them."""

    micro_batch_rows: int = Field(..., ge=1, description="rows of one forward on one rank")
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    adam_eps: float = Field(
        1e-6, gt=0, description="BERT's; the larger, the less rare tokens drift on tiny gradients"
    )
    max_grad_norm: float = Field(1.0, ge=0, description="0 does not clip")
    precision: Literal["fp32", "bf16"] = "bf16"

    @field_validator("betas")
    @classmethod
    def _check_betas(cls, betas: tuple[float, float]) -> tuple[float, float]:
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"train.betas {betas} must lie in [0, 1)")
        return betas


class ZeroConfig(Config):
    """How weights, gradients and optimizer states are divided between the ranks."""

    stage: Literal[0, 1, 2, 3] = Field(
        2, description="0 none, 1 optimizer states, 2 and gradients, 3 and weights"
    )
    offload_optimizer: bool = Field(False, description="keep masters and moments in host memory")
    offload_param: bool = Field(
        False, description="at stage 3, keep weights in host memory until they are used"
    )
    grad_dtype: Literal["fp32"] | None = Field(
        None, description="fp32 accumulates gradients in fp32; null in the model's precision"
    )
    advanced: dict[str, int | float | bool] = Field(
        default_factory=dict,
        description="further keys of DeepSpeed's zero_optimization, e.g. {sub_group_size: 1000000}",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.stage == 0 and self.offload_optimizer:
            raise ValueError("zero.offload_optimizer needs zero.stage 1, 2 or 3")
        if self.stage != 3 and self.offload_param:
            raise ValueError("zero.offload_param needs zero.stage 3")
        if "stage" in self.advanced:
            raise ValueError("zero.advanced may not hold stage: set zero.stage")
        if self.advanced.get("compute_grad_norm") is False:
            raise ValueError(
                "zero.advanced.compute_grad_norm false would let a gradient that is not finite "
                "into the weights: remove it"
            )
        return self


class CheckpointConfig(Config):
    """When to save and what to keep."""

    interval_steps: int = Field(1000, ge=1)
    keep_last: int = Field(3, ge=1, description="older ones are removed after a save")
    keep_every_steps: int | None = Field(
        None, ge=1, description="checkpoints of multiples of it stay for good"
    )
    keep_best: int = Field(
        0, ge=0, description="so many of the lowest validation loss, the sets' mean, stay"
    )
    max_failed_writes: int = Field(
        3, ge=1, description="in a row; fewer cost their checkpoint and training goes on"
    )
    mirror: str | None = Field(
        None,
        description="URI of a folder in other storage, as in s3://BUCKET/PATH: each checkpoint is "
        "copied there, and a run whose folder has none, or an older one, goes on from there",
    )

    @field_validator("mirror")
    @classmethod
    def _check_mirror(cls, uri: str | None) -> str | None:
        if uri is None:
            return None
        parts = urlsplit(uri)
        if parts.scheme not in _STORAGES or not (parts.netloc + parts.path).strip("/"):
            raise ValueError(
                "checkpoint.mirror must be a URI such as s3://BUCKET/PATH or file:///PATH, of "
                + ", ".join(_STORAGES)
            )
        # A secret may hold a slash, and then what a URI's parts are is anybody's guess.
        has_key = "@" in parts.netloc + parts.path and (parts.scheme == "s3" or ":" in parts.netloc)
        if has_key or not _OPTIONS.issuperset(dict(parse_qsl(parts.query, keep_blank_values=True))):
            raise ValueError(
                "checkpoint.mirror must hold no keys, which would be written into each checkpoint: "
                "give them as the storage's own tools expect (such as AWS_ACCESS_KEY_ID); after a "
                f"question mark it takes {', '.join(sorted(_OPTIONS))}"
            )
        return uri
