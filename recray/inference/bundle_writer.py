"""Writes a bundle: the fit that was measured, and the final one, with all that both share."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import safetensors.torch
import torch
from pydantic import JsonValue
from torch import Tensor

from recray import schema
from recray.config import Settings
from recray.data.dataset import Prepared
from recray.inference import user_features
from recray.inference.bundle import (
    KIND,
    RUN,
    RUN_TRAIN,
    TRAINING,
    TWIN,
    Bundle,
    version_of,
)
from recray.inference.bundle_users import write_users
from recray.inference.fits import BundleConfig
from recray.inference.index_build import write_index
from recray.inference.interactions import interactions_of
from recray.inference.scorer import Scorer
from recray.inference.service_facts import ServiceFacts
from recray.models import build_model
from recray.models.base import WithoutDraws, is_user_table
from recray.storage import Folder, Manifest, check_store, publish


@dataclass(frozen=True)
class TrainedModel:
    """What a finished training hands over to a bundle.

    Args:
        weights: The weights of the best epoch, by name.
        best_epoch: The number of that epoch, from 1.
        history: One entry an epoch: epoch, loss, validation metrics, and schema.TIMINGS.
        prior_strength: That of FoldInConfig.
        run: The run that chose the epoch, and its settings, where this is another fit.
    """

    weights: dict[str, Tensor]
    best_epoch: int
    history: list[dict[str, Any]]
    prior_strength: float = 0.0
    run: "tuple[TrainedModel, Settings] | None" = None


def write_bundle(
    out: str,
    prepared: Prepared,
    trained: TrainedModel,
    settings: Settings,
    created: str,
    measure: Callable[[Bundle], Mapping[str, JsonValue]],
    replace_old: bool = False,
    final: tuple[TrainedModel, Settings] | None = None,
) -> Bundle:
    """Write a bundle with its measured metrics; it appears whole or not at all.

    Args:
        out: Folder of the bundle.
        prepared: The data set it was trained on.
        trained: The weights that are measured, and the epochs that led to them.
        settings: The resolved settings of that fit.
        created: When, as ISO 8601.
        measure: Evaluates the bundle before it is published.
        replace_old: Whether a bundle under that name may be replaced.
        final: The fit on all ratings, with its settings; None serves what is measured.

    Raises:
        RecrayError: The folder is taken or cannot be written.
    """
    check_store(out, to_write=True)
    with publish(Folder(out), replace_old) as folder:
        tables = _write_fits(folder, prepared, trained, settings, final)
        write_users(folder, prepared, *interactions_of(prepared), tables)
        folder.write_table("items.parquet", prepared.item_table)
        user_features.write_user_features(folder, prepared)
        folder.write_json("metrics.json", {})
        bundle = Bundle.read(folder, Manifest(files=[]))
        index = _write_what_follows(folder, bundle)
        version = version_of(folder, {name: e.sha256 for name, e in folder.written.items()})
        made = Manifest.model_validate({"files": [], "version": version})
        folder.write_json("metrics.json", {**measure(replace(bundle, manifest=made)), **index})
        facts = {"version": version, "dataset": prepared.manifest["dataset"], "created": created}
        folder.write_manifest(KIND, facts | {"preset": settings.preset})
    return Bundle.open(out)


def _write_what_follows(folder: Folder, bundle: Bundle) -> dict[str, JsonValue]:
    """Write sums over all users, and the index of a large catalogue.

    Returns:
        What metrics.json says of the index.
    """
    ServiceFacts.of(bundle).write(folder)
    quality = write_index(folder, Scorer.for_service(bundle))
    return {} if quality is None else {"index": quality.model_dump()}


def _write_fits(
    folder: Folder,
    prepared: Prepared,
    trained: TrainedModel,
    settings: Settings,
    final: tuple[TrainedModel, Settings] | None,
) -> dict[str, Tensor]:
    """Write the measured fit with its epochs, the final one, and the run that chose the epoch.

    Returns:
        The tables of users of what answers, by name: they lie with the users.
    """
    folder.write_json(TRAINING, trained.history)
    if trained.run is not None:
        _write_fit(folder, f"{RUN}/", prepared, *trained.run)
    if final is not None:
        _write_fit(folder, f"{TWIN}/", prepared, trained, settings)
        trained, settings = final
    fit = prepared.fit(settings.train.fit_on)
    with WithoutDraws(), torch.device("meta"):
        model = build_model(settings, fit.users, fit.items)
    weights = dict(trained.weights)
    tables = {n: weights.pop(f"{n}.weight") for n in model.embeddings() if is_user_table(n)}
    _write_fit(folder, "", prepared, replace(trained, weights=weights), settings)
    return tables


def _write_fit(
    folder: Folder, where: str, prepared: Prepared, trained: TrainedModel, settings: Settings
) -> None:
    weights = safetensors.torch.save(trained.weights)
    folder.write_bytes(f"{where}weights.safetensors", weights)
    folder.write_json(f"{where}config.json", _config(prepared, trained, settings))


def _config(prepared: Prepared, trained: TrainedModel, settings: Settings) -> BundleConfig:
    fit = prepared.fit(settings.train.fit_on)
    low, high = fit.rating_range
    best = next(e for e in trained.history if e["epoch"] == trained.best_epoch)
    # Without a measured error: a quarter of the range, squared, is generous for any scale of stars.
    noise = best.get("rmse", (high - low) / 4) ** 2
    facts, recipe = prepared.manifest, trained.run[1] if trained.run else settings
    return {
        "dataset": facts["dataset"],
        "settings": settings.plain(),
        "users": fit.users,
        "items": fit.items,
        "rating_range": [low, high],
        "fold_in": {"noise": noise, "prior_strength": trained.prior_strength},
        "epoch": trained.best_epoch,
        "run": {name: getattr(recipe.train, name) for name in RUN_TRAIN},
        "valid": {k: v for k, v in best.items() if k not in ("epoch", *schema.TIMINGS)},
        "split": facts["settings"]["split"],
        "splits": facts["splits"],
        "unseen": {k: facts["counts"][f"unseen_{k}"] for k in ("users", "items")}
        | {"ratings": facts["splits"]["test"]["unseen"]},
        "fingerprints": facts["fingerprints"],
    }
