"""The choice of an optimizer, and its steps: what all steps share, and those on whole tables."""

import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from recray.config import Settings, TrainSettings
from recray.models.base import Model, is_user_table
from recray.models.batches import Batch
from recray.training.shard import Workers

DENSE_THRESHOLD = 0.39
"""Pairs of a batch, as a share of users and items, from which on a step on every row moves fewer
bytes: 28 bytes a number of the tables, against 72 a number of the two rows of a pair.
"""
CACHED_TABLE_ROWS = 1 << 14
"""Users and items below which the tables stay in a core's cache: there a step over all rows costs
less than finding those that a batch touches.
"""
SPARSE_ONLY = ("adagrad", "lazy-adam")
"""Optimizers that exist here for the rows of a batch alone."""
EXACT = {"alternating": "exact solves of users, then items", "gibbs": "samples of the posterior"}
"""Optimizers that take no gradient steps."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # numbers of malloc.h


@dataclass(frozen=True)
class OptimizerChoice:
    """The optimizer that follows from the settings and the sizes of the data.

    Args:
        optimizer: Its name; auto is resolved.
        sparse: Whether a step changes only the rows that its batch touches.
    """

    optimizer: str
    sparse: bool

    @classmethod
    def of(cls, train: TrainSettings, rows: int, pairs: int | None, entries: int) -> Self:
        """Choose.

        A dense optimizer updates every row. It is taken where a batch has more pairs than
        DENSE_THRESHOLD of the tables' rows, or where these stay in the cache. Elsewhere rows that
        no pair of the batch has stay as they are: auto is lazy-adam, and sgd, which gives the same
        numbers either way, updates the touched rows.

        Args:
            train: The settings.
            rows: Ratings that all workers train on.
            pairs: Pairs of a rating: itself and its negatives; None where all items take part.
            entries: Users and items, those of all workers.
        """
        batch = rows if train.batch_size == "all" else min(rows, train.batch_size)
        # What is compiled wants batches of one shape, and touched rows differ in number.
        small = pairs is None or entries < CACHED_TABLE_ROWS or train.compile
        dense = small or batch * (pairs or 1) >= DENSE_THRESHOLD * entries
        if train.optimizer == "auto":
            return cls("adam", False) if dense else cls("lazy-adam", True)
        if train.optimizer == "sgd":
            return cls("sgd", not dense)
        return cls(train.optimizer, train.optimizer in SPARSE_ONLY)


def pairs_of(settings: Settings) -> int | None:
    """Count the pairs of a rating in a step: itself and its negatives; None for all items."""
    if not settings.ranks:
        return 1
    negatives = settings.objective.negatives
    if isinstance(negatives, str) or settings.objective.kind == "next-item":
        return None
    return 1 + negatives


def describe(settings: Settings, users: int, items: int, rows: int, workers: int) -> str:
    """Write one line about how a run trains, before it begins.

    Args:
        settings: The resolved settings.
        users: Users in training.
        items: Items in training.
        rows: Ratings in training.
        workers: Processes.
    """
    train = settings.train
    size = f"{rows:,} ratings of {users:,} users and {items:,} items"
    if train.optimizer == "closed-form":
        return f"train: {size}; {settings.model.kind} fitted once, in closed form"
    if train.optimizer in EXACT:
        sizes = f"model.dim={settings.model.dim}"
        if train.optimizer == "alternating":
            sizes += f", train.l2={train.l2}"
        return f"train: {size}; {EXACT[train.optimizer]}; {sizes}"
    choice = OptimizerChoice.of(train, rows, pairs_of(settings), users + items)
    batch = "all" if train.batch_size == "all" else f"{train.batch_size:,}"
    of = "users" if pairs_of(settings) is None else "ratings"
    of = "windows of histories" if settings.objective.kind == "next-item" else of
    which = "the rows that a batch touches" if choice.sparse else "all rows"
    chosen = " (auto)" if train.optimizer == "auto" else ""
    phrases = [f"train: {size}", f"{choice.optimizer}{chosen} on {which}, {batch} {of} a step"]
    phrases += [f"{workers} workers"] * (workers > 1)
    if workers > 1 and train.local_sgd_steps > 1:
        phrases.append(
            f"APPROXIMATE: items and layers are averaged every {train.local_sgd_steps} steps"
        )
    phrases += [train.device] * (train.device != "cpu")
    phrases += [train.precision] * (train.precision != "float32")
    return "; ".join(phrases)


def keep_freed_memory() -> None:
    """Let glibc keep what this process frees, up to 256 MB of it, for the next step.

    By default it hands tensors of a few MB back to the system after each step and asks for them
    again in the next, above all in a thread, where Ray Train trains: every page of them is then a
    fault, up to a tenth of the time of a step.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that glibc takes
        libc.mallopt(M_TRIM_THRESHOLD, 256 << 20)


@contextmanager
def precision_of(train: TrainSettings, device: torch.device) -> Iterator[None]:
    """Compute the layers inside the block, on a device, with the precision of the settings."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if train.precision == "tf32" else before)
    try:
        bf16 = train.precision == "bf16"
        # Its cache of rounded weights lives as long as the block, and steps change the weights.
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16, cache_enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


class OptimizerStep(ABC):
    """What a step does with a loss: gradients, their sum over workers, and the optimizer.

    Only what workers share is summed in a step: items and layers. The rows of a user are where the
    user's ratings are, and nowhere else.

    With train.local_sgd_steps above 1 nothing is summed (local SGD): every worker takes local
    steps, and what is shared is averaged after so many of them and at the end of an epoch.

    Args:
        model: The model; all but the rows of users is equal on every worker.
        batch_model: The model that a batch's loss is computed on; it may be `model` itself.
        settings: Optimizer, lr and weight decay.
        workers: The group.
    """

    optimizer: torch.optim.Optimizer
    """Updates what is no row of a sparse table."""

    def __init__(
        self,
        model: Model,
        batch_model: Model,
        settings: TrainSettings,
        workers: Workers,
    ) -> None:
        self.model, self.batch_model = model, batch_model
        self.settings, self.workers = settings, workers
        tables: dict[str, Tensor] = {name: t.weight for name, t in model.embeddings().items()}
        self.user_tables = {name: t for name, t in tables.items() if is_user_table(name)}
        self.item_tables = {name: t for name, t in tables.items() if not is_user_table(name)}
        self.tables = list(tables.values())
        every: list[Tensor] = list(model.parameters())
        self.layers = [p for p in every if not any(p is table for table in self.tables)]

    @property
    def is_local(self) -> bool:
        """Whether workers average now and then, instead of adding up every gradient."""
        return self.workers.size > 1 and self.settings.local_sgd_steps > 1

    @property
    def bytes_per_step(self) -> float:
        """What a worker receives from the others in a step, on average."""
        passes = 2 * (self.workers.size - 1) / self.workers.size
        if not self.is_local:
            return passes * sum(p.nbytes for p in self._shared())
        return passes * sum(s.nbytes for s in self._averaged()) / self.settings.local_sgd_steps

    @abstractmethod
    def prepare(self, batch: Batch) -> Batch:
        """Make `batch_model` ready for a batch, and the batch for that model."""

    @abstractmethod
    def take(self, loss: Tensor, step: int) -> None:
        """Take one step down a loss that is this worker's part of the whole.

        Args:
            loss: A scalar, computed on `batch_model`.
            step: Number of the step in its epoch, from 0.
        """

    @abstractmethod
    def _shared(self) -> list[Tensor]:
        """Parameters of which every worker has a copy, and whose gradients are summed."""

    def finish_steps(self) -> None:
        """Make what workers share equal on all of them, after the last of some steps."""
        if self.is_local:
            self._average()

    def _averaged(self) -> list[Tensor]:
        """Tensors that local steps average: shared parameters and their optimizer states."""
        found = list[Tensor]()
        for parameter in self._shared():
            slots = sorted(self.optimizer.state.get(parameter, {}).items())
            found += [parameter.data, *(s for _, s in slots if torch.is_floating_point(s))]
        return found

    def _average_if_due(self, step: int) -> None:
        if self.is_local and (step + 1) % self.settings.local_sgd_steps == 0:
            self._average()

    def _average(self) -> None:
        for values in self._averaged():
            self.workers.sum(values).div_(self.workers.size)

    def _sum_gradients(self) -> None:
        """Sum the gradients of all shared parameters over workers, in one message."""
        if self.workers.size == 1 or self.is_local:
            return
        gradients = [p.grad for p in self._shared() if p.grad is not None]
        if not gradients:
            return
        flat = self.workers.sum(torch.cat([g.reshape(-1) for g in gradients]))
        parts = flat.split([g.numel() for g in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def state(self) -> dict[str, Tensor]:
        """What all workers have alike of the optimizer's tensors, named by the number of the
        parameter and their own name.
        """
        return {name: value for name, value, of_users in self._slots() if not of_users}

    def user_state(self) -> dict[str, Tensor]:
        """Those with a row for each of this worker's users."""
        return {name: value for name, value, of_users in self._slots() if of_users}

    def _slots(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Yield names and tensors of the optimizer, and whether they have a row for each user."""
        tables = {id(table) for table in self.user_tables.values()}
        every = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, values in self.optimizer.state_dict()["state"].items():
            of_users = id(every[index]) in tables
            for name, value in values.items():
                if value is not None:
                    slot = torch.as_tensor(value)
                    yield f"{index}.{name}", slot, of_users and slot.shape == every[index].shape

    def load_state(self, shared: dict[str, Tensor], user_rows: dict[str, Tensor]) -> None:
        """Go on from the tensors of `state` and `user_state`."""
        slots: dict[int, dict[str, Tensor]] = {}
        for key, value in (shared | user_rows).items():
            index, name = key.split(".")
            slots.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": slots, "param_groups": groups})


class DenseStep(OptimizerStep):
    """A step of a torch optimizer on whole tables and layers.

    Args:
        model: The model; all but the rows of users is equal on every worker.
        settings: Optimizer, lr and weight decay.
        workers: The group.
    """

    def __init__(self, model: Model, settings: TrainSettings, workers: Workers) -> None:
        super().__init__(model, model, settings, workers)
        if settings.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(model.parameters(), lr=settings.lr)
            return
        # Vectors decay, layers do not: those of a rare user or item have little else to hold them.
        groups = [{"params": self.tables, "weight_decay": settings.weight_decay}]
        groups += [{"params": self.layers}] if self.layers else []
        self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, weight_decay=0.0, fused=True)

    def prepare(self, batch: Batch) -> Batch:
        """Leave both as they are: the tables hold every row."""
        return batch

    def take(self, loss: Tensor, step: int) -> None:
        """Take one step down a loss that is this worker's part of the whole."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._sum_gradients()
        self.optimizer.step()
        self._average_if_due(step)

    def _shared(self) -> list[Tensor]:
        return [*self.item_tables.values(), *self.layers]
