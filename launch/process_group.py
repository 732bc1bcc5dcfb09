"""The workers' process group, as Ray Train starts it, with its failures made safe to repeat."""

from typing import Any


def build_torch_config() -> Any:
    """An object for TorchTrainer(torch_config=...): a group that fails to start leaves nothing.

    An exception in one worker while the group starts ends Ray Train's run (2.60), but not the
    workers: one that waits for its peers, half an hour by default, keeps its CPU or GPU, and the
    next group would wait for that.
    """
    from ray.train.torch import TorchConfig

    class Backend(TorchConfig().backend_cls):  # type: ignore[misc]  # Ray has no types
        def on_start(self, worker_group: Any, backend_config: Any) -> None:
            try:
                super().on_start(worker_group, backend_config)
            except Exception:
                worker_group.abort()
                raise

    class Config(TorchConfig):  # type: ignore[misc]  # Ray has no types
        @property
        def backend_cls(self) -> type:
            return Backend

    return Config()
