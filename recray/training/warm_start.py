"""First weights of a model: those of finished runs and of bundles of earlier data, or exact solves.

A bundle of earlier data gives the rows of the users and items that it knows; those of new ones are
folded in.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recray.config import Settings
from recray.data.dataset import Prepared, Ratings
from recray.data.ids import FitOn
from recray.errors import RecrayError
from recray.inference.bundle import KIND, Bundle
from recray.inference.history import UserRatings
from recray.inference.scorer import Scorer
from recray.models.base import Model, build_model, is_user_table
from recray.models.factorization import Dot, Hybrid
from recray.models.neural import Gmf, Mlp, NeuMf, SoftmaxDnn
from recray.models.objectives import ImplicitALS, Preference
from recray.storage import Folder
from recray.training.checkpoint import RunFolder
from recray.training.epochs import ALSEpochs
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
    """

    path: str
    kind: str
    weights: Weights


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
            _places(np.arange(size), before)
            for size, before in ((fit.users, known.users), (fit.items, known.items))
        )
        weights = _rows_at(build_model(metadata.settings, 1, 1), run.best().weights, *places)
        found.append(StartWeights(path, metadata.settings.model.kind, weights))
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
    torch.manual_seed(settings.train.seed)
    dot = Dot(model.users, model.items, tables["user_vectors"].embedding_dim, "logit")
    objective = _pretraining(settings, rating_range)
    epochs = ALSEpochs(dot, objective, shard, workers)
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
            weights = grown(bundle, prepared, fit_on)
            found.append(StartWeights(path, bundle.settings.model.kind, weights))
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


@torch.no_grad()
def grown(bundle: Bundle, prepared: Prepared, fit_on: FitOn = "train") -> Weights:
    """The bundle's weights in the ids of another data set.

    Who and what the bundle was trained on keep their rows. A new user gets the row that folding in
    gives for their training ratings of known items, or the mean row. A new item then gets the
    vector that is best for the users who rated it where that is an exact solve; with other
    objectives it begins as the mean row, which the first epoch changes.
    """
    model = bundle.model
    fit, users, items = prepared.fit(fit_on), prepared.user_ids.raw, prepared.item_ids.raw
    place_of_user = _places(bundle.user_ids.encode(users[: fit.users]), model.users)
    place_of_item = _places(bundle.item_ids.encode(items[: fit.items]), model.items)
    weights = _rows_at(model, model.state_dict(), place_of_user, place_of_item)
    parts = partial(map, lambda part: prepared.load_fit(fit_on, [part]), range(prepared.buckets))
    _fold_in(bundle, parts(), place_of_user, place_of_item, weights)
    new = place_of_item < 0
    if new.any() and isinstance(model, Dot) and isinstance(bundle.objective, ImplicitALS):
        _solve_items(bundle.objective, parts(), new, weights)
    return weights


def _rows_at(
    model: Model, weights: Weights, place_of_user: np.ndarray, place_of_item: np.ndarray
) -> Weights:
    """The weights of a model whose tables have these rows; see _taken."""
    rows: Weights = {}
    for name, value in weights.items():
        table = name.removesuffix(".weight")
        if table in model.embeddings():
            rows[name] = _taken(value, place_of_user if is_user_table(table) else place_of_item)
        elif name in model.item_buffers:
            rows[name] = _taken(value, place_of_item)
        else:
            rows[name] = value.clone()
    return rows


def _places(dense: np.ndarray, known: int) -> np.ndarray:
    """Rows of the bundle's tables; -1 for what it was not trained on."""
    return np.where(dense < known, dense, -1).astype(np.int64)


def _taken(value: Tensor, place: np.ndarray) -> Tensor:
    """The rows at those places; the mean row where there is none."""
    taken = value[torch.from_numpy(np.maximum(place, 0))].clone()
    taken[torch.from_numpy(place < 0)] = value.mean(dim=0)
    return taken


def _fold_in(
    bundle: Bundle,
    parts: Iterable[Ratings],
    place_of_user: np.ndarray,
    place_of_item: np.ndarray,
    weights: Weights,
) -> None:
    """Write the states of new users into the user tables, where a state is made of their rows."""
    new = place_of_user < 0
    names = [name for name in bundle.model.embeddings() if is_user_table(name)]
    widths = [bundle.model.embeddings()[name].embedding_dim for name in names]
    if not names or not new.any() or not _made_of_rows(bundle.model, names):
        return
    scorer = Scorer.for_service(bundle)
    for part in parts:
        rows = part.where(new[part.user] & (place_of_item[part.item] >= 0))
        if not len(rows.user):
            continue
        users, begins = np.unique(rows.user, return_index=True)
        ends = [*begins[1:].tolist(), len(rows.user)]
        item, rating = torch.from_numpy(place_of_item[rows.item]), torch.from_numpy(rows.rating)
        cuts = zip(begins.tolist(), ends, strict=True)
        rated = [UserRatings(item[a:b], rating[a:b]) for a, b in cuts]
        state = scorer.queries_of_ratings(rated).embedding
        for name, piece in zip(names, state.split(widths, dim=1), strict=True):
            table = weights[f"{name}.weight"]
            table[torch.from_numpy(users).long()] = piece.to(table.dtype)


def _solve_items(
    objective: ImplicitALS, parts: Iterable[Ratings], new: np.ndarray, weights: Weights
) -> None:
    """Write the vectors of new items that are best for those who rated them."""
    rated = [rows.where(new[rows.item]) for rows in parts]
    user, item, rating = (
        np.concatenate([getattr(r, name) for r in rated]) for name in ("user", "item", "rating")
    )
    if not len(item):
        return
    order = np.argsort(item, kind="stable")
    items, begins = np.unique(item[order], return_index=True)
    edges = torch.from_numpy(np.append(begins, len(item)))
    users = weights["user_vectors.weight"]
    places = torch.from_numpy(user[order].astype(np.int64))
    graded = objective.preference.graded(torch.from_numpy(rating[order]))
    gram = objective.gram(users)
    solved = objective.solve(users, edges, places, gram, len(users), graded=graded)
    weights["item_vectors.weight"][torch.from_numpy(items.astype(np.int64))] = solved


def _made_of_rows(model: Model, names: list[str]) -> bool:
    """Whether a user's state is their rows of the user tables, one after another."""
    user = torch.arange(min(model.users, 3))
    rows = torch.cat([model.embeddings()[name](user) for name in names], dim=-1)
    state = model.user_state(user)
    return rows.shape == state.shape and bool(torch.equal(rows, state))
