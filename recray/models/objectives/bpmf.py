"""The posterior of a factorisation, of which training draws samples."""

# Shape letters: N = ratings of one user, S = length of a user state.

import torch
from torch import Tensor

from recray.errors import RecrayError
from recray.models.base import Model
from recray.models.bpmf import BPMFMean
from recray.models.objectives.base import Objective
from recray.models.objectives.fold_in import FoldIn, fold_in_each


class BPMF(Objective):
    """The posterior of a factorisation with normal noise, whose mean prediction is wanted.

    stars ~ N(mean + b_u + b_i + <w_u, v_i>, noise of u); rows of users and of items are normal
    around a linear function of which items, or whose ratings, they have, stars aside; everything
    that says how much is learned beside them.

    Args:
        factors: Length of the vectors in one sample.
        side_rank: Directions of who rated what.
        samples_per_epoch: Samples in an epoch.
        burn_in: First epochs, whose samples are forgotten.
    """

    def __init__(self, factors: int, side_rank: int, samples_per_epoch: int, burn_in: int) -> None:
        self.factors, self.side_rank = factors, side_rank
        self.samples_per_epoch, self.burn_in = samples_per_epoch, burn_in

    def check(self, model: Model) -> None:
        """Refuse all but a mean of samples that has room for one."""
        if not isinstance(model, BPMFMean):
            raise RecrayError("objective.kind=bpmf averages samples: use model.kind=bpmf")
        dim = model.user_vectors.embedding_dim
        if dim < self.factors:
            raise RecrayError(
                f"model.dim={dim} cannot hold a sample: use objective.factors={dim} or less"
            )

    def fold_in_solver(
        self, model: Model, noise: float, popularity: Tensor | None = None
    ) -> FoldIn:
        """Ridge regression towards what the rated items say; prior and noise are the model's."""
        if not isinstance(model, BPMFMean):
            raise ValueError(f"{type(model).__name__} holds no prior")
        precision, error = model.prior_precision.double(), float(model.noise)

        def fold_in(item: Tensor, rating: Tensor) -> Tensor:
            rows = model.item_rows(item).detach().double()
            left = rating.double() - model.item_offset(item).detach().double()
            matrix = rows.T @ rows / error + precision
            right = rows.T @ left / error + precision @ model.prior_state(item).double()
            return torch.linalg.solve(matrix, right).to(model.mean.dtype)

        return fold_in_each(fold_in)
