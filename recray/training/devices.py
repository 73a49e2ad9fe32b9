"""Where a worker trains: on its CPU, or on a GPU of its own."""

from collections.abc import Callable

import torch

from recray.config import CPU_ONLY, Settings, TrainSettings
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.runtime.nodes import alive_nodes
from recray.runtime.session import LOCAL, session
from recray.training.streaming import is_streamed


def gpus_at(address: str) -> int:
    """GPUs of this machine, or of the nodes that a cluster has now."""
    if address == LOCAL:
        return torch.cuda.device_count()
    with session(address):
        return int(sum(node.resources.get("GPU", 0) for node in alive_nodes()))


def with_device(
    settings: Settings, prepared: Prepared, workers: int, gpus: Callable[[], float]
) -> Settings:
    """Settle train.device=auto: cuda where each worker has a GPU, and what it trains fits one.

    Args:
        settings: Resolved settings otherwise.
        prepared: The data set.
        workers: How many there are.
        gpus: Counts the GPUs for all of them; it is asked for auto alone.
    """
    if settings.train.device != "auto":
        return settings
    streamed = settings.train.max_rows_in_memory is not None and is_streamed(
        settings, prepared, workers
    )
    on_cpu = settings.train.optimizer in CPU_ONLY or streamed or gpus() < workers
    return settings.changed(train={"device": "cpu" if on_cpu else "cuda"})


def check_device(train: TrainSettings, workers: int, address: str) -> None:
    """Refuse a GPU where there is none, and more workers than GPUs.

    Raises:
        RecrayError: See above.
    """
    if train.device != "cuda":
        return
    gpus, where = gpus_at(address), "this machine" if address == LOCAL else "the cluster"
    if not gpus:
        raise RecrayError(
            f"train.device=cuda: {where} has no GPU that "
            f"{'torch' if address == LOCAL else 'Ray'} can use; give cpu"
        )
    if gpus < workers:
        raise RecrayError(
            f"train.device=cuda with --workers {workers}: {where} has {gpus} "
            f"GPU{'s' * (gpus > 1)}, one is needed per worker; give fewer workers, or cpu"
        )


def device_of(train: TrainSettings) -> torch.device:
    """The device that this process trains on; auto was settled before, see with_device.

    Raises:
        RecrayError: A GPU is asked for where there is none.
    """
    if train.device == "cuda" and not torch.cuda.is_available():
        raise RecrayError("train.device=cuda: there is no GPU that torch can use; give cpu")
    return torch.device(train.device)
