"""What training minimises, by name."""

from recray.config import Settings
from recray.models.objectives.base import Objective, PairLoss, Shares, as_linear
from recray.models.objectives.bpmf import Bayes
from recray.models.objectives.fold_in import FoldIn, FoldInPrior, Newcomers
from recray.models.objectives.ials import ROW_BLOCK, WholeData
from recray.models.objectives.ranking import Bpr, Contrast, ItemSoftmax, Logistic, UnratedClass
from recray.models.objectives.rating import Bce, Classes, Mse

__all__ = [
    "ROW_BLOCK",
    "Bayes",
    "Bce",
    "Bpr",
    "Classes",
    "Contrast",
    "FoldIn",
    "FoldInPrior",
    "ItemSoftmax",
    "Logistic",
    "Mse",
    "Newcomers",
    "Objective",
    "PairLoss",
    "Shares",
    "UnratedClass",
    "WholeData",
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
            return Classes(l2)
        case "ials":
            return WholeData(wanted.unobserved_weight, l2)
        case "bpmf":
            return Bayes(wanted.factors, wanted.side_rank, wanted.samples_per_epoch, wanted.burn_in)
        case "logistic":
            return Logistic(*drawn, wanted.unobserved_weight)
        case "bpr":
            return Bpr(*drawn)
        case "item-softmax":
            return ItemSoftmax(*drawn)
        case "unobserved-class":
            return UnratedClass(*drawn)
