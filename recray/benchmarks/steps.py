"""What `recray benchmark train` times: one pass over generated ratings, in each of several ways."""

# Shape letters: B = pairs of a batch, K = negatives of a rating.

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from recray.config import Settings, load_settings
from recray.data.negatives import NegativeSampler
from recray.models import build_model
from recray.models.base import Model
from recray.models.objectives import PairLoss, build_objective
from recray.training.devices import device_of
from recray.training.epochs import PairEpochs
from recray.training.optimizers import pairs_of
from recray.training.own_users import OwnUsers
from recray.training.shard import Shard, Workers

NEGATIVES = 4
LOOP_BATCH = 512
SIZES = {
    "sample": (600, 1_500),
    "ml-1m": (6_040, 3_706),
    "ml-20m": (138_493, 26_744),
    "ml-25m": (162_541, 59_047),
}
MODELS = {
    "dot": ["model.kind=dot", "model.dim=64"],
    "neumf": ["model.kind=neumf", "model.dim=64", "model.mlp_dim=64", "model.layers=[128,64,32]"],
}


@dataclass(frozen=True)
class Case:
    """One thing to time.

    Args:
        model: dot or neumf.
        size: Whose tables: one of SIZES.
        batch: Pairs of a step over all workers: ratings and their negatives.
        steps: Steps of one pass.
        changes: Settings beside those of the model.
    """

    model: str
    size: str
    batch: int
    steps: int
    changes: tuple[str, ...] = ("train.optimizer=adagrad", "train.lr=0.05")

    @property
    def rows(self) -> int:
        """Ratings of a step."""
        return self.batch // (1 + NEGATIVES)

    @property
    def settings(self) -> Settings:
        """What recray trains with."""
        given = ["objective.kind=logistic", f"objective.negatives={NEGATIVES}", "train.l2=0"]
        given += [f"train.batch_size={self.rows}"]
        return load_settings("dot-mse", None, [*given, *MODELS[self.model], *self.changes])

    def build(self, workers: Workers) -> Model:
        """The untrained model, with rows of this worker's users."""
        torch.manual_seed(0)
        return build_model(self.settings, len(self.users(workers)), SIZES[self.size][1])

    def users(self, workers: Workers) -> OwnUsers:
        """Every user whose number is the worker's, modulo their number."""
        users, _ = SIZES[self.size]
        ids = np.arange(workers.rank, users, workers.size)
        return OwnUsers.of([workers.rank], [ids], users)

    def shard(self, workers: Workers) -> Shard:
        """Ratings whose items are as unevenly liked as those of MovieLens; users by the worker."""
        own, (_, items) = self.users(workers), SIZES[self.size]
        generator = torch.Generator().manual_seed(workers.rank)
        count = self.rows * self.steps // workers.size
        user = torch.randint(0, len(own), (count,), generator=generator).sort().values
        place = items ** torch.rand(count, generator=generator, dtype=torch.float64) - 1
        return Shard(user, place.long(), torch.ones(count), own)


Pass = Callable[[], int]
"""Trains once over the ratings; returns the pairs of all workers."""


def recray_pass(case: Case, workers: Workers) -> tuple[Pass, float]:
    """recray's own epoch, and the bytes that a worker receives in a step."""
    settings, model = case.settings, case.build(workers).to(device_of(case.settings.train))
    objective = build_objective(settings, 1.0, 5.0)
    if not isinstance(objective, PairLoss):
        raise ValueError("the benchmark trains on pairs")
    sampler = NegativeSampler(model.items, NEGATIVES)
    shard = case.shard(workers)
    epochs = PairEpochs(model, objective, shard, settings.train, workers, sampler)
    number = iter(range(1 << 30))

    def run() -> int:
        epochs.run(next(number))
        return sum(epochs.plan.rows) * (pairs_of(settings) or 1)

    return run, epochs.step.bytes_per_step if workers.size > 1 else 0.0


class Pairs(Dataset[tuple[int, int, float]]):
    """A row at a time, as tutorials have it: each rating, then negatives nobody has drawn before.

    Args:
        shard: The ratings.
        items: Number of items.
    """

    def __init__(self, shard: Shard, items: int) -> None:
        self.user, self.item, self.items = shard.user.tolist(), shard.item.tolist(), items
        self.known = set(zip(self.user, self.item, strict=True))

    def __len__(self) -> int:
        """Ratings and negatives."""
        return len(self.user) * (1 + NEGATIVES)

    def __getitem__(self, index: int) -> tuple[int, int, float]:
        """User, item, and whether it is a rating."""
        row, place = divmod(index, 1 + NEGATIVES)
        user = self.user[row]
        if place == 0:
            return user, self.item[row], 1.0
        item = random.randrange(self.items)
        while (user, item) in self.known:
            item = random.randrange(self.items)
        return user, item, 0.0


def loop_pass(case: Case) -> Pass:
    """The usual loop: a Dataset with __getitem__, a DataLoader, batches of 512, Adam."""
    model, shard = case.build(Workers()), case.shard(Workers())
    pairs = Pairs(shard, model.items)
    loader = DataLoader(pairs, batch_size=LOOP_BATCH, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)

    def run() -> int:
        for user, item, label in loader:
            optimizer.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(model(user, item), label.float())
            loss.backward()
            optimizer.step()
        return len(pairs)

    return run


class Scorer(nn.Module):
    """A model as a module that DistributedDataParallel may wrap."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(B,) ids and (B,) ids to (B,) scores."""
        scores: Tensor = self.model(user, item)
        return scores


def plain_pass(case: Case, workers: Workers) -> tuple[Pass, float]:
    """Vectorised PyTorch on one tensor, Adam; with several workers under plain DDP."""
    # Under DDP each worker has the whole of every table, so users keep the ids of all.
    model, shard = case.build(Workers()), case.shard(workers)
    users = shard.users.ids[shard.user]
    scorer: nn.Module = Scorer(model)
    moved = 0.0
    if workers.size > 1:
        scorer = nn.parallel.DistributedDataParallel(scorer)
        passes = 2 * (workers.size - 1) / workers.size
        moved = passes * sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = torch.optim.Adam(scorer.parameters(), lr=0.001)
    part = case.rows // workers.size

    def run() -> int:
        order = torch.randperm(len(shard.user))
        for chosen in order.split(part)[: len(order) // part]:
            user = users[chosen].repeat(1 + NEGATIVES)
            drawn = torch.randint(0, model.items, (len(chosen) * NEGATIVES,))
            label = (torch.arange(len(user)) < len(chosen)).float()
            scores = scorer(user, torch.cat([shard.item[chosen], drawn]))
            loss = functional.binary_cross_entropy_with_logits(scores, label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return len(order) // part * part * (1 + NEGATIVES) * workers.size

    return run, moved


def _alone(case: Case, workers: Workers) -> Pass:
    """Every worker trains a model of its own on its share of each step, and exchanges nothing."""
    share = Case(case.model, case.size, case.batch // workers.size, case.steps, case.changes)
    run, _ = recray_pass(share, Workers())
    return lambda: run() * workers.size


def pass_of(way: str, case: Case, workers: Workers) -> tuple[Pass, float]:
    """The pass of a way, and the bytes that a worker receives in a step."""
    if way == "loop":
        return loop_pass(case), 0.0
    if way in ("plain", "ddp"):
        return plain_pass(case, workers)
    if way == "alone":
        return _alone(case, workers), 0.0
    return recray_pass(case, workers)


def rate(run: Pass) -> float:
    """Pairs a second of one pass."""
    begin = time.perf_counter()
    pairs = run()
    return pairs / (time.perf_counter() - begin)
