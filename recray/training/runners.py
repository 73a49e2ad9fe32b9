"""Which kind of epoch an objective needs."""

import torch

from recray.config import Settings
from recray.data.negatives import NegativeSampler
from recray.models.base import Model
from recray.models.factorization import BPMFMean
from recray.models.history import ClosedForm
from recray.models.objectives import (
    BPMF,
    ImplicitALS,
    Objective,
    PairLoss,
    SampledLoss,
    as_linear,
)
from recray.models.objectives.next_item import NextItem
from recray.models.sequence import Sequence
from recray.training.als import CG_STEPS, ALSEpochs
from recray.training.closed_form import ClosedFormFit
from recray.training.epochs import AllItemsEpochs, EpochRunner, PairEpochs
from recray.training.gibbs import GibbsSampler
from recray.training.next_item import NextItemEpochs
from recray.training.shard import Shard, Workers
from recray.training.streaming import StreamedShard


def epoch_runner(
    model: Model,
    objective: Objective,
    shard: Shard | StreamedShard,
    settings: Settings,
    workers: Workers,
) -> EpochRunner:
    """Build the kind of epoch that the objective needs."""
    objective.check(model)
    all_items = isinstance(objective, SampledLoss) and objective.negatives is None
    if isinstance(objective, PairLoss) and not all_items:
        sampler = _sampler(model, shard, settings, workers)
        return PairEpochs(model, objective, shard, settings.train, workers, sampler)
    if isinstance(shard, StreamedShard):
        raise ValueError(f"{type(objective).__name__} cannot be streamed: see check_streaming")
    if isinstance(objective, SampledLoss):
        return AllItemsEpochs(model, objective, shard, settings.train, workers)
    if isinstance(objective, NextItem) and isinstance(model, Sequence):
        return NextItemEpochs(model, objective, shard, settings.train, workers)
    group = workers.with_long_timeout()
    if isinstance(objective, ImplicitALS):
        steps = CG_STEPS if settings.train.solver == "cg" else None
        return ALSEpochs(as_linear(model), objective, shard, group, steps)
    if isinstance(objective, BPMF) and isinstance(model, BPMFMean):
        return GibbsSampler(model, objective, shard, settings.train.seed, group)
    if isinstance(model, ClosedForm):
        return ClosedFormFit(model, shard, group)
    raise ValueError(f"{type(objective).__name__} has no training loop")


def _sampler(
    model: Model, shard: Shard | StreamedShard, settings: Settings, workers: Workers
) -> NegativeSampler | None:
    """Build what draws the negatives of the objective; None if it has none."""
    objective = settings.objective
    if not settings.ranks or isinstance(objective.negatives, str):
        return None
    popularity = known = None
    if objective.sampling == "popularity":
        counts = (torch.bincount(item, minlength=model.items) for _, item, _ in shard.chunks())
        popularity = workers.sum(sum(counts, torch.zeros(model.items, dtype=torch.float64)))
    if objective.reject_seen and isinstance(shard, Shard):  # check_streaming refuses the other
        known = torch.sort(shard.user * model.items + shard.item).values
    return NegativeSampler(model.items, objective.negatives, popularity, known)
