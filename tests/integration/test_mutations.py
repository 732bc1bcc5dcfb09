"""Break one thing at a time: some test must fail, or what it claims is not tested."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.integration.forking import ForkServer

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
# A failure need not be told by the smallest example.
PYTEST = """
import pytest, sys
from hypothesis import Phase, settings
settings.register_profile("find", phases=[Phase.explicit, Phase.generate])
settings.load_profile("find")
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", *arguments]))
"""
COPIED = ("distributed", "sparsity", "training", "bert", "launch", "tests", "pyproject.toml")


class Mutation(NamedTuple):
    """`old` becomes `new` in `file`; `test` must notice."""

    file: str
    old: str
    new: str
    test: str


THRESHOLD = "tests/unit/sparsity/selection/test_threshold.py"
DEVICE = "tests/unit/sparsity/selection/test_device.py"
STRUCTURED = "tests/unit/sparsity/patterns/test_structured.py"
OLD_RUNS = "tests/multiprocess/test_old_runs.py"
ATTACH = "tests/multiprocess/test_attach.py::test_three_lines_prune_any_module"
MUTATIONS = {
    "padding is included": Mutation(
        "distributed/partition.py",
        "length = min(max(parameter.ds_numel - start, 0), share)",
        "length = share",
        f"{ATTACH}[2-fp32]",
    ),
    "a parameter group is forgotten": Mutation(
        "distributed/partition.py",
        "in enumerate(parameter_groups(self._engine)):\n            flat =",
        "in enumerate(parameter_groups(self._engine)[:1]):\n            flat =",
        f"{ATTACH}[2-fp32]",
    ),
    "replicas are counted by every rank": Mutation(
        "distributed/partition.py",
        "start, stop = (min(r * share, numel) for r in (self.rank, self.rank + 1))",
        "start, stop = 0, numel",
        f"{ATTACH}[2-fp32]",
    ),
    "only the low-precision copy is masked": Mutation(
        "sparsity/controller.py",
        "run.apply(master.detach())",
        "[m.apply(self._partition.weight(f)) for f, m in self._masks.items()]",
        f"{ATTACH}[2-bf16]",
    ),
    "only the first master is masked": Mutation(
        "sparsity/controller.py",
        "                run.apply(master.detach())",
        "                run.apply(master.detach()) if slot == 0 else None",
        f"{ATTACH}[2-fp32]",
    ),
    "a group's weights are ranked with the others": Mutation(
        "sparsity/targets.py",
        "members[matches[0] if matches else -1].append(name)",
        "members[-1].append(name)",
        "tests/unit/sparsity/test_targets.py",
    ),
    "an earlier mask of another pattern passes": Mutation(
        "sparsity/patterns/structured.py",
        "if unfit := self._count_emptied(table.view(-1, m)):",
        "if False:",
        f"{STRUCTURED}::test_masks_of_another_pattern_are_refused",
    ),
    "pruned gradients reach the clip norm": Mutation(
        "sparsity/controller.py",
        "                mask.apply(gradient)",
        "                pass",
        "tests/multiprocess/test_engine.py::test_pruned_gradients_are_out_of_norm_and_moments[2]",
    ),
    "a skipped step counts as applied": Mutation(
        "sparsity/controller.py",
        "        if applied:",
        "        if True:",
        "tests/multiprocess/test_attach.py::test_an_overflow_leaves_the_update_pending",
    ),
    "all ties go": Mutation(
        "sparsity/selection/threshold.py",
        "selected[at] = hashes <= self.tie",
        "pass",
        f"{THRESHOLD}::test_a_cut_tells_its_threshold_and_ties",
    ),
    "ties go by their place on the rank": Mutation(
        "sparsity/selection/population.py",
        "position_hash(self.uid, indices + self.start)",
        "position_hash(self.uid, indices)",
        f"{THRESHOLD}::test_any_number_of_ranks_gives_the_same_masks",
    ),
    "counts are floats": Mutation(
        "sparsity/selection/host.py",
        "counts = torch.zeros(1 << bits, dtype=torch.int64)",
        "counts = torch.zeros(1 << bits)",
        f"{THRESHOLD}::test_any_number_of_ranks_gives_the_same_masks",
    ),
    "ties are told apart by too few digits": Mutation(
        "sparsity/selection/threshold.py",
        "if search.wanted != search.size]\n        if not open_:",
        "if search.wanted != search.size][:0]\n        if not open_:",
        f"{THRESHOLD}::test_any_number_of_ranks_gives_the_same_masks",
    ),
    "a GPU prunes all ties": Mutation(
        "sparsity/selection/kernels.py",
        "((bits == cut) & (hashes <= tie))",
        "(bits == cut)",
        f"{DEVICE}::test_masks_equal_the_oracle",
    ),
    "a GPU counts what is pruned": Mutation(
        "sparsity/selection/kernels.py",
        "return (at < stop) & (tl.load(keep + at, mask=at < masked, other=-1) != 0)",
        "return at < stop",
        f"{DEVICE}::test_masks_equal_the_oracle",
    ),
    "a bracket is trusted when it missed": Mutation(
        "sparsity/selection/threshold.py",
        "        if below < counts[s] <= below + count\n",
        "        if count\n",
        f"{THRESHOLD}::test_brackets_that_hit_and_that_miss",
    ),
    "pruned weights are counted again": Mutation(
        "sparsity/patterns/single.py",
        "Population(self._masters[mask], mask.keep, mask.uid",
        "Population(self._masters[mask], None, mask.uid",
        f"{THRESHOLD}::test_updates_add_up",
    ),
    "infinity passes": Mutation(
        "sparsity/selection/threshold.py",
        "if check_finite and i == 0 and int(total[:, NON_FINITE >> shift :].sum()):",
        "if False:",
        f"{THRESHOLD}::test_non_finite_weights_are_refused_by_all",
    ),
    "a group loses one weight too many": Mutation(
        "sparsity/patterns/structured.py",
        "eligible = _rank_in_group(order) < m - self.pattern.rows",
        "eligible = _rank_in_group(order) <= m - self.pattern.rows",
        f"{STRUCTURED}::test_n_of_m_in_any_partitions",
    ),
    "a straddling group is ranked by halves": Mutation(
        "sparsity/patterns/structured.py",
        "order[stripe - first] = table[self._place[f.name, stripe]].to(order.device)",
        "pass",
        f"{STRUCTURED}::test_n_of_m_in_any_partitions",
    ),
    "a straddling block is scored by halves": Mutation(
        "sparsity/patterns/structured.py",
        "self._stripe(mask, sums[mask], stripe).copy_(whole[:units])",
        "pass",
        f"{STRUCTURED}::test_blocks_in_any_partitions",
    ),
    "masks have another key in checkpoints": Mutation(
        "distributed/checkpoint/reading.py",
        'MASTER, MASK = "master", "keep_mask"',
        'MASTER, MASK = "master", "mask"',
        f"{OLD_RUNS}::test_a_checkpoint_says_what_it_said[runs/single]",
    ),
    "a manifest is sealed under another name": Mutation(
        "distributed/checkpoint/manifest.py",
        '_SEAL = "sha256"',
        '_SEAL = "seal"',
        f"{OLD_RUNS}::test_a_checkpoint_says_what_it_said[runs/single]",
    ),
    "a corpus has another file of counts": Mutation(
        "bert/corpora/manifest.py",
        '"unigram_counts.npy"',
        '"counts.npy"',
        f"{OLD_RUNS}::test_a_stopped_run_goes_on[single-1-0]",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project without what it does not need to be tested."""
    folder = tmp_path_factory.mktemp("mutated")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def run_test(copy: Path) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Run one test of the copy in a process of its own: pytest's exit code, and what it printed.

    Each process is a fork of one that has imported the libraries and nothing of the project.
    """
    environ = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",
        "TRITON_INTERPRET": "1",
        "SPARSEBERT_TEST_POOL": "fork",
    }
    preload = ("pytest", "hypothesis", "torch", "deepspeed", "transformers", "numpy.testing")
    out, err = copy / "stdout", copy / "stderr"
    with ForkServer(preload, env=environ, cwd=copy) as server:

        def run_test(test: str) -> tuple[int, str]:
            code = server.run(PYTEST, test, out=out, err=err, cwd=copy)
            return code, out.read_text()[-3000:] + err.read_text()[-1000:]

        yield run_test


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_test_notices(copy: Path, name: str, run_test: Callable[[str], tuple[int, str]]) -> None:
    mutation = MUTATIONS[name]
    if mutation.test.startswith(DEVICE):
        pytest.importorskip("triton", reason="Triton is there on Linux only")
    file = copy / mutation.file
    original = file.read_text()
    assert original.count(mutation.old) == 1, f"{mutation.file} no longer has: {mutation.old}"
    file.write_text(original.replace(mutation.old, mutation.new))
    try:
        code, told = run_test(mutation.test)
    finally:
        file.write_text(original)
    assert code == 1, told
    # It ran the mutated copy, and failed by what it saw rather than by a broken import.
    assert "1 failed" in told, told


def test_the_copy_passes_unbroken(run_test: Callable[[str], tuple[int, str]]) -> None:
    """Otherwise the failures above would show nothing."""
    for test in (
        f"{THRESHOLD}::test_updates_add_up",
        f"{DEVICE}::test_masks_equal_the_oracle",
        f"{ATTACH}[2-fp32]",
    ):
        code, told = run_test(test)
        assert code == 0, told
