"""The one epoch of a model in closed form: it is fitted, and there is nothing to go on with."""

import torch

from recray.models.history import ClosedForm
from recray.training.epochs import EpochRunner
from recray.training.shard import Shard, Workers


class ClosedFormFit(EpochRunner):
    """Fits the model to the histories of all workers; it has no steps and minimises no loss.

    Args:
        model: The model, equal on every worker.
        shard: This worker's rows, in order where the model reads it.
        workers: The group.
    """

    has_loss = False

    def __init__(self, model: ClosedForm, shard: Shard, workers: Workers) -> None:
        self.model, self.shard, self.workers = model, shard, workers

    @torch.no_grad()
    def run(self, epoch: int) -> tuple[float, float]:
        """Fit the model; return 0 in place of a loss, and this worker's rows."""
        self.model.fit(self.shard.histories, self.workers)
        return 0.0, float(self.shard.rows)
