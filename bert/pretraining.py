"""The training loop: masked language modelling while the masks grow, then with the masks fixed."""

from typing import Literal, Self

from pydantic import Field, model_validator

from distributed.config import Config


class TrainConfig(Config):
    """How the weights are trained."""

    total_steps: int = Field(..., ge=1)
    global_batch_rows: int = Field(..., ge=1, description="rows of one step, over all ranks")
    micro_batch_rows: int = Field(..., ge=1, description="rows of one forward on one rank")
    learning_rate: float = Field(..., gt=0)
    lr_schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.01, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    max_grad_norm: float = Field(1.0, ge=0, description="0 does not clip")
    hidden_dropout: float = Field(0.0, ge=0, lt=1)
    attention_dropout: float = Field(0.0, ge=0, lt=1)
    precision: Literal["fp32", "bf16"] = "bf16"
    log_interval_steps: int = Field(10, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.warmup_steps > self.total_steps:
            raise ValueError(
                f"train.warmup_steps ({self.warmup_steps}) is above "
                f"train.total_steps ({self.total_steps})"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"train.betas {self.betas} must lie in [0, 1)")
        return self
