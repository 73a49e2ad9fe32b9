"""Self-attention over what a user has done, in order: the state is a vector for the next item."""

# Shape letters: W = windows, L = longest of them, D = vector length, H = heads, U = users,
# R = all their ratings.

from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from recray.errors import RecrayError
from recray.models.base import LinearModel, ScoreType
from recray.models.history import HistoryModel, RatingsCSR
from recray.schema import UNKNOWN_TIME

SPREAD = 0.02
"""Standard deviation of the first item vectors and positions."""
UNKNOWN = 64
"""The bucket of a pair of which a time is unknown; below it are those of `time_buckets`."""
LATER = 65
"""The bucket of what comes later, which attention must not see."""
WINDOWS = 64
"""Windows that are encoded together where no gradient is needed."""


class Windows(NamedTuple):
    """Pieces of the histories of W users, each in order; what follows its end is padding.

    Args:
        item: (W, L) int64 ids; 0 in the padding.
        length: (W,) int64 number of items of each window, at least 1.
        time: (W, L) int64 seconds, UNKNOWN_TIME where unknown; None where no model reads it.
        now: (W, L) int64 seconds when each next item is asked for; None: that of the last item.
    """

    item: Tensor
    length: Tensor
    time: Tensor | None = None
    now: Tensor | None = None

    @classmethod
    def ends(cls, known: RatingsCSR, users: Tensor, length: int) -> Self:
        """The last `length` ratings of some users, who have one at least."""
        end = known.indptr[users + 1]
        counts = (end - known.indptr[users]).clamp(max=length)
        place = torch.arange(int(counts.max()), device=end.device)
        inside = place < counts[:, None]
        row = torch.where(inside, (end - counts)[:, None] + place, 0)
        item = torch.where(inside, known.item[row], 0)
        if known.time is None:
            return cls(item, counts)
        time, now = known.time[row], None
        if known.now is not None:
            now = torch.where(place == counts[:, None] - 1, known.now[users, None], time)
        return cls(item, counts, time, now)


class Sequence(HistoryModel, LinearModel):
    """Causal self-attention, whose output at an item is multiplied with the vectors of all items.

    The input is the vector of an item plus that of its position, counted from the end. Blocks of
    attention and of a two-layer network, each on normalised input, add to it.

    With `time`, the time since the item before stands in the place of the position. Each block
    learns a bias of the attention for each distance in places, and one for each distance in time:
    from an item to when the next one is asked for.

    Args:
        users: Users of the training.
        items: Number of items.
        score_type: It only orders items.
        dim: Vector length D, a multiple of heads.
        blocks: Number of blocks.
        heads: Heads of the attention.
        length: Items at the end of a history that are read.
        dropout: Share of the values that training drops.
        time: Whether times are read.

    Source: Kang and McAuley (2018), ICDM, "Self-attentive sequential recommendation"; normalised
    input as in Xiong et al. (2020), ICML; bias of place and time as in Zhai et al. (2024), ICML.
    """

    reads_order: ClassVar[bool] = True
    reads_times: ClassVar[bool] = True

    def __init__(
        self,
        users: int,
        items: int,
        score_type: ScoreType = "logit",
        dim: int = 64,
        blocks: int = 2,
        heads: int = 2,
        length: int = 200,
        dropout: float = 0.2,
        time: bool = False,
    ) -> None:
        super().__init__(users, items, score_type)
        self.length, self.dropout, self.time = length, dropout, time
        self.item_vectors = nn.Embedding(items, dim)
        nn.init.normal_(self.item_vectors.weight, std=SPREAD)
        # A row for each position from the end, or for each bucket of the time since the last item.
        self.place = nn.Parameter(torch.empty(LATER if time else length, dim))
        nn.init.normal_(self.place, std=SPREAD)
        sizes = dim, heads, dropout, length if time else 0
        self.blocks = nn.ModuleList(Block(*sizes) for _ in range(blocks))
        self.norm = nn.LayerNorm(dim)

    def encode(self, windows: Windows, last_only: bool = False) -> Tensor:
        """States after each item of the windows: (W, L, D), or (W, 1, D) after the last alone."""
        item, length = windows.item, windows.length
        if self.time:
            place = gap_buckets(windows)
        else:
            place = length[:, None] - 1 - torch.arange(item.shape[1], device=item.device)
        hidden = self.item_vectors(item) + functional.embedding(place.clamp(min=0), self.place)
        # Vectors begin small, as products of two must; here they count beside what is added.
        hidden = functional.dropout(hidden * hidden.shape[-1] ** 0.5, self.dropout, self.training)
        bucket = time_buckets(windows) if self.time else None
        for number, block in enumerate(self.blocks):
            at = length - 1 if last_only and number == len(self.blocks) - 1 else None
            hidden = block(hidden, bucket, at)
        normed: Tensor = self.norm(hidden)
        return normed

    def state_of(self, known: RatingsCSR) -> Tensor:
        """The (U, D) states of users with these ratings; zeros for a user without any."""
        counts = known.indptr.diff().clamp(max=self.length)
        out = self.item_vectors.weight.new_zeros(len(counts), self.item_vectors.embedding_dim)
        order = torch.argsort(counts, stable=True)  # windows of like length need little padding
        rated = order[int((counts == 0).sum()) :]
        for users in rated.split(WINDOWS) if len(rated) else ():
            windows = Windows.ends(known, users, self.length)
            out[users] = self.encode(windows, last_only=True)[:, 0]
        return out

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D) vectors of the items."""
        return self.item_vectors.weight[item]

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) zeros: what everybody likes is in the states."""
        return torch.zeros_like(self.item_vectors.weight[item, 0])

    def item_vectors_for_similarity(self) -> Tensor | None:
        """(items, D) vectors of the items."""
        return self.item_vectors.weight


class Block(nn.Module):
    """Attention, then a two-layer network; each adds to its input.

    Args:
        dim: Vector length D.
        heads: Heads H of the attention.
        dropout: Share of the values that training drops.
        length: Longest window of which distances in places and in time bias the attention; 0:
            none does.

    Raises:
        RecrayError: dim is no multiple of heads.
    """

    def __init__(self, dim: int, heads: int, dropout: float, length: int) -> None:
        super().__init__()
        if dim % heads:
            raise RecrayError(f"model.dim={dim} is no multiple of model.heads={heads}")
        self.heads, self.dropout = heads, dropout
        self.attention_norm, self.network_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.key_value, self.query = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.attended = nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.time_bias = nn.Parameter(torch.zeros(heads, LATER)) if length else None
        self.place_bias = nn.Parameter(torch.zeros(heads, length)) if length else None
        for layer in (self.key_value, self.query, self.attended, self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, bucket: Tensor | None, at: Tensor | None) -> Tensor:
        """Compute the next (W, L, D) values; with (W,) places `at`, those of these places alone."""
        normed = self.attention_norm(hidden)
        key, value = (self._by_head(x) for x in self.key_value(normed).chunk(2, dim=-1))
        if at is not None:
            row = torch.arange(len(at), device=at.device)
            hidden, normed = hidden[row, at, None], normed[row, at, None]
        query = self._by_head(self.query(normed))
        mask = self._mask(key, bucket, at)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None
        )
        hidden = hidden + self._drop(self.attended(mixed.permute(1, 2, 0, 3).flatten(-2)))
        inner = functional.gelu(self.up(self.network_norm(hidden)))
        return hidden + self._drop(self.down(inner))

    def _by_head(self, values: Tensor) -> Tensor:
        """(W, L, D) values as (H, W, L, D / H)."""
        return values.reshape(*values.shape[:2], self.heads, -1).permute(2, 0, 1, 3)

    def _mask(self, key: Tensor, bucket: Tensor | None, at: Tensor | None) -> Tensor | None:
        """What hides what comes later, and weighs distances; None: what comes later is all.

        Returns:
            (H, W, L, L), added to the attention, or (W, 1, L) bool; with `at` of its places alone.
        """
        place = torch.arange(key.shape[2], device=key.device)
        if self.time_bias is None or self.place_bias is None or bucket is None:
            return None if at is None else place <= at[:, None, None]
        if at is not None:
            bucket = bucket[torch.arange(len(at), device=at.device), at, None]
        query = place[None, :, None] if at is None else at[:, None, None]
        distance = (query - place).clamp(min=0)
        never = self.time_bias.new_full((self.heads, 1), -torch.inf)
        of_time = torch.cat([self.time_bias, never], dim=1)
        bias = lookup(of_time.to(key.dtype), bucket)
        return bias + lookup(self.place_bias.to(key.dtype), distance)

    def _drop(self, values: Tensor) -> Tensor:
        return functional.dropout(values, self.dropout, self.training)


def lookup(table: Tensor, column: Tensor) -> Tensor:
    """(H, ...) columns of an (H, C) table, as an int tensor of any shape names them."""
    out: Tensor = _Lookup.apply(table, column)  # type: ignore[no-untyped-call]
    return out


class _Lookup(torch.autograd.Function):
    """Columns of a small table, whose gradient is summed column by column.

    The gradient of torch's embedding would sort all the places first, which costs ten times more.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, column: Tensor) -> Tensor:
        ctx.save_for_backward(column)
        ctx.columns = table.shape[1]
        return table.index_select(1, column.flatten()).view(len(table), *column.shape)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (column,) = ctx.saved_tensors
        slope = slopes[0].reshape(len(slopes[0]), -1)
        total = slope.new_zeros(len(slope), ctx.columns)
        # On a CPU torch adds columns named by int32 twenty times slower.
        return total.index_add_(1, column.flatten().long(), slope), None


def time_buckets(windows: Windows) -> Tensor:
    """(W, L, L) int32 buckets of the time from an item (last axis) to when a next one is due."""
    length = windows.item.shape[1]
    place = torch.arange(length, device=windows.item.device)
    later = place > place[:, None]
    if windows.time is None:
        every = torch.where(later, LATER, UNKNOWN).int()
        return every.expand(len(windows.item), length, length)
    asked = windows.time if windows.now is None else windows.now
    return buckets(windows.time[:, None, :], asked[:, :, None]).masked_fill_(later, LATER)


def gap_buckets(windows: Windows) -> Tensor:
    """(W, L) int32 buckets of the time from the item before; 0 for the first."""
    if windows.time is None:
        return torch.full_like(windows.item, UNKNOWN, dtype=torch.int32)
    before = torch.cat([windows.time[:, :1], windows.time[:, :-1]], dim=1)
    return buckets(before, windows.time)


def buckets(begin: Tensor, end: Tensor) -> Tensor:
    """Buckets of the time between two tensors of int64 seconds, as int32.

    0 is no time at all, or less. From one second on there are two buckets for each doubling: 1,
    1.5, 2, 3, 4, 6 seconds and so on, up to 68 years.
    """
    # The bits of a float begin with its exponent: with one bit of what follows, half octaves.
    passed = (end - begin).clamp_(min=0, max=2**31 - 1).float()
    bucket = (passed.view(torch.int32) >> 22).sub_(127 * 2 - 1).clamp_(min=0, max=UNKNOWN - 1)
    return bucket.masked_fill_((begin == UNKNOWN_TIME) | (end == UNKNOWN_TIME), UNKNOWN)
