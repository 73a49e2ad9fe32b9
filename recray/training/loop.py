"""The training loop: plain PyTorch, no cluster, the same for one worker and for many."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from recray.config import Settings
from recray.data.negatives import NegativeSampler
from recray.errors import RecrayError
from recray.models.base import Model, Statistics
from recray.models.posterior import PosteriorDot
from recray.objectives import Bayes, Contrast, Objective, PairLoss, WholeData, as_linear
from recray.training.alternating import AlternatingEpochs
from recray.training.checkpoint import Checkpoint, Progress, RunFolder
from recray.training.gibbs import GibbsEpochs
from recray.training.steps import Epochs, GradientEpochs, Shard, UserEpochs
from recray.training.sync import Workers

Validate = Callable[[Model], dict[str, tuple[float, float]]]
"""From the model to (sum, count) of each metric over this worker's users."""
Report = Callable[[dict[str, float]], None]

LOWER_IS_BETTER = ("rmse", "mae")


def statistics_of(shard: Shard, users: int, items: int, workers: Workers) -> Statistics:
    """Sums and counts of the ratings of all workers."""
    stars = shard.rating.double()
    sums = torch.zeros(2, users + items, dtype=torch.float64)
    for row, values in enumerate((stars, torch.ones_like(stars))):
        sums[row].index_add_(0, shard.user, values)
        sums[row].index_add_(0, shard.item + users, values)
    workers.sum(sums)
    low, high = _extremes(stars, workers)
    return Statistics(sums[0, :users], sums[1, :users], sums[0, users:], sums[1, users:], low, high)


def _extremes(stars: torch.Tensor, workers: Workers) -> tuple[float, float]:
    """Lowest and highest rating of all workers, each told through its own row of a sum."""
    own = [-math.inf, -math.inf] if not len(stars) else [-float(stars.min()), float(stars.max())]
    table = torch.zeros(workers.size, 2, dtype=torch.float64)
    table[workers.rank] = torch.tensor(own).nan_to_num(neginf=-1e30)
    workers.sum(table)
    return -float(table[:, 0].max()), float(table[:, 1].max())


def epochs_of(
    model: Model, objective: Objective, shard: Shard, settings: Settings, workers: Workers
) -> Epochs:
    """The kind of epoch that the objective needs."""
    objective.check(model)
    if isinstance(objective, WholeData):
        return AlternatingEpochs(as_linear(model), objective, shard, workers)
    if isinstance(objective, Bayes) and isinstance(model, PosteriorDot):
        return GibbsEpochs(model, objective, shard, settings.train.seed, workers)
    if not isinstance(objective, PairLoss):
        raise ValueError(f"{type(objective).__name__} has no training loop")
    if isinstance(objective, Contrast) and objective.negatives is None:
        return UserEpochs(model, objective, shard, settings.train, workers)
    sampler = _sampler(model, shard, settings, workers)
    return GradientEpochs(model, objective, shard, settings.train, workers, sampler)


def _sampler(
    model: Model, shard: Shard, settings: Settings, workers: Workers
) -> NegativeSampler | None:
    """What draws the negatives of the objective, None if it has none."""
    wanted = settings.objective
    if not settings.ranks or wanted.negatives == "all":
        return None
    popularity = known = None
    if wanted.sampling == "popularity":
        counts = torch.bincount(shard.item, minlength=model.items)
        popularity = workers.sum(counts.double())
    if wanted.exclude_known:
        known = torch.sort(shard.user * model.items + shard.item).values
    return NegativeSampler(model.items, wanted.negatives, popularity, known)


@dataclass(frozen=True)
class TrainingRun:
    """Everything one worker needs to train.

    Args:
        settings: The resolved settings.
        model: Equal on every worker at the start.
        objective: What is minimised.
        shard: This worker's rows.
        folder: Where checkpoints go; the same for all workers.
        workers: The group.
        validate: Sums and counts of validation metrics over this worker's users; None if there
            is no validation split.
        report: Told the summed metrics after each epoch, on every worker.
        start: Gives the model its first weights, where they are not random.
    """

    settings: Settings
    model: Model
    objective: Objective
    shard: Shard
    folder: RunFolder
    workers: Workers
    validate: Validate | None
    report: Report
    start: Callable[[Model], None] | None = None

    def fit(self) -> Progress:
        """Train from the newest checkpoint, or from the start, to the end.

        Raises:
            RecrayError: The loss is not finite any more; the last good checkpoint stays.
        """
        *_, last = self.epochs()
        return last

    def epochs(self) -> Iterator[Progress]:
        """Train as `fit` does; gives the state at the start and after each epoch.

        Raises:
            RecrayError: The loss is not finite any more.
        """
        epochs = epochs_of(self.model, self.objective, self.shard, self.settings, self.workers)
        progress = self._restore(epochs)
        yield progress
        while progress.epoch < self.settings.train.epochs and not progress.stopped:
            self._epoch(epochs, progress)
            yield progress

    def _restore(self, epochs: Epochs) -> Progress:
        checkpoint = self.folder.latest()
        if checkpoint is None:
            counts = (self.model.users, self.model.items)
            self.model.observe(statistics_of(self.shard, *counts, self.workers))
            if self.start is not None:
                self.start(self.model)
            return Progress()
        self.model.load_state_dict(checkpoint.weights)
        epochs.load_state(checkpoint.optimizer)
        return checkpoint.progress

    def _epoch(self, epochs: Epochs, progress: Progress) -> None:
        begin = time.perf_counter()
        loss_sum, rows = self.workers.sum_floats(*epochs.run(progress.epoch))
        # The loss is that before the last step, which may have been the one too far.
        whole = all(bool(torch.isfinite(p).all()) for p in self.model.parameters())
        if not (math.isfinite(loss_sum) and whole):
            step = epochs.bad_step()
            where = f"step {step} of epoch" if step is not None else "epoch"
            raise RecrayError(
                f"the loss became {loss_sum if whole else math.nan} in {where} "
                f"{progress.epoch + 1} with train.lr={self.settings.train.lr:g}; "
                "use a smaller train.lr or a larger train.l2; the last good checkpoint stays"
            )
        metrics = {"loss": loss_sum / rows, **self._validation()}
        progress.epoch += 1
        # Rank 0's clock for everybody: decisions and history must not differ between workers.
        elapsed = time.perf_counter() - begin if self.workers.rank == 0 else 0.0
        (seconds,) = self.workers.sum_floats(elapsed)
        self._judge(progress, metrics)
        entry = {"epoch": progress.epoch, **metrics, "seconds": round(seconds, 4)}
        progress.history.append(entry)
        if self.workers.rank == 0:
            weights = {k: v.detach().contiguous() for k, v in self.model.state_dict().items()}
            self.folder.save(Checkpoint(weights, epochs.state(), progress))
        self.workers.barrier()
        self.report(entry)

    def _validation(self) -> dict[str, float]:
        if self.validate is None:
            return {}
        self.model.eval()
        with torch.no_grad():
            sums = self.validate(self.model)
        names = sorted(sums)
        flat = self.workers.sum_floats(*(number for name in names for number in sums[name]))
        means = {}
        for place, name in enumerate(names):
            total, count = flat[2 * place], flat[2 * place + 1]
            mean = total / count if count else math.nan
            means[name] = math.sqrt(mean) if name == "rmse" else mean
        return means

    def _judge(self, progress: Progress, metrics: dict[str, float]) -> None:
        """Remember the best epoch; stop when patience has run out. Without validation rows the
        last epoch is the best.
        """
        name, train = self.settings.metric, self.settings.train
        if self.validate is None or not math.isfinite(metrics.get(name, math.nan)):
            progress.best_epoch = progress.epoch
            return
        value = metrics[name]
        sign = -1 if name in LOWER_IS_BETTER else 1
        if progress.best_value is None or sign * value > sign * progress.best_value:
            progress.best_epoch, progress.best_value = progress.epoch, value
        waited = progress.epoch - progress.best_epoch
        progress.stopped = train.patience is not None and waited >= train.patience
