"""What training minimises, by name."""

from recray.config import Settings
from recray.models.objectives.base import Contributions, Objective, PairLoss, as_linear
from recray.models.objectives.bpmf import BPMF
from recray.models.objectives.fold_in import FoldIn, FoldInPrior, RatingsCSR
from recray.models.objectives.ials import ROW_BLOCK, ImplicitALS
from recray.models.objectives.ranking import (
    Bpr,
    ItemSoftmax,
    Logistic,
    SampledLoss,
    UnobservedClass,
)
from recray.models.objectives.rating import Bce, Mse, RatingClassification

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
    """The objective of the settings.

    Args:
        settings: Its `objective` group and `train.l2` are used.
        low: Lowest training rating, in stars.
        high: Highest training rating, in stars.
    """
    wanted, l2 = settings.objective, settings.train.l2
    negatives = None if wanted.negatives == "all" else wanted.negatives
    drawn = (l2, negatives, wanted.sampling == "popularity")
    match wanted.kind:
        case "mse":
            return Mse(l2)
        case "bce":
            return Bce(l2, low, high)
        case "classes":
            return RatingClassification(l2)
        case "ials":
            return ImplicitALS(wanted.unobserved_weight, l2)
        case "bpmf":
            return BPMF(wanted.factors, wanted.side_rank, wanted.samples_per_epoch, wanted.burn_in)
        case "logistic":
            return Logistic(*drawn, wanted.unobserved_weight)
        case "bpr":
            return Bpr(*drawn)
        case "item-softmax":
            return ItemSoftmax(*drawn)
        case "unobserved-class":
            return UnobservedClass(*drawn)
