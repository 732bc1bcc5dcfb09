"""Validation: the masked language modelling loss on held-out text, beside a unigram predictor's."""

from pathlib import Path

from pydantic import Field, field_validator

from distributed.config import Config


class EvaluationConfig(Config):
    """When to validate and on what."""

    interval_steps: int = Field(1000, ge=1)
    rows: int = Field(256, ge=1, description="rows of each set, the same ones every time")
    sets: dict[str, list[Path]] = Field(
        default_factory=dict, description="name of a set: its folder, or a list of folders"
    )

    @field_validator("sets", mode="before")
    @classmethod
    def _accept_one_folder(cls, value: object) -> object:
        if isinstance(value, dict):
            return {k: v if isinstance(v, list) else [v] for k, v in value.items()}
        return value
