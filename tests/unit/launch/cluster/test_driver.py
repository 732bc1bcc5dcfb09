"""The parts of the Ray driver that need no Ray; tests/integration has the rest."""

import pytest

from launch.cluster.nodes import choose_gpu, count_places, describe_nodes
from training.config import LaunchConfig


@pytest.mark.parametrize(
    ("cpus_per_worker", "nodes", "places"),
    [
        (1, [{"CPU": 2.0}], 2),
        (1.5, [{"CPU": 2.0}, {"CPU": 4.0}], 3),  # a worker is not split over two nodes
        (0.1, [{"CPU": 0.3}], 3),
        (1, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0}], 16),
        (1, [{"GPU": 2.0}], 0),
    ],
)
def test_places(cpus_per_worker: float, nodes: list[dict[str, float]], places: int) -> None:
    launch = LaunchConfig(cpus_per_worker=cpus_per_worker)
    assert count_places(launch, nodes, use_gpu=False) == places


def test_places_with_gpus() -> None:
    launch, nodes = LaunchConfig(), [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 1.0, "GPU": 4.0}]
    assert choose_gpu(launch, nodes)
    assert not choose_gpu(launch, [{"CPU": 8.0}])
    assert not choose_gpu(LaunchConfig(use_gpu=False), nodes)
    assert count_places(launch, nodes, use_gpu=True) == 3


def test_a_cluster_in_words() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {}]
    assert describe_nodes(nodes) == (
        "4 node(s): 2 with 8 CPUs and 2 GPUs, 1 with 4 CPUs and 0 GPUs, 1 with 0 CPUs and 0 GPUs"
    )
