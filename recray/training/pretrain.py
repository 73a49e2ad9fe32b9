"""Starting a model from the best weights of finished runs, or from exact solves."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recray.config import Settings
from recray.errors import RecrayError
from recray.models.base import Model
from recray.models.factorization import Dot, Hybrid
from recray.models.neumf import Gmf, Mlp, NeuMf
from recray.models.objectives import ImplicitALS
from recray.models.softmax import SoftmaxDnn
from recray.training.als import AlternatingEpochs
from recray.training.checkpoint import RunFolder
from recray.training.collectives import Workers
from recray.training.epochs import Shard

Weights = dict[str, Tensor]
SPREAD = 0.3
"""Standard deviation of the numbers in pretrained vectors, which a ReLU layer can work with."""
PRETRAINED = (Gmf, Mlp, NeuMf, SoftmaxDnn)
"""Models whose vectors may start from exact solves."""
SHARPNESS = 8.0
"""What a solved score, 1 for a rated pair and 0 for others, is multiplied by to be a logit."""


@dataclass(frozen=True)
class Trained:
    """The best weights of a run.

    Args:
        path: Its folder.
        kind: The kind of its model.
        weights: The weights by name.
    """

    path: str
    kind: str
    weights: Weights


def read_runs(paths: Sequence[str], fingerprint: str) -> list[Trained]:
    """Read the runs to start from.

    Raises:
        RecrayError: One is no run, has no checkpoint, or was trained on other data.
    """
    found = []
    for path in paths:
        run = RunFolder(path)
        facts: dict[str, Any] = run.facts()
        if facts["fingerprint"] != fingerprint:
            raise RecrayError(
                f"train.init_from: {path} was trained on {facts['dataset']} as it is prepared "
                "elsewhere; users and items would not be the same"
            )
        found.append(Trained(path, facts["settings"]["model"]["kind"], run.best().weights))
    return found


@torch.no_grad()
def start_from(model: Model, runs: Sequence[Trained], alpha: float) -> None:
    """Load one run of the same kind, a dot into a gmf, or a gmf (or dot) and an mlp into a neumf.

    Args:
        model: The model that is about to be trained.
        runs: The trained ones.
        alpha: For a neumf: weight of the product; the tower has the rest.

    Raises:
        RecrayError: The runs do not fit the model.
    """
    if isinstance(model, NeuMf) and len(runs) == 2:
        towers = {"mlp" if run.kind == "mlp" else "gmf": run for run in runs}
        if len(towers) < 2:
            raise _misfit(model, runs)
        _load(model.gmf, towers["gmf"])
        _load(model.mlp, towers["mlp"])
        model.merge(alpha)
    elif len(runs) == 1:
        _load(model, runs[0])
    else:
        raise _misfit(model, runs)


def _load(model: Model, run: Trained) -> None:
    weights = dict(run.weights)
    if isinstance(model, Gmf) and run.kind == "dot":  # a product whose every factor weighs 1
        weights |= {"weight": torch.ones_like(model.weight), "bias": torch.zeros(())}
    if isinstance(model, Hybrid):  # its items are described by the data that it trains on now
        weights["features"] = model.features
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise _misfit(model, [run]) from error


def check_pretraining(model: Model) -> None:
    """Refuse a model whose vectors cannot start from exact solves.

    Raises:
        RecrayError: It is neither a product nor a tower of layers.
    """
    if not isinstance(model, PRETRAINED):
        raise RecrayError(
            "train.als_pretrain_epochs goes with model.kind=gmf, mlp, neumf or softmax-dnn"
        )


@torch.no_grad()
def pretrain(model: Model, shard: Shard, settings: Settings, workers: Workers) -> None:
    """Start a model's vectors from exact solves of the ials loss.

    A tower that has to find both who is alike and how likeness makes a score from nothing gets
    stuck; vectors that know the first leave it the second. A product starts with the scores of the
    solves, as sure as SHARPNESS makes them, and the tower of a neumf with a score of 0.

    Args:
        model: A gmf, mlp, neumf or softmax-dnn.
        shard: This worker's rows.
        settings: train.als_pretrain_epochs, pretrain_l2 and objective.unobserved_weight are used.
        workers: The group.
    """
    solved_of = model.gmf if isinstance(model, NeuMf) else model
    tables = solved_of.embeddings()
    dim = tables["user_vectors"].embedding_dim
    torch.manual_seed(settings.train.seed)
    dot = Dot(model.users, model.items, dim, "logit")
    objective = ImplicitALS(settings.objective.unobserved_weight, settings.train.als_pretrain_l2)
    epochs = AlternatingEpochs(dot, objective, shard, workers)
    for epoch in range(settings.train.als_pretrain_epochs):
        epochs.run(epoch)
    sharpness = SHARPNESS
    for name, table in tables.items():
        solved = dot.embeddings()[name].weight
        scale = SPREAD / solved.std().clamp(min=1e-9)
        table.weight.copy_(solved * scale)
        sharpness /= float(scale)
    if isinstance(solved_of, Gmf):
        solved_of.weight.fill_(sharpness)
    if isinstance(model, NeuMf):
        model.mlp.tower.last.weight.zero_()
        model.mlp.tower.last.bias.zero_()


def _misfit(model: Model, runs: Sequence[Trained]) -> RecrayError:
    names = {NeuMf: "neumf", Gmf: "gmf", Mlp: "mlp", Dot: "dot"}
    given = ", ".join(f"{run.path} ({run.kind})" for run in runs)
    return RecrayError(
        f"train.init_from: a {names.get(type(model), type(model).__name__)} model cannot start "
        f"from {given}: give one run of the same kind and sizes, a dot for a gmf, or a gmf and an "
        "mlp for a neumf"
    )
