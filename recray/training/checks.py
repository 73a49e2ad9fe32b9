"""What is settled or refused before a run starts: sizes, first weights, and what ratings mean."""

import numpy as np

from recray.config import EvaluateSettings, Settings, without_effect
from recray.data.dataset import Prepared
from recray.data.negatives import NegativeSampler
from recray.errors import RecrayError
from recray.models import build_model
from recray.models.objectives import Objective, SampledLoss, UnobservedClass, detect_scale
from recray.training.optimizers import pairs_of
from recray.training.own_users import OwnUsers
from recray.training.warm_start import (
    StartWeights,
    check_pretraining,
    has_start,
    read_start_weights,
    start_from,
)


def resolved_preference(settings: Settings, prepared: Prepared) -> dict[str, str]:
    """What objective.preference and .scale are for these ratings; nothing where they are given."""
    if without_effect(settings, "objective.scale"):
        return {}
    low, high = prepared.fit(settings.train.fit_on).rating_range
    if low == high:
        return {"preference": "binary", "scale": "auto"}
    if settings.objective.scale != "auto":
        return {}
    levels = [level for level, _ in prepared.manifest["ratings"]["levels"]]
    return {"scale": detect_scale(low, high, levels)}


def described_preference(settings: Settings, low: float, high: float) -> str:
    """End the first line of a run with what ratings mean to it, if its objective asks that."""
    group = settings.objective
    if without_effect(settings, "objective.preference"):
        return ""
    if group.preference == "graded":
        return f"; preference graded by {group.scale}"
    return "; preference binary" + (f": all ratings are {low:g}" if low == high else "")


def resolved_k(settings: Settings, prepared: Prepared) -> dict[str, tuple[int, ...]]:
    """evaluate.k as long as a small catalogue, where nobody asked for another than the default."""
    items = prepared.items
    asked = settings.evaluate.k != EvaluateSettings().k
    return {} if asked or max(settings.evaluate.k) <= items else {"k": (items,)}


def described_k(settings: Settings, prepared: Prepared) -> list[str]:
    """Say that lists are measured at the size of a catalogue that is smaller than usual."""
    items = prepared.items
    if settings.evaluate.k != (items,) or items >= max(EvaluateSettings().k):
        return []
    return [f"train: lists are measured at {items} (evaluate.k), all items of the catalogue"]


def check_evaluation(settings: Settings, prepared: Prepared) -> None:
    """Refuse lists longer than the catalogue, and a bar that no rating reaches."""
    if max(settings.evaluate.k) > prepared.items:
        raise RecrayError(
            f"evaluate.k={max(settings.evaluate.k)} is larger than the catalogue "
            f"of {prepared.items} items; give --set evaluate.k={prepared.items} or less"
        )
    _, high = prepared.rating_range
    threshold = settings.evaluate.relevant_from
    if threshold is not None and threshold > high:
        raise RecrayError(
            f"evaluate.relevant_from={threshold:g}: no rating is above {high:g}, "
            "nothing would be relevant"
        )


def check_half_life(settings: Settings) -> None:
    """Refuse a half-life of ratings that the objective would ignore."""
    half_life, kind = settings.data.half_life, settings.objective.kind
    if half_life is not None and kind != "ials":
        raise RecrayError(
            f"data.half_life={half_life:g} goes with objective.kind=ials, as preset ranking has "
            f"it; objective.kind={kind} weighs old ratings as new ones: prepare the data without it"
        )


def check_start(settings: Settings, prepared: Prepared) -> tuple[StartWeights, ...]:
    """Read the weights to start from, and refuse those that do not fit the model."""
    if settings.train.als_pretrain_epochs:
        check_pretraining(build_model(settings, 1, 1))
    if not settings.train.init_from or not has_start(settings):
        return ()
    init_from, fit_on = settings.train.init_from, settings.train.fit_on
    start_weights, fit = read_start_weights(init_from, prepared, fit_on), prepared.fit(fit_on)
    # Whether they fit shows with the rows of one user, too.
    model, one = (
        build_model(settings, 1, fit.items),
        OwnUsers.of((0,), [np.zeros(1, int)], fit.users),
    )
    start_from(model, [run.of_users(one) for run in start_weights], settings.train.neumf_alpha)
    return tuple(start_weights)


def check_negatives(settings: Settings, prepared: Prepared, objective: Objective) -> None:
    """Refuse to draw more negatives than the catalogue can give."""
    negatives = settings.objective.negatives
    if isinstance(objective, SampledLoss | UnobservedClass) and not isinstance(negatives, str):
        NegativeSampler(prepared.items, negatives)  # refuses it


def refuse_large_batch(settings: Settings, prepared: Prepared) -> None:
    """Refuse a step of more rows than there are."""
    batch, of = settings.train.batch_size, "ratings"
    most = prepared.manifest["splits"]["train"]["rows"]
    if pairs_of(settings) is None:
        most, of = prepared.users, "users"
    if batch != "all" and batch > most:
        raise RecrayError(
            f"train.batch_size={batch}: the data set has {most} {of} to train on; "
            "give no more, or all for one step an epoch"
        )
