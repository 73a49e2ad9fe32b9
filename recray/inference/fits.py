"""The fits of a bundle: settings and model of what answers, of its twin, and of the run."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypedDict

import torch
from pydantic import JsonValue
from torch import Tensor

from recray.config import Settings, build_settings, translated
from recray.errors import RecrayError
from recray.inference.bundle_checks import check_config, check_weights
from recray.inference.stored_users import StoredUsers
from recray.models import build_model
from recray.models.base import Model, WithoutDraws
from recray.models.objectives import Objective, build_objective
from recray.storage import Folder
from recray.storage.tensors import as_bytes, tensors_in


class BundleConfig(TypedDict):
    """config.json: what the model was trained on and how."""

    dataset: str
    settings: dict[str, JsonValue]
    users: int
    items: int
    rating_range: list[float]
    fold_in: dict[str, float]
    epoch: int
    run: dict[str, JsonValue]
    valid: dict[str, JsonValue]
    split: dict[str, JsonValue]
    splits: dict[str, dict[str, int]]
    unseen: dict[str, int]
    fingerprints: dict[str, str]


def read_config(folder: Folder, where: str = "") -> tuple[BundleConfig, Settings]:
    """config.json of a fit, and its settings.

    Args:
        folder: The bundle.
        where: Folder inside with the fit's files.

    Raises:
        DamagedFile: It lacks something.
    """
    config: BundleConfig = folder.read_json(f"{where}config.json")
    check_config(config, f"{folder}/{where}config.json")
    config["settings"] = translated(config["settings"])
    return config, build_settings(config["settings"])


def read_fit(
    folder: Folder,
    config: BundleConfig,
    settings: Settings,
    where: str = "",
    tables: Mapping[str, Tensor] = MappingProxyType({}),
    stored: StoredUsers | None = None,
) -> tuple[Model, Objective]:
    """The model of a fit, and what it was trained for.

    Args:
        folder: The bundle.
        config: Of the fit.
        settings: Of the fit.
        where: Folder inside with its files.
        tables: Its tables of users, if they lie elsewhere; (U, D), of more users than it knows.
        stored: Looks rows of users up, if the model is to hold none.

    Raises:
        RecrayError: The weights are not those of such a model.
    """
    # Shapes alone: memory is given to what the file holds.
    with WithoutDraws(), torch.device("meta"):
        model = build_model(settings, config["users"], config["items"])
    try:
        if stored is not None:
            stored.look_up_rows_of(model)
        weights = tensors_in(as_bytes(folder.read_buffer(f"{where}weights.safetensors")))
        rows = {f"{name}.weight": table[: model.users] for name, table in tables.items()}
        if twice := sorted(weights.keys() & rows.keys()):
            raise ValueError(f"{twice[0]} lies with the users and in the weights")
        weights |= rows
        check_weights(model, weights, f"{folder}/{where}weights.safetensors")
        model.load_state_dict(weights, assign=True)
        model.check_weights()
    except (RuntimeError, ValueError) as error:
        reason = str(error).split("\n\t")[-1].strip()  # torch says it below a heading
        raise RecrayError(f"{folder} does not fit its own {where}config.json: {reason}") from error
    low, high = config["rating_range"]
    return model.eval(), build_objective(settings, low, high)
