"""The registry: a model's name to its class."""

import inspect

from recray.config import Settings
from recray.errors import RecrayError, unknown_name
from recray.models.base import LinearModel, Model
from recray.models.baselines import BiasOnly, Popularity
from recray.models.factorization import BPMFMean, Dot, DotBias, Hybrid, MfNormalised
from recray.models.neumf import Gmf, Mlp, NeuMf
from recray.models.softmax import SoftmaxDnn

MODELS: dict[str, type[Model]] = {
    "dot": Dot,
    "dot-bias": DotBias,
    "mf-normalised": MfNormalised,
    "hybrid": Hybrid,
    "gmf": Gmf,
    "mlp": Mlp,
    "neumf": NeuMf,
    "softmax-dnn": SoftmaxDnn,
    "bpmf": BPMFMean,
    "popularity": Popularity,
    "bias-only": BiasOnly,
}
BASELINES = ("popularity", "bias-only")

__all__ = ["BASELINES", "MODELS", "LinearModel", "Model", "build_model", "model_class"]


def model_class(kind: str) -> type[Model]:
    """The class of a registered model.

    Raises:
        RecrayError: There is no model of that name.
    """
    if kind not in MODELS:
        raise unknown_name("model", kind, MODELS)
    return MODELS[kind]


def build_model(settings: Settings, users: int, items: int) -> Model:
    """The untrained network of the settings, with its sizes.

    Raises:
        RecrayError: The model's name is unknown, it is a baseline, which is never trained, or it
            needs rating levels that are not known.
    """
    kind = settings.model.kind
    made = model_class(kind)
    if kind in BASELINES:
        raise RecrayError(f"model.kind={kind} is a baseline; it stands beside every evaluation")
    if kind == "softmax-dnn" and not settings.model.levels:
        raise RecrayError("model.kind=softmax-dnn needs model.levels, the ratings that are classes")
    if kind == "hybrid" and not settings.model.item_features:
        raise RecrayError("model.kind=hybrid needs model.item_features, names of genres or decades")
    values = {**settings.model.model_dump(), "score_type": "logit" if settings.ranks else "rating"}
    wanted = inspect.signature(made).parameters
    return made(users, items, **{k: v for k, v in values.items() if k in wanted})
