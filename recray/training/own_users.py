"""The users of one worker, and the first rows of its tables: each user has rows on one worker."""

# Shape letters: N = users of this worker, P = its parts.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.models.base import Model, UserMoments, is_user_table

MOMENT_ROWS = 1 << 16
"""Users whose states are held at once, in float64, while they are summed."""
AnyModel = TypeVar("AnyModel", bound=Model)


@dataclass(frozen=True)
class OwnUsers:
    """The users that a worker trains. Its tables have a row for each of them, in this order.

    A local id is a place in this list. Dense ids may be in any order over parts and workers.

    Args:
        parts: The worker's parts, ascending.
        ids: (N,) int64 dense ids, one part after another, ascending inside a part.
        begins: (P + 1,) where the users of each part begin; the last one is N.
        total: Users of all workers.
    """

    parts: tuple[int, ...]
    ids: Tensor
    begins: tuple[int, ...]
    total: int

    @classmethod
    def of(cls, parts: Sequence[int], users: Sequence[NDArray[np.integer]], total: int) -> Self:
        """Join the users of each part: ascending dense ids, each once."""
        ends = np.cumsum([0, *map(len, users)]).tolist()
        ids = np.concatenate([np.zeros(0, np.int64), *users]).astype(np.int64)
        return cls(tuple(parts), torch.from_numpy(ids), tuple(ends), total)

    @classmethod
    def everyone(cls, total: int) -> Self:
        """The users 0..total-1 in one part, which one worker has."""
        return cls.of((0,), [np.arange(total)], total)

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _by_id(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        ids = self.ids.numpy()
        order = np.argsort(ids, kind="stable")
        return ids[order], order

    def places(self, dense: NDArray[np.integer]) -> NDArray[np.int64]:
        """Local ids of any dense ids; -1 for who is not one of these users."""
        ids, order = self._by_id
        if not len(ids):
            return np.full(len(dense), -1, np.int64)
        place = np.minimum(np.searchsorted(ids, dense), len(ids) - 1)
        return np.where(ids[place] == dense, order[place], -1)

    def local(self, dense: Tensor) -> Tensor:
        """(N,) local ids of the (N,) dense ids of some of these users.

        Raises:
            ValueError: Somebody is not one of these users.
        """
        found = torch.from_numpy(self.places(dense.numpy()))
        if bool((found < 0).any()):
            raise ValueError("a user of another worker has no row here")
        return found

    def own_rows(self, weights: dict[str, Tensor], tables: Sequence[str]) -> dict[str, Tensor]:
        """The weights of a model of these users, from those of a model of all users.

        Args:
            weights: By name; the tables of users have a row for each dense id.
            tables: Names of the weights that are tables of users; see user_weights.
        """
        return {k: v[self.ids] if k in tables else v for k, v in weights.items()}


def user_weights(model: Model) -> list[str]:
    """Names of the weights that have a row for each user."""
    return [f"{name}.weight" for name in model.embeddings() if is_user_table(name)]


@torch.no_grad()
def first_model(
    build: Callable[[int, int], AnyModel], users: OwnUsers, items: int, seed: int
) -> AnyModel:
    """Build a model of these users with its first weights, which no number of workers changes.

    Items and layers follow from the seed alone, and the users of a part from the seed and the
    part. So they are the same whoever has the part.

    Args:
        build: From a number of users and of items to a model with random weights.
        users: The users of this worker.
        items: Number of items.
        seed: That of the training.
    """
    torch.manual_seed(seed)
    shared = build(1, items).state_dict()
    model = build(len(users), items)
    weights, tables = model.state_dict(), user_weights(model)
    for name, value in weights.items():
        if name not in tables:
            value.copy_(shared[name])
    for part, (begin, end) in zip(users.parts, pairwise(users.begins), strict=True):
        if tables and begin < end:
            torch.manual_seed(_seed_of_part(seed, part))
            rows = build(end - begin, 1).state_dict()
            for name in tables:
                weights[name][begin:end] = rows[name]
    return model


def _seed_of_part(seed: int, part: int) -> int:
    state = np.random.SeedSequence((seed, part)).generate_state(1, np.uint64)
    return int(state[0]) >> 1  # torch takes no more than 63 bits of it


@torch.no_grad()
def moments_of(model: Model, add: Callable[[Tensor], Tensor]) -> UserMoments:
    """Mean and variance of the states of the users of all workers.

    Args:
        model: Its tables have the rows of this worker's users.
        add: Sums a tensor over workers.
    """
    blocks = torch.arange(model.users).split(MOMENT_ROWS)
    first = model.user_state(torch.zeros(0, dtype=torch.int64))
    zeros = first.new_zeros(first.shape[1], dtype=torch.float64)
    sums = sum((model.user_state(block).double().sum(dim=0) for block in blocks), zeros)
    count = add(torch.tensor([float(model.users)], dtype=torch.float64)).clamp(min=1)
    mean = add(sums.cpu()) / count
    away = (model.user_state(block).cpu().double() - mean for block in blocks)
    squares = sum((rows.square().sum(dim=0) for rows in away), torch.zeros_like(mean))
    return UserMoments(mean, add(squares) / count)
