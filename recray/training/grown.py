"""The weights of a bundle of earlier data in the ids of another data set.

It gives the rows of the users and items that it knows; those of new ones are folded in.
"""

from collections.abc import Iterable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from recray.data.dataset import Prepared, Ratings
from recray.data.ids import FitOn
from recray.inference.bundle import Bundle
from recray.inference.history import UserRatings
from recray.inference.scorer import Scorer
from recray.models.base import Model, is_user_table
from recray.models.factorization import Dot
from recray.models.objectives import ImplicitALS

Weights = dict[str, Tensor]


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
    place_of_user = places_of(bundle.user_ids.encode(users[: fit.users]), model.users)
    place_of_item = places_of(bundle.item_ids.encode(items[: fit.items]), model.items)
    weights = rows_at(model, model.state_dict(), place_of_user, place_of_item)
    parts = partial(map, lambda part: prepared.load_fit(fit_on, [part]), range(prepared.buckets))
    _fold_in(bundle, parts(), place_of_user, place_of_item, weights)
    new = place_of_item < 0
    if new.any() and isinstance(model, Dot) and isinstance(bundle.objective, ImplicitALS):
        _solve_items(bundle.objective, parts(), new, weights)
    return weights


def rows_at(
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


def places_of(dense: np.ndarray, known: int) -> np.ndarray:
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
