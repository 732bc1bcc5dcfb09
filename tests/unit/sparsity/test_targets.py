import pytest

from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig, SparsityGroup
from sparsity.targets import Scope, build_scopes

SHAPES = {"a": (5, 2), "embedding": (1000,), "b": (5,), "c": (0, 4)}
PRUNABLE = ["b", "a", "c"]


def test_one_scope_over_all_prunable_weights_and_no_others() -> None:
    config = SparsityConfig(prune_end_step=1)
    assert build_scopes(config, PRUNABLE, SHAPES) == (Scope(("b", "a", "c"), 15, 0.9),)


def test_one_scope_a_tensor_in_the_order_given() -> None:
    config = SparsityConfig(scope="per_tensor", final_sparsity=0.5, prune_end_step=1)
    scopes = build_scopes(config, PRUNABLE, SHAPES)
    assert scopes == (Scope(("b",), 5, 0.5), Scope(("a",), 10, 0.5), Scope(("c",), 0, 0.5))
    # Each tensor rounds on its own: 2.5, 5 and 0, halves up.
    assert [scope.pruned_count(config, 1) for scope in scopes] == [3, 5, 0]


def test_nothing_to_prune_is_refused() -> None:
    with pytest.raises(BadInput, match="no prunable weights"):
        build_scopes(SparsityConfig(prune_end_step=1), [], SHAPES)


def test_an_unknown_name_does_not_pass_silently() -> None:
    with pytest.raises(KeyError, match="missing"):
        build_scopes(SparsityConfig(prune_end_step=1), ["a", "missing"], SHAPES)


def test_groups_take_what_they_match_first() -> None:
    shapes = {f"layer.{i}.{part}.weight": (4, 8) for i in range(2) for part in ("key", "ffn")}
    groups = [
        SparsityGroup(match="*.1.*", final_sparsity=0.5),
        SparsityGroup(match="*.key.*", final_sparsity=0.75),
    ]
    config = SparsityConfig(prune_end_step=1, groups=groups)
    first, second, rest = build_scopes(config, list(shapes), shapes)
    assert first.names == ("layer.1.key.weight", "layer.1.ffn.weight")
    assert (second.names, rest.names) == (("layer.0.key.weight",), ("layer.0.ffn.weight",))
    assert [s.pruned_count(config, 1) for s in (first, second, rest)] == [32, 24, 29]


def test_a_group_that_matches_nothing_is_named() -> None:
    groups = [SparsityGroup(match="*.nothing.*", final_sparsity=0.5)]
    with pytest.raises(BadInput, match=r"sparsity.groups.0.match \*.nothing.\* takes no prunable"):
        build_scopes(SparsityConfig(prune_end_step=1, groups=groups), PRUNABLE, SHAPES)


def test_blocks_count_whole_blocks() -> None:
    config = SparsityConfig(prune_end_step=1, pattern="4x2", final_sparsity=0.5)
    (scope,) = build_scopes(config, ["a"], {"a": (12, 10)})
    # Fifteen blocks of eight weights: half of them are 7.5, rounded up.
    assert scope.pruned_count(config, 1) == 64


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pattern": "2:4"}, "sparsity.final_sparsity is 0.9, but sparsity.pattern 2:4 prunes at"),
        ({"pattern": "banana"}, "sparsity.pattern is banana: write unstructured, N:M"),
        (
            {"groups": [{"match": "*", "final_sparsity": 0.1}], "initial_sparsity": 0.2},
            "is above sparsity.groups.0.final_sparsity",
        ),
    ],
)
def test_impossible_settings_are_named(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SparsityConfig.model_validate({"prune_end_step": 1, **changes})
