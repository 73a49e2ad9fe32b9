"""The training loop: plain PyTorch, no cluster, the same for one worker and for many."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch

from recray.config import Settings
from recray.data.negatives import NegativeSampler
from recray.errors import RecrayError
from recray.evaluation.metrics import RATING
from recray.models.base import Model, Statistics
from recray.models.factorization import BPMFMean
from recray.models.objectives import BPMF, ImplicitALS, Objective, PairLoss, SampledLoss, as_linear
from recray.schema import TIMINGS
from recray.training.als import AlternatingEpochs
from recray.training.checkpoint import Checkpoint, Progress, RunFolder
from recray.training.collectives import Workers
from recray.training.epochs import Epochs, GradientEpochs, Shard, UserEpochs
from recray.training.gibbs import GibbsEpochs
from recray.training.streaming import StreamedEpochs, StreamedShard, columns_of

Validate = Callable[[Model], dict[str, tuple[float, float]]]
"""From the model to (sum, count) of each metric over this worker's users."""
Report = Callable[[dict[str, float]], None]

ASK_EVERY_S = 5.0
LOWER_IS_BETTER = RATING


def statistics_of(shard: Shard | StreamedShard, items: int, workers: Workers) -> Statistics:
    """Sums and counts of the ratings of all workers."""
    sums = torch.zeros(2, items, dtype=torch.float64)
    own = torch.full((2,), -math.inf, dtype=torch.float64)  # of -lowest and highest
    for _user, item, rating in columns_of(shard):
        stars = rating.double()
        for row, values in enumerate((stars, torch.ones_like(stars))):
            sums[row].index_add_(0, item, values)
        if len(stars):
            own = torch.maximum(own, torch.stack([-stars.min(), stars.max()]))
    workers.sum(sums)
    low, high = _extremes(own, workers)
    return Statistics(sums[0], sums[1], low, high)


def _extremes(own: torch.Tensor, workers: Workers) -> tuple[float, float]:
    """Lowest and highest rating of all workers, each told through its own row of a sum."""
    table = torch.zeros(workers.size, 2, dtype=torch.float64)
    table[workers.rank] = own.nan_to_num(neginf=-1e30)
    workers.sum(table)
    return -float(table[:, 0].max()), float(table[:, 1].max())


def epochs_of(
    model: Model,
    objective: Objective,
    shard: Shard | StreamedShard,
    settings: Settings,
    workers: Workers,
) -> Epochs:
    """The kind of epoch that the objective needs."""
    objective.check(model)
    if isinstance(shard, StreamedShard):
        if not isinstance(objective, PairLoss):
            raise ValueError(f"{type(objective).__name__} cannot be streamed: see check_streaming")
        sampler = _sampler(model, shard, settings, workers)
        return StreamedEpochs(model, objective, shard, settings.train, workers, sampler)
    if isinstance(objective, ImplicitALS):
        return AlternatingEpochs(as_linear(model), objective, shard, workers.slow())
    if isinstance(objective, BPMF) and isinstance(model, BPMFMean):
        return GibbsEpochs(model, objective, shard, settings.train.seed, workers.slow())
    if not isinstance(objective, PairLoss):
        raise ValueError(f"{type(objective).__name__} has no training loop")
    if isinstance(objective, SampledLoss) and objective.negatives is None:
        return UserEpochs(model, objective, shard, settings.train, workers)
    sampler = _sampler(model, shard, settings, workers)
    return GradientEpochs(model, objective, shard, settings.train, workers, sampler)


def _sampler(
    model: Model, shard: Shard | StreamedShard, settings: Settings, workers: Workers
) -> NegativeSampler | None:
    """What draws the negatives of the objective, None if it has none."""
    wanted = settings.objective
    if not settings.ranks or wanted.negatives == "all":
        return None
    popularity = known = None
    if wanted.sampling == "popularity":
        counts = (torch.bincount(item, minlength=model.items) for _, item, _ in columns_of(shard))
        popularity = workers.sum(sum(counts, torch.zeros(model.items, dtype=torch.float64)))
    if wanted.reject_seen and isinstance(shard, Shard):  # check_streaming refuses the other
        known = torch.sort(shard.user * model.items + shard.item).values
    return NegativeSampler(model.items, wanted.negatives, popularity, known)


class Farewell:
    """Writes one checkpoint between two steps when the group is about to be taken away.

    Args:
        leaving: Whether it is; a question to the whole group, so all workers ask after the same
            steps: rank 0's clock decides when next, and tells the others.
        save: Writes the checkpoint after so many steps.
        workers: The group.
    """

    def __init__(
        self, leaving: Callable[[], bool], save: Callable[[int], None], workers: Workers
    ) -> None:
        self.leaving, self.save, self.workers = leaving, save, workers
        self.wait, self.interval, self.asked, self.done = 1, 1, time.monotonic(), False

    def __call__(self, step: int) -> None:
        """Ask, if it is time; `step` steps of the epoch are done."""
        self.wait -= 1
        if self.wait > 0 or self.done:
            return
        now = time.monotonic()
        steps = self.interval * ASK_EVERY_S / max(now - self.asked, 1e-6)
        bounded = min(max(int(steps), 1), 10 * self.interval)
        (wait,) = self.workers.sum_floats(float(bounded) if self.workers.rank == 0 else 0.0)
        self.wait = self.interval = int(wait)
        self.asked = now
        if self.leaving():
            self.save(step)
            self.done = True


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
        leaving: Whether this group is about to be taken away, the same on every worker; asked
            every few seconds. A checkpoint is then written between two steps.
    """

    settings: Settings
    model: Model
    objective: Objective
    shard: Shard | StreamedShard
    folder: RunFolder
    workers: Workers
    validate: Validate | None
    report: Report
    start: Callable[[Model], None] | None = None
    leaving: Callable[[], bool] | None = None

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
        self.workers.slow().barrier()
        if self.leaving is not None:
            save = partial(self._save, epochs, progress)
            epochs.on_step(Farewell(self.leaving, save, self.workers))
        yield progress
        while progress.epoch < self.settings.train.epochs and not progress.stopped:
            self._epoch(epochs, progress)
            yield progress

    def _restore(self, epochs: Epochs) -> Progress:
        checkpoint = self.folder.latest(warn=False)  # whoever began this has told of it
        if checkpoint is None:
            whole = statistics_of(self.shard, self.model.items, self.workers.slow())
            self.model.init_from_statistics(whole)
            if self.start is not None:
                self.start(self.model)
            return Progress()
        checkpoint.refuse_misfit(self.model.state_dict(), str(self.folder.folder))
        self.model.load_state_dict(checkpoint.weights)
        epochs.load_state(checkpoint.optimizer)
        progress, losses = checkpoint.progress, checkpoint.losses
        if losses is not None and len(losses) == self.workers.size:
            epochs.continue_at(progress.step, losses[self.workers.rank])
        progress.step = 0  # with other workers the epoch begins again, with the tables as they are
        return progress

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
        trained = time.perf_counter()
        metrics = {"loss": loss_sum / rows, **self._validation()}
        progress.epoch += 1
        # Rank 0's clock for everybody: decisions and history must not differ between workers.
        clock = (trained - begin, time.perf_counter() - begin) if self.workers.rank == 0 else (0, 0)
        training, seconds = self.workers.slow().sum_floats(*clock)
        self._judge(progress, metrics)
        timings = (round(seconds, 4), round(rows / max(training, 1e-9)))
        entry = {"epoch": progress.epoch, **metrics, **dict(zip(TIMINGS, timings, strict=True))}
        progress.history.append(entry)
        self._save(epochs, progress)
        self.report(entry)

    def _save(self, epochs: Epochs, progress: Progress, step: int = 0) -> None:
        """Write a checkpoint, at the end of an epoch or after a step; all workers at once."""
        losses = None
        if step:
            epochs.gather()
            own = epochs.losses_so_far()
            losses = own.new_zeros(self.workers.size, len(own))
            losses[self.workers.rank] = own
            self.workers.slow().sum(losses)
        if self.workers.rank == 0:
            weights = {k: v.detach().contiguous() for k, v in self.model.state_dict().items()}
            at = replace(progress, step=step)
            self.folder.save(Checkpoint(weights, epochs.state(), at, losses))
        self.workers.slow().barrier()

    def _validation(self) -> dict[str, float]:
        if self.validate is None:
            return {}
        self.model.eval()
        with torch.no_grad():
            sums = self.validate(self.model)
        names = sorted(sums)
        flat = self.workers.slow().sum_floats(*(number for name in names for number in sums[name]))
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
