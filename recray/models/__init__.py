"""The registry: a model's name to its class."""

from recray.models.base import BASELINES, LinearModel, Model, build_model, model_class
from recray.models.baselines import BiasOnly, Ease, ItemKnn, Popularity
from recray.models.factorization import BPMFMean, Dot, DotBias, Hybrid, MfNormalised
from recray.models.markov import Markov
from recray.models.neural import Gmf, Mlp, NeuMf, SoftmaxDnn
from recray.models.next_ridge import NextRidge
from recray.models.recent_popular import RecentPopular
from recray.models.sequence import Sequence

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
    "sequence": Sequence,
    "item-knn": ItemKnn,
    "ease": Ease,
    "markov": Markov,
    "next-ridge": NextRidge,
    "recent-popular": RecentPopular,
    "popularity": Popularity,
    "bias-only": BiasOnly,
}

__all__ = ["BASELINES", "MODELS", "LinearModel", "Model", "build_model", "model_class"]
