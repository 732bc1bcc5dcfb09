import pytest

from distributed.errors import BadInput
from sparsity.schedule import SparsityConfig
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
