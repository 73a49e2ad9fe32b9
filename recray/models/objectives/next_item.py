"""The next item among all others: softmax cross-entropy, over all items or a sample of them."""

# Shape letters: W = windows, L = longest of them, T = W x L, I = items, C = candidates,
# D = vector length.

from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import Model
from recray.models.objectives.history import FoldsByHistory
from recray.models.sequence import Sequence, Windows

NO_TARGET = -1
"""Stands for the target of a place after which nothing is to be predicted."""


class Candidates(NamedTuple):
    """Items of a sampled softmax, drawn with replacement and shared by a whole step.

    Args:
        item: (C,) int64 ids.
        log_expected: (C,) log of how often each is expected among the C draws.
    """

    item: Tensor
    log_expected: Tensor

    @classmethod
    def draw(cls, popularity: Tensor, count: int, generator: torch.Generator) -> Self:
        """Draw by the (I,) numbers of ratings, of which each counts one more."""
        share = (popularity + 1) / (popularity + 1).sum()
        item = torch.multinomial(share, count, replacement=True, generator=generator)
        return cls(item, (count * share[item]).log())


class NextItem(FoldsByHistory):
    """Cross-entropy of the softmax over items of what comes next, at each place of a history.

    Items of the window up to there take no part in the softmax, as lists leave them out, too.

    Args:
        negatives: Items drawn for a step; None: the softmax is over all items.
    """

    CHUNK: ClassVar[dict[str, int]] = {"cpu": 256, "cuda": 1 << 14}
    """Places whose scores are held at once: on a CPU they stay in the cache of one core."""

    def __init__(self, negatives: int | None = None) -> None:
        self.negatives = negatives

    def check(self, model: Model) -> None:
        """Refuse a model that is not trained by what comes next.

        Raises:
            RecrayError: It is none.
        """
        if not isinstance(model, Sequence):
            raise RecrayError(
                f"objective.kind=next-item does not train a {type(model).__name__}; "
                "use it with model.kind=sequence"
            )

    def loss(
        self,
        model: Sequence,
        windows: Windows,
        target: Tensor,
        candidates: Candidates | None = None,
    ) -> Tensor:
        """Sum of the losses of all places.

        Args:
            model: The model.
            windows: Pieces of histories.
            target: (W, L) int64 what came next; NO_TARGET where nothing did.
            candidates: Where not all items take part: those that do, beside the target.
        """
        state, rows = model.encode(windows), model.item_vectors.weight
        kind = state.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else rows.dtype
        given = state, rows, windows.item, target, candidates, low
        out: Tensor = _Softmax.apply(*given)  # type: ignore[no-untyped-call]
        return out


class _Softmax(torch.autograd.Function):
    """The loss and, at once, its gradients: scores are made and used up some windows at a time.

    So the (T, I) scores, by far the largest tensor of a step, never leave the cache, and are made
    once; autograd would write them to memory, and read them again three times.
    """

    @staticmethod
    def forward(
        ctx: Any,
        state: Tensor,
        rows: Tensor,
        item: Tensor,
        target: Tensor,
        candidates: Candidates | None,
        low: torch.dtype,
    ) -> Tensor:
        loss = rows.new_zeros((), dtype=torch.float64)
        of_state, of_rows = torch.zeros_like(state), torch.zeros_like(rows)
        size = max(1, NextItem.CHUNK[state.device.type] // max(state.shape[1], 1))
        for first in range(0, len(state), size):
            some = slice(first, first + size)
            longest = int((target[some] != NO_TARGET).sum(dim=1).max())
            places = some, slice(longest)
            given = state[places].to(low), rows, item[places], target[places]
            chunk = _all_items(*given) if candidates is None else _sampled(*given, candidates)
            loss += chunk.loss
            of_state[places] = chunk.of_state
            of_rows += chunk.of_rows
        ctx.save_for_backward(of_state, of_rows)
        return loss.to(rows.dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        of_state, of_rows = ctx.saved_tensors
        return of_state * slopes[0], of_rows * slopes[0], None, None, None, None


class _Chunk(NamedTuple):
    """The loss of some windows, and its (W, L, D) and (I, D) gradients."""

    loss: Tensor
    of_state: Tensor
    of_rows: Tensor


def _all_items(state: Tensor, rows: Tensor, item: Tensor, target: Tensor) -> _Chunk:
    """Softmax over all items but those of the window so far."""
    table, shape = rows.to(state.dtype), state.shape
    flat = state.reshape(-1, shape[-1])
    score = (flat @ table.T).view(*shape[:2], -1)
    place = torch.arange(shape[1], device=item.device)
    # (W, L, L): the items up to a place, which itself stands for those behind it.
    seen = torch.where(place > place[:, None], item[:, :, None], item[:, None, :])
    score.scatter_(2, seen, -torch.inf)
    share = torch.softmax(score, dim=2)
    wanted, valid = target.clamp(min=0)[..., None], (target != NO_TARGET)[..., None]
    loss = -share.gather(2, wanted)[valid].double().clamp(min=1e-300).log().sum()
    # The slope of a score is its share, less one at the target.
    share.scatter_add_(2, wanted, torch.full_like(wanted, -1, dtype=share.dtype))
    slope = (share if valid.all() else share * valid).view(len(flat), -1)
    return _Chunk(loss, (slope @ table).view(shape), (slope.T @ flat).to(rows.dtype))


def _sampled(
    state: Tensor, rows: Tensor, item: Tensor, target: Tensor, candidates: Candidates
) -> _Chunk:
    """Softmax over the target and the candidates, each of which stands for as many items as it is
    rarely drawn: the sum over the others is right on average.

    Source: Bengio and Senecal (2008), IEEE Transactions on Neural Networks 19(4).
    """
    flat, wanted = state.reshape(-1, state.shape[-1]), target.reshape(-1)
    valid, wanted = wanted != NO_TARGET, wanted.clamp(min=0)
    table, own = rows[candidates.item].to(state.dtype), rows[wanted].to(state.dtype)
    other = flat @ table.T - candidates.log_expected.to(state.dtype)
    other.masked_fill_(wanted[:, None] == candidates.item, -torch.inf)
    score = torch.cat([(flat * own).sum(dim=1, keepdim=True), other], dim=1)
    share = torch.softmax(score, dim=1)
    loss = -share[valid, 0].double().clamp(min=1e-300).log().sum()
    share[:, 0] -= 1
    slope = share * valid[:, None]
    of_rows = torch.zeros_like(rows)
    of_rows.index_add_(0, candidates.item, (slope[:, 1:].T @ flat).to(rows.dtype))
    of_rows.index_add_(0, wanted, (slope[:, :1] * flat).to(rows.dtype))
    of_state = slope[:, 1:] @ table + slope[:, :1] * own
    return _Chunk(loss, of_state.view(state.shape), of_rows)
