"""The objectives: what training minimises, and how a new user is folded in."""

from recray.config import Settings
from recray.models.objectives.base import Contributions, Objective, PairLoss, as_linear
from recray.models.objectives.fold_in import FoldIn, FoldInPrior, RatingsCSR
from recray.models.objectives.ials import ROW_BLOCK, ImplicitALS
from recray.models.objectives.ranking import (
    Bpr,
    ItemSoftmax,
    Logistic,
    SampledLoss,
    UnobservedClass,
)
from recray.models.objectives.rating import BPMF, Bce, Mse, RatingClassification

__all__ = [
    "BPMF",
    "ROW_BLOCK",
    "Bce",
    "Bpr",
    "Contributions",
    "FoldIn",
    "FoldInPrior",
    "ImplicitALS",
    "ItemSoftmax",
    "Logistic",
    "Mse",
    "Objective",
    "PairLoss",
    "RatingClassification",
    "RatingsCSR",
    "SampledLoss",
    "UnobservedClass",
    "as_linear",
    "build_objective",
]


def build_objective(settings: Settings, low: float, high: float) -> Objective:
    """Build the objective of the settings.

    Args:
        settings: Its `objective` group and `train.l2` are used.
        low: Lowest training rating.
        high: Highest training rating.
    """
    group, l2 = settings.objective, settings.train.l2
    negatives = None if group.negatives == "all" else group.negatives
    sampling = (l2, negatives, group.sampling == "popularity")
    match group.kind:
        case "mse":
            return Mse(l2)
        case "bce":
            return Bce(l2, low, high)
        case "classes":
            return RatingClassification(l2)
        case "ials":
            return ImplicitALS(group.unobserved_weight, l2)
        case "bpmf":
            return BPMF(group.factors, group.side_rank, group.samples_per_epoch, group.burn_in)
        case "logistic":
            return Logistic(*sampling, group.unobserved_weight)
        case "bpr":
            return Bpr(*sampling)
        case "item-softmax":
            return ItemSoftmax(*sampling)
        case "unobserved-class":
            return UnobservedClass(*sampling)
