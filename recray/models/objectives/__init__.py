"""The objectives: what training minimises, and how a new user is folded in."""

from recray.models.objectives.base import (
    Contributions,
    Objective,
    PairLoss,
    as_linear,
    build_objective,
)
from recray.models.objectives.fold_in import FoldIn, FoldInConfig, FoldInPrior
from recray.models.objectives.history import ByHistory
from recray.models.objectives.ials import ImplicitALS
from recray.models.objectives.next_item import NextItem
from recray.models.objectives.preference import BINARY, Graded, Preference, detect_scale
from recray.models.objectives.ranking import (
    Bpr,
    ItemSoftmax,
    Logistic,
    SampledLoss,
    UnobservedClass,
)
from recray.models.objectives.rating import BPMF, Bce, Mse, RatingClassification

OBJECTIVES: dict[str, type[Objective]] = {
    "mse": Mse,
    "bce": Bce,
    "classes": RatingClassification,
    "ials": ImplicitALS,
    "bpmf": BPMF,
    "logistic": Logistic,
    "bpr": Bpr,
    "item-softmax": ItemSoftmax,
    "unobserved-class": UnobservedClass,
    "closed-form": ByHistory,
    "next-item": NextItem,
}

__all__ = [
    "BINARY",
    "BPMF",
    "OBJECTIVES",
    "Bce",
    "ByHistory",
    "Contributions",
    "FoldIn",
    "FoldInConfig",
    "FoldInPrior",
    "Graded",
    "ImplicitALS",
    "ItemSoftmax",
    "Logistic",
    "Mse",
    "NextItem",
    "Objective",
    "PairLoss",
    "Preference",
    "RatingClassification",
    "SampledLoss",
    "UnobservedClass",
    "as_linear",
    "build_objective",
    "detect_scale",
]
