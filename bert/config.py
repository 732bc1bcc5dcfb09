"""The sections of a run's configuration that this package owns: model, data, training, validation.

Imports no torch, as no configuration does: a wrong field is told at once, not after the seconds
that torch and transformers take.
"""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from distributed.config import CheckpointConfig, Config, ZeroConfig
from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig
from training.config import (
    NAME,
    NAME_RULE,
    LaunchConfig,
    RunConfig,
    SlurmConfig,
    TrainConfig,
    defaults_of,
)


class ModelConfig(Config):
    """The dimensions of a BERT encoder; the defaults are BERT-base (arXiv 1810.04805)."""

    hidden_size: int = Field(768, ge=1)
    num_layers: int = Field(12, ge=1)
    num_heads: int = Field(12, ge=1)
    intermediate_size: int = Field(3072, ge=1)
    max_position_embeddings: int = Field(512, ge=1)
    initializer_range: float = Field(
        0.02,
        gt=0,
        description="standard deviation of new weights; small models learn sooner with more",
    )
    initialization: Literal["normal", "structured"] = Field(
        "normal",
        description="normal: BERT's; structured: attention starts on neighbours and passes on what "
        "it sees, which learns sooner from little text",
    )
    vocab: Path = Field(
        description="WordPiece vocabulary, one token a line, or a Hugging Face folder with its "
        "tokenizer"
    )
    vocab_rows: int | None = Field(
        None,
        ge=1,
        description="rows of the word embeddings where they are more than the words, as in padded "
        "vocabularies; null: a row a word",
    )
    init_from: Path | None = Field(
        None, description="run, checkpoint or Hugging Face folder to take the first weights from"
    )
    # The only kind of attention; in the identities of all runs since release 0.1.
    attention: Literal["segment"] = "segment"

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"model.hidden_size ({self.hidden_size}) is not a multiple of "
                f"model.num_heads ({self.num_heads})"
            )
        head_dim = self.hidden_size // self.num_heads
        if self.initialization == "structured" and (self.num_heads < 3 or head_dim % 2):
            raise ValueError(
                "model.initialization structured needs 3 heads or more of an even size: "
                f"model.num_heads is {self.num_heads} and a head has {head_dim} dimensions"
            )
        return self

    def count_rows(self, words: int) -> int:
        """Rows of the word embeddings for a vocabulary of so many words.

        Raises:
            BadInput: `vocab_rows` is below it.
        """
        if self.vocab_rows is not None and self.vocab_rows < words:
            raise BadInput(
                f"model.vocab_rows ({self.vocab_rows}) is below the {words} words of the "
                f"vocabulary {self.vocab}: raise it or leave it out"
            )
        return self.vocab_rows or words

    def for_identity(self) -> dict[str, Any]:
        """What of the dimensions makes a run that run, as JSON: not where files lie."""
        fields = self.model_dump(mode="json", exclude={"vocab", "init_from"})
        if self.vocab_rows is None:
            del fields["vocab_rows"]  # as in the records of runs from before there was the field
        return fields


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str | Path) else value


class DataConfig(Config):
    """What the model reads, and how it is cut into rows."""

    shards: Annotated[list[Path], BeforeValidator(_as_list), Field(min_length=1)]
    max_seq_len: int = Field(default=128, ge=3, le=512)
    row_tokens: int = 512
    mlm_probability: float = Field(default=0.15, gt=0, lt=1)

    @model_validator(mode="after")
    def _row_holds_a_segment(self) -> "DataConfig":
        if self.row_tokens < self.max_seq_len:
            raise ValueError(
                f"data.row_tokens is {self.row_tokens}: it must be at least data.max_seq_len "
                f"({self.max_seq_len})"
            )
        return self


class EvaluationConfig(Config):
    """When to validate and on what."""

    interval_steps: int = Field(1000, ge=1)
    rows: int = Field(256, ge=1, description="rows of each set, the same ones every time")
    mlm_probability: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="share of the tokens to predict, whatever the share in training: the fewer "
        "words are left to see, the higher the loss",
    )
    sets: dict[str, list[Path]] = Field(
        default_factory=dict, description="name of a set: its folder, or a list of folders"
    )

    @field_validator("sets", mode="before")
    @classmethod
    def _accept_one_folder(cls, value: object) -> object:
        if isinstance(value, dict):
            return {k: v if isinstance(v, list) else [v] for k, v in value.items()}
        return value


class SoftLabelsConfig(Config):
    """How much to learn from a teacher."""

    temperature: float = Field(2.0, gt=0)
    hardness: float = Field(
        0.5, ge=0, le=1, description="weight of the teacher; 1 learns from the teacher alone"
    )


class DistillationConfig(SoftLabelsConfig):
    """Whom to learn from and how much."""

    teacher: Path = Field(
        description="run, checkpoint or Hugging Face folder, trained for the same"
    )


class PretrainConfig(RunConfig):
    """A pretraining run, complete."""

    name: str = Field(
        coerce_numbers_to_str=True, description="of the run and of its folder in launch.runs_dir"
    )
    seed: int = Field(1, ge=0, lt=1 << 63)
    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    evaluation: EvaluationConfig = defaults_of(EvaluationConfig)
    zero: ZeroConfig = defaults_of(ZeroConfig)
    sparsity: SparsityConfig | None = Field(None, description="null trains a dense model")
    distillation: DistillationConfig | None = Field(
        None, description="null learns from the text alone"
    )
    checkpoint: CheckpointConfig = defaults_of(CheckpointConfig)
    launch: LaunchConfig = defaults_of(LaunchConfig)
    slurm: SlurmConfig = defaults_of(SlurmConfig)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sparsity is not None:
            self._check_sparsity(self.sparsity)
        if self.data.max_seq_len > self.model.max_position_embeddings:
            raise ValueError(
                f"data.max_seq_len ({self.data.max_seq_len}) is above "
                f"model.max_position_embeddings ({self.model.max_position_embeddings}): lower the "
                "first or raise the second"
            )
        for name in self.evaluation.sets:
            if not NAME.fullmatch(name):
                raise ValueError(f"evaluation.sets has the name {name!r}: {NAME_RULE}")
        return self

    def _check_sparsity(self, sparsity: SparsityConfig) -> None:
        last = sparsity.last_update_step
        if last is None and self.model.init_from is None:
            raise ValueError(
                "sparsity.schedule frozen keeps the masks of another model: set "
                "model.init_from to its run, checkpoint or Hugging Face folder"
            )
        if last is not None and last >= self.train.total_steps:
            one_shot = sparsity.schedule == "one_shot"
            field = "prune_start_step" if one_shot else "prune_end_step"
            raise ValueError(
                f"sparsity.{field} ({last}) must be below train.total_steps "
                f"({self.train.total_steps}), as steps count from 0: lower it or train longer"
            )
