"""A scope's live weights on a GPU: a launch for all fragments, and one wait an answer.

The passes are Triton kernels (kernels.py): reading each weight once is what a pass costs there.
Where Triton does not run, copies on the host serve.
"""

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from distributed.fragment import Fragment
from sparsity.selection.host import HostKeys
from sparsity.selection.masks import KEEP, FragmentMask
from sparsity.selection.population import MAGNITUDE_BITS, Population
from sparsity.selection.threshold import Cut

log = logging.getLogger(__name__)

_TILE, _BLOCK = 1 << 15, 1 << 10  # weights of a program, and of one of its turns
_FEW = 1 << 22  # keys; so few are divided among more programs, one turn each
_ROOM = 64  # a bracket has room for one weight in so many; a second pass makes more
_MOST_PROGRAMS = (1 << 31) - 1
_SIGN = 1 << 63


@functools.cache
def has_kernels(device: torch.device) -> bool:
    """Whether the kernels run on `device`: tried once, for Triton needs a C compiler there."""
    if device.type != "cuda":
        return False
    try:
        _try_kernels(device)
        return True
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, there is another way with the same answer
        log.warning(
            "Triton does not run here, so each update of the masks copies the weights to the host "
            "and ranks them there: %r",
            error,
        )
        return False


def _try_kernels(device: torch.device) -> None:
    """Run each kernel on three weights, and see that each answer is right."""
    mask = FragmentMask(Fragment("", 0, 3, 0, 0, 0, 3), device)
    weights = DeviceWeights([Population(torch.ones(3, device=device), mask.keep, mask.uid, 0)])
    (most,) = weights.keys.histogram(20, 11).nonzero()
    one = int(most) << 20
    found = weights.find_inside(one, one + 1).count
    pruned = prune(dict.fromkeys([mask], weights.populations[0]), {mask: Cut(one)})
    if not weights.count == found == pruned[mask][0] == 3 or KEEP in mask.keep:
        raise RuntimeError(
            f"kernels found {weights.count}, {found}, {pruned[mask][0]} of 3 weights"
        )


class Table:
    """Populations, all on one device, as the kernels read them: a row each."""

    def __init__(self, populations: Sequence[Population], *columns: Sequence[int]) -> None:
        """`columns` are further numbers of each row, by column."""
        self.populations = populations  # rows hold addresses: the tensors must live as long
        self.device = populations[0].weights.device
        numels = [p.weights.numel() for p in populations]
        self.numel, self._longest = sum(numels), max(numels)
        self.before = np.cumsum([0, *numels])[:-1]  # weights of the rows above
        for p in populations:
            self.check_address(p.weights, torch.float32, p.weights.numel())
            if p.keep is not None:
                self.check_address(p.keep, torch.int8, p.weights.numel())
        rows = [
            [p.weights.data_ptr() for p in populations],
            [0 if p.keep is None else p.keep.data_ptr() for p in populations],
            numels,
            self.before,
            *columns,
        ]
        self._rows = torch.from_numpy(np.array(rows, np.int64).T.copy()).to(self.device)

    def launch(self, kernel: Any, *arguments: Any, tile: int, **constants: int) -> None:
        """Run `kernel` over all rows, `tile` weights a program."""
        programs = -(-self._longest // tile) * len(self.populations)
        assert programs <= _MOST_PROGRAMS, programs
        if programs:
            with torch.cuda.device_of(self._rows):  # type: ignore[no-untyped-call]
                kernel[(programs,)](
                    self._rows, len(self.populations), *arguments, BLOCK=_BLOCK, **constants
                )

    def check_address(self, tensor: torch.Tensor, dtype: torch.dtype, numel: int) -> None:
        """A kernel believes an address: another tensor there would be read as what it is not."""
        assert tensor.device == self.device and tensor.dtype == dtype
        assert tensor.numel() == numel and tensor.is_contiguous()


class DeviceKeys:
    """Keys of at most 31 bits: the magnitude bits of a table's live weights, or of a sample."""

    def __init__(
        self, table: Table, *, stride: int = 1, prefix: int = 0, prefix_shift: int = MAGNITUDE_BITS
    ) -> None:
        """Those of every `stride`-th weight whose (key >> prefix_shift) is `prefix`."""
        self._table, self._stride = table, stride
        self._prefix, self._prefix_shift = prefix, prefix_shift

    def histogram(self, shift: int, bits: int) -> torch.Tensor:
        """Counts int64 [2^bits] of the keys by their digit, on the host."""
        from sparsity.selection import kernels

        counts = torch.zeros(kernels.BINS.value, dtype=torch.int64, device=self._table.device)
        digit_mask = (1 << bits) - 1
        assert digit_mask < counts.numel()
        tile = _BLOCK if self._table.numel // self._stride <= _FEW else _TILE
        self._table.launch(
            kernels.histogram,
            self._stride,
            self._prefix,
            self._prefix_shift,
            shift,
            digit_mask,
            counts,
            tile=tile * self._stride,
            TILE=tile,
        )
        return counts.cpu()[: 1 << bits]

    def having(self, digit: int, shift: int, bits: int) -> "DeviceKeys":
        """Those with this digit: nothing is copied, each pass looks at all."""
        # Short keys begin with zeros.
        assert shift + bits == self._prefix_shift or self._prefix == 0, "a digit is left out"
        return DeviceKeys(
            self._table,
            stride=self._stride,
            prefix=(self._prefix << bits) | digit,
            prefix_shift=shift,
        )


class DeviceWeights:
    """The live weights of some populations, at least one, all on one device."""

    def __init__(self, populations: Sequence[Population]) -> None:
        """Counts them."""
        from sparsity.selection import kernels

        self.populations, self._table = populations, Table(populations)
        count = torch.zeros(1, dtype=torch.int64, device=self._table.device)
        self._table.launch(kernels.count_live, count, tile=_TILE, TILE=_TILE)
        self.count = int(count)

    @property
    def keys(self) -> DeviceKeys:
        """Of all live weights."""
        return DeviceKeys(self._table)

    def sample(self, stride: int) -> DeviceKeys:
        """Of every `stride`-th weight."""
        return DeviceKeys(self._table, stride=stride)

    def find_inside(self, low: int, high: int) -> "DeviceInside":
        """Once more, with room for all, where a bracket holds more than was thought."""
        room = self._table.numel // _ROOM + _BLOCK
        while True:
            counts, keys, places = self._collect(low, high, room)
            below, count, non_finite = counts.tolist()
            if count <= room:
                return DeviceInside(below, non_finite, keys[:count], places[:count], self._table)
            room = count

    def _collect(self, low: int, high: int, room: int) -> tuple[torch.Tensor, ...]:
        """Counts int64 [3] below, inside and not finite; keys int32 and places int64 [room]."""
        from sparsity.selection import kernels

        device = self._table.device
        counts = torch.zeros(3, dtype=torch.int64, device=device)
        keys = torch.empty(room, dtype=torch.int32, device=device)
        places = torch.empty(room, dtype=torch.int64, device=device)
        self._table.launch(
            kernels.collect, low, high, room, counts, keys, places, tile=_TILE, TILE=_TILE
        )
        return counts, keys, places


class DeviceInside:
    """The weights in a bracket, in any order."""

    def __init__(
        self, below: int, non_finite: int, keys: torch.Tensor, places: torch.Tensor, table: Table
    ) -> None:
        """`keys` int32 [c] and `places` int64 [c], counted over the table's rows, are of each."""
        self.below, self.count, self.non_finite = below, keys.numel(), non_finite
        self._keys, self._places, self._table = keys, places, table

    @property
    def keys(self) -> DeviceKeys:
        """Of what was collected."""
        return DeviceKeys(Table([Population(self._keys.view(torch.float32), None, 0, 0)]))

    def hash_equal(self, key: int) -> HostKeys:
        """Of what was collected, too; mostly few, so hashed on the host."""
        places = self._places[self._keys == key].sort().values.cpu().numpy()
        ends = np.searchsorted(places, self._table.before[1:])
        by_row = zip(
            self._table.populations, self._table.before, np.split(places, ends), strict=True
        )
        return HostKeys(
            [
                population.hash_positions(torch.from_numpy(here - before))
                for population, before, here in by_row
                if here.size
            ]
        )


def prune(
    populations: Mapping[FragmentMask, Population], cuts: Mapping[FragmentMask, Cut]
) -> dict[FragmentMask, tuple[int, int]]:
    """Prune the masks of whole fragments up to their cuts, in one launch; see FragmentMask.prune.

    Args:
        populations: of each mask, the fragment's weights; those it does not call live stay.
        cuts: of each mask, at least one, with bits >= 0.
    """
    from sparsity.selection import kernels

    masks = list(populations)
    fragments = [mask.fragment for mask in masks]
    table = Table(
        [populations[mask] for mask in masks],
        [mask.keep.data_ptr() for mask in masks],
        [cuts[mask].bits for mask in masks],
        [_unsigned_tie(cuts[mask]) for mask in masks],
        [mask.uid for mask in masks],
        [fragment.start for fragment in fragments],
        [fragment.owned.start for fragment in fragments],
        [fragment.owned.stop for fragment in fragments],
    )
    for mask in masks:
        table.check_address(mask.keep, torch.int8, populations[mask].weights.numel())
    counted = torch.zeros((2, len(masks)), dtype=torch.int64, device=table.device)
    table.launch(kernels.prune, counted[0], counted[1], tile=_TILE, TILE=_TILE)
    return dict(zip(masks, map(tuple, counted.T.tolist()), strict=True))


def _unsigned_tie(cut: Cut) -> int:
    """The last hash that goes, as the int64 with its bits; all go without one."""
    return -1 if cut.tie is None else cut.tie ^ -_SIGN
