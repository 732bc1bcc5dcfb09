"""Ray Train's trainer, without actors that nothing uses on a cluster of the run's own.

Ray Train starts a process each for the data sets of a run (ours has none of Ray's), for removing
the placement group of a controller that was lost (the cluster ends with the run) and for asking an
autoscaler for nodes (there is one machine). Ray 2.60 has no option for it, so private names of that
version are used here, and only here; tests/integration/test_pretraining.py sees when they change.
"""

from typing import Any


def build_trainer(*, is_own_cluster: bool, **arguments: Any) -> Any:
    """A `DataParallelTrainer` with these arguments.

    Args:
        is_own_cluster: the cluster is this run's alone, on one machine, and ends with its driver.
        arguments: of DataParallelTrainer.
    """
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    if not is_own_cluster:
        return DataParallelTrainer(**arguments)

    from ray.train.v2._internal.callbacks import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import (
        PlacementGroupCleanerCallback,
    )
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy

    class OneSize(FixedScalingPolicy):  # type: ignore[misc]  # Ray has no types
        """Asks no autoscaler for nodes."""

        def after_controller_start(self, train_run_context: Any) -> None:
            pass

        def _maybe_send_resource_request(self) -> None:
            pass

    class Trainer(DataParallelTrainer):  # type: ignore[misc]  # Ray has no types
        def _initialize_and_run_controller(self, **controller: Any) -> Any:
            unused = DatasetsCallback, PlacementGroupCleanerCallback
            controller["callbacks"] = [
                callback for callback in controller["callbacks"] if not isinstance(callback, unused)
            ]
            controller["scaling_policy"] = OneSize(self.scaling_config)
            return super()._initialize_and_run_controller(**controller)

    return Trainer(**arguments)
