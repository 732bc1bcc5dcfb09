"""torch.ops.sparsebert.encoder: the kernel as an operator that compile and export can see through.

encoder(x [B, S, H], mask or None, packed) -> [B, S, H]
"""

import torch

from sparsebert.inference.errors import BadInput
from sparsebert.inference.library import load_kernel, verify

_library = torch.library.Library("sparsebert", "FRAGMENT")  # type: ignore[no-untyped-call]
_SCHEMA = "encoder(Tensor x, Tensor? mask, Tensor packed) -> Tensor"
_library.define(_SCHEMA)  # type: ignore[no-untyped-call]


def _encode(x: torch.Tensor, mask: torch.Tensor | None, packed: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32:
        raise BadInput(
            f"the sparse encoder computes in float32, but its input is {x.dtype}: call "
            "model.float(), and leave autocast, before the forward"
        )
    kernel = load_kernel()
    hidden, heads = verify(kernel, packed)
    if x.dim() != 3 or x.shape[2] != hidden:
        raise BadInput(f"the sparse encoder takes [batch, length, {hidden}], not {list(x.shape)}")
    scores_mask = None if mask is None else prepare_mask(mask, x.shape[0], x.shape[1], heads)
    return kernel.encode(x.contiguous(), scores_mask, packed, torch.get_num_threads())


def _encode_fake(x: torch.Tensor, mask: torch.Tensor | None, packed: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


_library.impl("encoder", _encode, "CPU")  # type: ignore[no-untyped-call]
torch.library.register_fake("sparsebert::encoder", _encode_fake, lib=_library)


def prepare_mask(mask: torch.Tensor, batch: int, length: int, heads: int) -> torch.Tensor:
    """What is added to the scores, fp32 [B, heads, S, S] with strides of 0 where it repeats.

    A [B, S] mask tells the tokens to attend to, as flash attention takes it (bool, or numbers that
    are not 0); fp32 of that shape is added, as with four dimensions. A bool mask of four dimensions
    has True where a query attends to a key; any other is added.

    Only what is stored is converted. A mask that repeats over the queries becomes one row a
    sequence, also where transformers has written it out: that row tells the tokens of padding.

    Raises:
        BadInput: the shape does not fit.
    """
    if mask.dim() == 2 and mask.shape == (batch, length):
        mask = mask[:, None, None, :].expand(batch, 1, length, length)
        if not mask.dtype.is_floating_point:
            mask = mask != 0
    wanted = (batch, heads, length, length)
    if mask.dim() != 4 or any(n not in (1, w) for n, w in zip(mask.shape, wanted, strict=True)):
        raise BadInput(
            f"the attention mask has the shape {list(mask.shape)}, but the encoder takes "
            f"[{batch}, {length}] or [{batch}, 1, {length}, {length}]"
        )
    stored = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride())]
    if stored.shape[2] > 1 and torch.equal(stored, stored[:, :, :1].expand(stored.shape)):
        stored = stored[:, :, :1]
    if stored.dtype == torch.bool:
        stored = torch.zeros(stored.shape).masked_fill_(~stored, -torch.inf)
    return stored.to(torch.float32).expand(wanted)
