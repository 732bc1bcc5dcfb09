"""Data sets of the Hugging Face hub, as a user names them: hub:NAME[:CONFIG[:SPLIT]]."""

from typing import NamedTuple

from distributed.errors import BadInput

HUB_PREFIX = "hub:"


class HubDataSet(NamedTuple):
    """What `datasets.load_dataset` is asked for."""

    name: str
    config: str | None
    split: str
    revision: str


def find_data_set(path: str) -> HubDataSet:
    """The data set that `path` names, at its revision of now.

    Raises:
        BadInput: it cannot be reached.
    """
    from huggingface_hub import HfApi  # slow to import, and seldom needed

    name, _, rest = path.removeprefix(HUB_PREFIX).partition(":")
    config, _, split = rest.partition(":")
    try:
        # One short request first: `datasets` would retry for half a minute without a network.
        revision = HfApi().dataset_info(name, timeout=30).sha
    except Exception as error:  # a dozen kinds, of three libraries
        raise BadInput(
            f"The data set {path} cannot be reached ({type(error).__name__}): check its name and "
            "the network, or give files that are on this machine."
        ) from None
    return HubDataSet(name, config or None, split or "train", str(revision))
