"""First weights of a model: those of finished runs, of bundles of earlier data, or exact solves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.data.ids import FitOn
from recray.errors import RecrayError
from recray.inference.bundle import KIND, Bundle
from recray.models.base import Model, build_model, is_user_table
from recray.models.factorization import Dot, Hybrid
from recray.models.neural import Gmf, Mlp, NeuMf, SoftmaxDnn
from recray.models.objectives import ImplicitALS, Preference
from recray.storage import Folder
from recray.training.als import ALSEpochs
from recray.training.checkpoint import RunFolder
from recray.training.grown import grown, places_of, rows_at
from recray.training.own_users import OwnUsers, first_model, user_weights
from recray.training.shard import Shard, Workers

Weights = dict[str, Tensor]
SPREAD = 0.3
"""Standard deviation of the numbers in pretrained vectors, which a ReLU layer can work with."""
PRETRAINED = (Gmf, Mlp, NeuMf, SoftmaxDnn)
"""Models whose vectors may start from exact solves."""
SHARPNESS = 8.0
"""What a solved score, 1 for a rated pair and 0 for others, is multiplied by to be a logit."""


@dataclass(frozen=True)
class StartWeights:
    """The best weights of a run.

    Args:
        path: Its folder.
        kind: The kind of its model.
        weights: The weights by name.
        user_rows: Those that have a row for each user, by dense id, until a worker takes its own.
            They are arrays, since Ray hands these to all workers of a node without a copy.
    """

    path: str
    kind: str
    weights: Weights
    user_rows: dict[str, NDArray[np.float32]] = field(default_factory=dict)

    @classmethod
    def of(cls, path: str, kind: str, model: Model, weights: Weights) -> Self:
        """Divide the weights of a model of all users."""
        rows = {name: weights[name].numpy() for name in user_weights(model)}
        return cls(path, kind, {k: v for k, v in weights.items() if k not in rows}, rows)

    def of_users(self, users: OwnUsers) -> Self:
        """The same with the rows of a worker's users alone."""
        ids = users.ids.numpy()
        own = {name: torch.from_numpy(rows[ids]) for name, rows in self.user_rows.items()}
        return replace(self, weights=self.weights | own, user_rows={})


def has_start(settings: Settings) -> bool:
    """Whether first weights change anything: a closed form is fitted anew, whatever it was."""
    return settings.objective.kind != "closed-form"


def read_runs(
    paths: Sequence[str], prepared: Prepared, fit_on: FitOn = "train"
) -> list[StartWeights]:
    """Read the runs to start from; who and what they do not know gets the mean row.

    Raises:
        RecrayError: One is no run, has no checkpoint, or was trained on other data.
    """
    found = []
    for path in paths:
        run = RunFolder(path)
        metadata = run.metadata()
        if metadata.fingerprint != prepared.fingerprint:
            raise RecrayError(
                f"train.init_from: {path} was trained on {metadata.dataset} as it is prepared "
                "elsewhere; users and items would not be the same"
            )
        known, fit = prepared.fit(metadata.settings.train.fit_on), prepared.fit(fit_on)
        places = (
            places_of(np.arange(size), before)
            for size, before in ((fit.users, known.users), (fit.items, known.items))
        )
        model = build_model(metadata.settings, 1, 1)
        weights = rows_at(model, run.best().weights, *places)
        found.append(StartWeights.of(path, metadata.settings.model.kind, model, weights))
    return found


@torch.no_grad()
def start_from(model: Model, runs: Sequence[StartWeights], alpha: float) -> None:
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


def _load(model: Model, run: StartWeights) -> None:
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
def pretrain(
    model: Model,
    shard: Shard,
    settings: Settings,
    workers: Workers,
    rating_range: tuple[float, float],
) -> None:
    """Start a model's vectors from exact solves of the ials loss.

    A tower that has to find both who is alike and how likeness makes a score from nothing gets
    stuck; vectors that know the first leave it the second. A product starts with the scores of the
    solves, as sure as SHARPNESS makes them, and the tower of a neumf with a score of 0.

    Args:
        model: A gmf, mlp, neumf or softmax-dnn.
        shard: This worker's rows.
        settings: train.als_pretrain_* and objective.unobserved_weight are used.
        workers: The group.
        rating_range: Lowest and highest training rating.
    """
    solved_of = model.gmf if isinstance(model, NeuMf) else model
    tables = solved_of.embeddings()
    dim = tables["user_vectors"].embedding_dim
    build: Callable[[int, int], Dot] = lambda users, items: Dot(users, items, dim, "logit")  # noqa: E731
    dot = first_model(build, shard.users, model.items, settings.train.seed)
    epochs = ALSEpochs(dot, _pretraining(settings, rating_range), shard, workers)
    for epoch in range(settings.train.als_pretrain_epochs):
        epochs.run(epoch)
    sharpness = SHARPNESS
    for name, table in tables.items():
        solved = dot.embeddings()[name].weight
        add = workers.sum if is_user_table(name) else None
        scale = SPREAD / max(_deviation(solved, add), 1e-9)
        table.weight.copy_(solved * scale)
        sharpness /= scale
    if isinstance(solved_of, Gmf):
        solved_of.weight.fill_(sharpness)
    if isinstance(model, NeuMf):
        model.mlp.tower.last.weight.zero_()
        model.mlp.tower.last.bias.zero_()


def _deviation(rows: Tensor, add: Callable[[Tensor], Tensor] | None) -> float:
    """Standard deviation of the numbers of a table; of those of all workers, if `add` sums."""
    add = add or (lambda value: value)
    count, total = add(torch.stack([torch.tensor(float(rows.numel())), rows.double().sum().cpu()]))
    squares = add((rows.double() - total / count).square().sum().cpu())
    return float((squares / (count - 1)).sqrt())


def _pretraining(settings: Settings, rating_range: tuple[float, float]) -> ImplicitALS:
    preference = Preference.of(settings.objective, *rating_range)
    weight, l2 = settings.objective.unobserved_weight, settings.train.als_pretrain_l2
    return ImplicitALS(weight, l2, preference)


def _misfit(model: Model, runs: Sequence[StartWeights]) -> RecrayError:
    names = {NeuMf: "neumf", Gmf: "gmf", Mlp: "mlp", Dot: "dot"}
    given = ", ".join(f"{run.path} ({run.kind})" for run in runs)
    return RecrayError(
        f"train.init_from: a {names.get(type(model), type(model).__name__)} model cannot start "
        f"from {given}: give one run of the same kind and sizes, a dot for a gmf, or a gmf and an "
        "mlp for a neumf"
    )


def read_start_weights(
    paths: Sequence[str], prepared: Prepared, fit_on: FitOn = "train"
) -> list[StartWeights]:
    """Read what to start from: runs on the same data, or bundles of any data with the same ids.

    Args:
        paths: Of runs or bundles.
        prepared: What is trained on.
        fit_on: Which splits of it.

    Raises:
        RecrayError: One is neither, is damaged, is a run on other data, or a bundle of another
            split.
    """
    found = []
    for path in paths:
        folder = Folder(path)
        if folder.published() and folder.manifest().kind == KIND:
            bundle = Bundle.open(path).chosen  # what it validated on may validate here, too
            _refuse_other_split(path, bundle, prepared)
            weights, kind = grown(bundle, prepared, fit_on), bundle.settings.model.kind
            found.append(StartWeights.of(path, kind, bundle.model, weights))
        else:
            found += read_runs([path], prepared, fit_on)
    return found


def _refuse_other_split(path: str, bundle: Bundle, prepared: Prepared) -> None:
    """What another split of the same data trains on is held out here.

    Raises:
        RecrayError: The bundle knows another split, or its own test split.
    """
    if bundle.is_final:
        raise RecrayError(
            f"train.init_from: {path} was trained on its test split, which may be held out here"
        )
    ours = prepared.manifest["settings"]["split"]
    theirs = bundle.settings.plain()["split"]
    other = ", ".join(f"{k}={theirs[k]}" for k in ours if ours[k] != theirs[k])
    if other and bundle.config["dataset"] == prepared.manifest["dataset"]:
        raise RecrayError(
            f"train.init_from: {path} was trained on another split of {bundle.config['dataset']} "
            f"({other}): it may know what is held out here; prepare with the same split settings"
        )
