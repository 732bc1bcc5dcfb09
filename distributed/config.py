"""The configuration base that every component's own model extends."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A component's settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )
