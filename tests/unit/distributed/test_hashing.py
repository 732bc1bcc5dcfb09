"""Hashes against SplitMix64 in plain integers: other machines and tools get the same digests."""

import hashlib

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.hashing import hex_digest, name_hash, position_hash, unsigned_order
from tests.unit.sparsity.oracle import position_hashes

MASK = 2**64 - 1
int64 = st.integers(-(2**63), 2**63 - 1)


def splitmix64(uid: int, index: int) -> int:
    """Output number index + 1 of the generator that starts from state `uid`, unsigned."""
    x = (uid + (index + 1) * 0x9E3779B97F4A7C15) & MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def hash_of(uid: int, index: int) -> int:
    return int(position_hash(uid, torch.tensor([index]))) & MASK


def test_published_values() -> None:
    """The reference implementation's first outputs from seed 1234567 (prng.di.unimi.it)."""
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    got = position_hash(1234567, torch.arange(4))
    assert [int(h) & MASK for h in got] == want


@settings(deadline=None)
@given(uid=int64, index=st.integers(0, 2**63 - 1))
def test_position_hash_is_splitmix64(uid: int, index: int) -> None:
    assert hash_of(uid, index) == splitmix64(uid, index)


def test_any_shape_and_place_gives_the_same() -> None:
    uid, index = name_hash("a"), torch.arange(10**9, 10**9 + 24)
    whole = position_hash(uid, index)
    assert torch.equal(position_hash(uid, index.view(2, 3, 4)).flatten(), whole)
    assert torch.equal(position_hash(uid, index[::5]), whole[::5])
    assert [int(h) & MASK for h in whole] == [splitmix64(uid, int(i)) for i in index]


def test_the_oracle_of_the_other_tests_is_splitmix64_too() -> None:
    uid = name_hash("some.weight")
    assert position_hashes("some.weight", 50).tolist() == [splitmix64(uid, i) for i in range(50)]


def test_no_collisions_within_a_parameter() -> None:
    """It is a bijection of the index: looked at near 0, near 2^32, far out, and in long strides."""
    near = [torch.arange(start, start + 300_000) for start in (0, 2**32 - 150_000, 2**62)]
    far = torch.arange(300_000) * ((2**62) // 300_001) + 10**6
    index = torch.cat([*near, far]).unique()
    assert position_hash(name_hash("encoder"), index).unique().numel() == index.numel() > 1_190_000


def test_name_hash_is_blake2b_and_differs_by_name() -> None:
    digest = hashlib.blake2b(b"encoder.layer.0.output.dense.weight", digest_size=8).digest()
    want = int.from_bytes(digest, "little", signed=True)
    assert name_hash("encoder.layer.0.output.dense.weight") == want
    names = [f"encoder.layer.{i}.{part}.weight" for i in range(500) for part in ("query", "key")]
    assert len({name_hash(name) for name in names}) == 1000
    assert {name_hash(name) < 0 for name in names} == {True, False}


@settings(deadline=None)
@given(st.lists(int64, max_size=30))
def test_unsigned_order(hashes: list[int]) -> None:
    tensor = torch.tensor(hashes, dtype=torch.int64)
    order = unsigned_order(tensor).argsort(stable=True)
    assert [h & MASK for h in tensor[order].tolist()] == sorted(h & MASK for h in hashes)
    assert torch.equal(unsigned_order(unsigned_order(tensor)), tensor)


@settings(deadline=None)
@given(st.integers(-(2**70), 2**70))
def test_hex_digest(value: int) -> None:
    digest = hex_digest(value)
    assert len(digest) == 16 and digest == digest.lower()
    assert int(digest, 16) == value % 2**64


def test_hex_digest_of_signed_and_unsigned_sums_is_one() -> None:
    assert hex_digest(-1) == hex_digest(2**64 - 1) == "f" * 16
    assert hex_digest(0) == "0" * 16
