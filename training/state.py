"""What a run trains, and how far it is."""

from dataclasses import asdict, dataclass, replace

from torch import nn


@dataclass(frozen=True)
class TrainState:
    """All that a restart needs beside the weights: steps, data and learning rate follow from
    `step`.
    """

    step: int = 0  # finished steps
    tokens_seen: int = 0  # over all ranks, padding not counted
    skipped_steps: int = 0  # finished without an update, for a gradient that was not finite
    skipped_in_a_row: int = 0  # of these, the ones since the last update
    batch_offset: int = 0  # batches passed over for good: step s trains on batch s + this

    @property
    def batch(self) -> int:
        """The batch of the next step."""
        return self.step + self.batch_offset

    def after_step(self, *, tokens: int, applied: bool) -> "TrainState":
        """The state one step later: a skipped step consumes its number and its rows too."""
        return replace(
            self,
            step=self.step + 1,
            tokens_seen=self.tokens_seen + tokens,
            skipped_steps=self.skipped_steps + (not applied),
            skipped_in_a_row=0 if applied else self.skipped_in_a_row + 1,
        )

    def to_dict(self) -> dict[str, int]:
        """For the checkpoint's manifest."""
        return asdict(self)


@dataclass(frozen=True)
class Weight:
    """A parameter of a plain module, and how it is trained."""

    name: str  # canonical: the same in masks, digests, checkpoints and exports
    parameter: nn.Parameter
    is_prunable: bool
    decays: bool  # AdamW's weight decay
