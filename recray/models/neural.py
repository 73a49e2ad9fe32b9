"""Neural models: a weighted product of vectors, a tower of layers, or both; and rating classes."""

# Shape letters: B = pairs in the batch, U = users, I = items, D = length of the product's vectors,
# K = items of a row, M = length of the tower's vectors, H = width of the tower's first layer,
# C = classes.

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recray.errors import RecrayError
from recray.models.base import LinearModel, Model, ScoreType, Statistics
from recray.models.batches import BatchIds
from recray.models.factorization import VectorModel, embedding_rows

START_NOISE = 0.1
"""Size of what differs between a Gmf's vectors at the start, where it predicts ratings: a share of
that of vectors around 0.
"""
PAIRS_RANKED, PAIRS_TRAINED, PAIRS_ON_GPU = 1 << 12, 1 << 14, 1 << 20
"""Pairs whose layers a block holds at once. They stay in the cache of one core; training takes more
because each block adds nodes to the autograd graph. A GPU wants large blocks.
"""


class Gmf(VectorModel, LinearModel):
    """Score of a pair: w . (user vector * item vector) + b, the product element by element.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        score_type: Whether a score is a predicted rating or a logit.

    Source: He et al. (2017), WWW, "Neural collaborative filtering", eq. 8 and 9.
    """

    def __init__(self, users: int, items: int, dim: int, score_type: ScoreType = "rating") -> None:
        std = dim**-0.5 if score_type == "rating" else 0.1
        super().__init__(users, items, dim, std, score_type)
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(()))

    @torch.no_grad()
    def init_from_statistics(self, statistics: Statistics) -> None:
        """Start near the mean rating, with vectors that all point one way, if the model predicts
        ratings.

        Around 0 each side waits for the other to grow. Where the product of the common part gives
        the mean rating, a user's or an item's own level is learned from the first step on.
        """
        if self.score_type != "rating":
            return
        level = max(abs(statistics.mean), 1.0)
        for table in (self.user_vectors, self.item_vectors):
            table.weight.mul_(START_NOISE).add_((level / table.embedding_dim) ** 0.5)
        self.bias.fill_(statistics.mean - level)

    def item_rows(self, item: Tensor | slice) -> Tensor:
        """(I, D) item vectors times w."""
        return embedding_rows(self.item_vectors, item) * self.weight

    def item_offset(self, item: Tensor | slice) -> Tensor:
        """(I,) b for every item."""
        return self.bias + 0 * self.item_vectors.weight[item, 0].detach()

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D) vectors."""
        return self.item_vectors.weight * self.weight


class Tower(nn.Module):
    """ReLU layers over a user's and an item's vector side by side.

    The first layer is the sum of a user half and an item half. So ranking computes a half once for
    each user and once for each item, and only the other layers for every pair.

    Args:
        dim: Length of each of the two vectors.
        layers: Widths of the layers, first to last.
        outputs: Width of the linear layer at the end.
        dropout: Fraction of each layer's values that training drops.
        product: Whether the first layer also sees the element-wise product of the two vectors.
    """

    def __init__(
        self, dim: int, layers: Sequence[int], outputs: int, dropout: float, product: bool = False
    ) -> None:
        super().__init__()
        self.user_half = nn.Linear(dim, layers[0])
        self.item_half = nn.Linear(dim, layers[0], bias=False)
        self.product = nn.Linear(dim, layers[0], bias=False) if product else None
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(layers))
        self.last = nn.Linear(layers[-1], outputs)
        self.dropout = dropout

    def halves(self, user: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """(U, M) and (I, M) vectors to what each adds to the first layer, (U, H) and (I, H)."""
        return self.user_half(user), self.item_half(item)

    def forward(self, first: Tensor) -> Tensor:
        """(..., H) sums of halves, which may be overwritten, to (..., outputs)."""
        ranking = not torch.is_grad_enabled()  # no backward pass will need the sums
        hidden = self._drop(functional.relu(first, inplace=ranking))
        for layer in self.rest:
            hidden = self._drop(functional.relu(layer(hidden), inplace=ranking))
        outputs: Tensor = self.last(hidden)
        return outputs

    def _drop(self, hidden: Tensor) -> Tensor:
        return functional.dropout(hidden, self.dropout, self.training) if self.dropout else hidden

    def pairs(self, user: Tensor, item: Tensor) -> Tensor:
        """(B, M) and (B, M) vectors to (B, outputs)."""
        user_half, item_half = self.halves(user, item)
        first = user_half + item_half
        return self.forward(first if self.product is None else first + self.product(user * item))

    def block(self, user: Tensor, item: Tensor) -> Tensor:
        """(U, M) and (I, M) vectors to (U, I, outputs), a few pairs at a time."""
        user_half, item_half = self.halves(user, item)
        pairs = PAIRS_TRAINED if torch.is_grad_enabled() else PAIRS_RANKED
        pairs = pairs if user.device.type == "cpu" else PAIRS_ON_GPU
        width = max(1, pairs // max(1, len(user)))
        # (u * v) W' = v (diag(u) W'): one matrix product for each user needs no row for each pair.
        scaled = None if self.product is None else user[:, :, None] * self.product.weight.T
        parts = []
        for half, vectors in zip(item_half.split(width), item.split(width), strict=True):
            first = user_half[:, None] + half[None]
            parts.append(self.forward(first if scaled is None else first + vectors @ scaled))
        return torch.cat(parts, dim=1)


class Mlp(VectorModel):
    """Score of a pair: ReLU layers over user vector and item vector, then a linear layer.

    Args:
        users: Number of users.
        items: Number of items.
        mlp_dim: Vector length M.
        layers: Widths of the layers, first to last.
        dropout: Fraction of each layer's values that training drops.
        score_type: Whether a score is a predicted rating or a logit.

    Source: He et al. (2017), eq. 10.
    """

    def __init__(
        self,
        users: int,
        items: int,
        mlp_dim: int,
        layers: Sequence[int],
        dropout: float = 0.0,
        score_type: ScoreType = "rating",
    ) -> None:
        super().__init__(users, items, mlp_dim, 0.1, score_type)
        self.tower = Tower(mlp_dim, layers, 1, dropout)

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Start at the mean rating if the model predicts ratings."""
        if self.score_type == "rating":
            self.tower.last.bias.data.fill_(statistics.mean)

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, M) states and (B,) ids to (B,) scores."""
        return self.tower.pairs(state, self.item_vectors(item)).squeeze(-1)

    def logits_grouped(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """(B,) and (B, K) ids to (B, K) scores; the user's half is computed once for K items."""
        halves = self.tower.halves(self.user_vectors(user), self.item_vectors(item))
        return self.tower.forward(halves[0][:, None] + halves[1]).squeeze(-1)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """(U, M) states to (U, last - first) scores."""
        return self.tower.block(state, self.item_vectors.weight[first:last]).squeeze(-1)


class NeuMf(Model):
    """Score of a pair: the sum of a Gmf and an Mlp, each with vectors of its own.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Length D of the product's vectors.
        mlp_dim: Length M of the tower's vectors.
        layers: Widths of the tower's layers, first to last.
        dropout: Fraction of each layer's values that training drops.
        score_type: Whether a score is a predicted rating or a logit.

    Source: He et al. (2017), eq. 12; the final layer over both parts side by side is the sum of
        the two parts' own final layers.
    """

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        mlp_dim: int,
        layers: Sequence[int],
        dropout: float = 0.0,
        score_type: ScoreType = "rating",
    ) -> None:
        super().__init__(users, items, score_type)
        self.gmf = Gmf(users, items, dim, score_type)
        self.mlp = Mlp(users, items, mlp_dim, layers, dropout, score_type)

    def init_from_statistics(self, statistics: Statistics) -> None:
        """Start at the mean rating if the model predicts ratings."""
        if self.score_type == "rating":
            self.gmf.bias.data.fill_(statistics.mean)

    def user_state(self, user: Tensor) -> Tensor:
        """(U,) ids to (U, D + M): the product's vector, then the tower's."""
        return torch.cat([self.gmf.user_state(user), self.mlp.user_state(user)], dim=-1)

    def _parts(self, state: Tensor) -> tuple[Tensor, Tensor]:
        dims = [self.gmf.user_vectors.embedding_dim, self.mlp.user_vectors.embedding_dim]
        product, tower = state.split(dims, dim=-1)
        return product, tower

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D + M) states and (B,) ids to (B,) scores."""
        product, tower = self._parts(state)
        return self.gmf.logits(product, item) + self.mlp.logits(tower, item)

    def logits_grouped(self, user: Tensor, item: Tensor, ids: BatchIds | None = None) -> Tensor:
        """(B,) and (B, K) ids to (B, K) scores."""
        return self.gmf.logits_grouped(user, item, ids) + self.mlp.logits_grouped(user, item)

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """(U, D + M) states to (U, last - first) scores."""
        product, tower = self._parts(state)
        return self.gmf.logits_block(product, first, last) + self.mlp.logits_block(
            tower, first, last
        )

    def item_vectors_for_similarity(self) -> Tensor:
        """(items, D + M) vectors of both parts."""
        return torch.cat(
            [self.gmf.item_vectors_for_similarity(), self.mlp.item_vectors.weight], dim=-1
        )

    @torch.no_grad()
    def merge(self, alpha: float) -> None:
        """Weigh two parts that were trained alone: alpha the product, 1 - alpha the tower.

        Source: He et al. (2017), eq. 13.
        """
        self.gmf.weight.mul_(alpha)
        self.gmf.bias.mul_(alpha)
        self.mlp.tower.last.weight.mul_(1 - alpha)
        self.mlp.tower.last.bias.mul_(1 - alpha)


class SoftmaxDnn(VectorModel):
    """Class of a pair: softmax over rating levels of ReLU layers over user and item vector.

    With score_type=rating the score is the expected rating. With score_type=logit the last class
    means "not rated", and the score is the log-odds of being rated at all.

    Args:
        users: Number of users.
        items: Number of items.
        dim: Vector length D.
        layers: Widths of the layers, first to last.
        levels: The ratings that occur, ascending; each is a class.
        dropout: Fraction of each layer's values that training drops.
        score_type: Whether a score is a predicted rating or a logit.
        product: Whether the layers also see the element-wise product of the two vectors. ReLU
            layers alone learn a product slowly: Rendle et al. (2020), RecSys.
    """

    def __init__(
        self,
        users: int,
        items: int,
        dim: int,
        layers: Sequence[int],
        levels: Sequence[float],
        dropout: float = 0.0,
        score_type: ScoreType = "rating",
        product: bool = False,
    ) -> None:
        if not levels:
            raise RecrayError(
                "model.kind=softmax-dnn needs model.levels, the ratings that are classes"
            )
        super().__init__(users, items, dim, 0.1, score_type)
        self.tower = Tower(dim, layers, len(levels) + (score_type == "logit"), dropout, product)
        self.register_buffer("levels", torch.tensor(list(levels), dtype=torch.float32))
        self.levels: Tensor

    @property
    def unobserved(self) -> int:
        """Number of the class "not rated", which exists with score_type=logit."""
        return len(self.levels)

    def class_of(self, rating: Tensor) -> Tensor:
        """(B,) ratings to (B,) int64 classes: the nearest level."""
        return (rating[:, None] - self.levels).abs().argmin(dim=-1)

    def class_logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D) states and (B,) ids to (B, C) logits."""
        return self.tower.pairs(state, self.item_vectors(item))

    def logits(self, state: Tensor, item: Tensor) -> Tensor:
        """(B, D) states and (B,) ids to (B,) ratings, or log-odds of being rated."""
        return self._score(self.class_logits(state, item))

    def logits_block(self, state: Tensor, first: int, last: int) -> Tensor:
        """(U, D) states to (U, last - first) ratings, or log-odds of being rated."""
        return self._score(self.tower.block(state, self.item_vectors.weight[first:last]))

    def _score(self, classes: Tensor) -> Tensor:
        if self.score_type == "rating":
            return torch.softmax(classes, dim=-1) @ self.levels
        rated, unobserved = classes[..., : self.unobserved], classes[..., self.unobserved]
        return torch.logsumexp(rated, dim=-1) - unobserved
