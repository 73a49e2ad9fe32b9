"""What `import recray` offers: the stages as functions, their results as pandas frames.

    data = recray.prepare("sample", "out/prepared")
    run = recray.train(data, "out/run")
    model = run.export("out/bundle")
    model.recommend(user=4, k=5)

Every function writes a folder, as the command of its name does. What is there already and matches
is taken as it is, so that a notebook can be run again; what does not match is refused.
"""

import contextlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

import pandas as pd
from pydantic import JsonValue

from recray.api.handles import Data, Run, Service, Sweep, telling
from recray.api.model import Loaded
from recray.config import Settings, load_settings
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.reporting import frames
from recray.serving.registry import resolve_bundle
from recray.storage import Folder

if TYPE_CHECKING:
    from recray.data.source import Source
    from recray.tuning.request import TuneRequest

Changes = Mapping[str, JsonValue]
"""Settings by name, such as {"train.epochs": 5}."""
LOCAL = "local"


def prepare(
    source: str,
    out: str,
    *,
    settings: Changes | None = None,
    preset: str | None = None,
    columns: Mapping[str, str] | None = None,
    mirror: str | None = None,
    address: str = LOCAL,
) -> Data:
    """Read, check, split and encode ratings; see `recray prepare`.

    Args:
        source: `sample`, a MovieLens release, or the path or URI of a zip, folder or file.
        out: Folder of the data set; the same data with the same settings may be there already.
        settings: Of data.* and split.*, such as {"split.kind": "leave-one-out"}.
        preset: Recipe whose data and split settings are taken.
        columns: Role (user, item, rating, timestamp) to the column's name in a file of yours.
        mirror: Where a release lies instead of its official address.
        address: Ray cluster; `local` starts one.

    Raises:
        RecrayError: There are no ratings, too many rows cannot be read, or the folder is taken.

    Example:
        >>> data = recray.prepare("sample", folder + "/prepared")
        >>> data
        <recray data sample: 600 users, 1,500 items; train 47,796, valid 6,004, test 6,004>
    """
    from recray.data import ingest
    from recray.data.source import detect_source

    _refuse(settings, ("model", "objective", "train", "evaluate"), "recray.train")
    extra: Changes = {"data.columns": {**columns}} if columns else {}
    chosen = _settings(preset, None, {**(settings or {}), **extra})
    ratings = detect_source(source, chosen, mirror)
    if Folder(out).published():
        return Data(_matching(out, ratings, chosen))
    with telling(f"prepare {ratings.name} into {out}"):
        return Data(ingest.prepare(ratings, out, chosen, address))


def train(
    data: Data | str,
    out: str,
    *,
    preset: str | None = None,
    settings: Changes | None = None,
    config: str | None = None,
    workers: int = 1,
    address: str = LOCAL,
) -> Run:
    """Train a model; see `recray train`.

    Args:
        data: What prepare returned, or its folder.
        out: Folder of the run; this very run may be there, finished or not: it is continued.
        preset: Recipe to start from; `ranking` by default.
        settings: Changes to it, such as {"model.dim": 32, "train.epochs": 5}.
        config: YAML file with settings by group, such as a sweep's best.yaml.
        workers: Processes.
        address: Ray cluster; `local` starts one.

    Raises:
        RecrayError: Settings that do not fit, too many workers, or a folder with another run.

    Example:
        >>> run = recray.train(folder + "/prepared", folder + "/run", settings={"train.epochs": 3})
        >>> run.history.columns.tolist()[:3]
        ['loss', 'hitrate@10', 'map@10']
        >>> run.export(folder + "/other").metrics.columns.tolist()
        ['model', 'low', 'high', 'popularity', 'bias-only', 'item-knn']
    """
    from recray.training import trainer
    from recray.training.ray_train import Callbacks, TensorBoard

    _refuse(settings, ("data", "split"), "recray.prepare")
    chosen = _settings(preset, config, settings)
    with telling(f"train {chosen.preset} into {out}") as ui:
        ui.expect(chosen.train.epochs, chosen.metric)
        callbacks = Callbacks(ui.log, ui.epoch, (TensorBoard,))
        return Run(out, trainer.run(chosen, _path(data), out, workers, True, address, callbacks))


def evaluate(
    model: Loaded | str,
    *,
    k: int | Sequence[int] | None = None,
    baselines: Sequence[str] | None = None,
    relevant_from: float | None = None,
    among: str = "all",
    workers: int = 1,
    address: str = LOCAL,
) -> pd.DataFrame:
    """Measure a bundle on its test split, the whole catalogue ranked; see `recray evaluate`.

    Args:
        model: What load or export returned, or a folder.
        k: Cut-offs in items; the bundle's own by default.
        baselines: Of popularity, bias-only, item-knn and ease; None takes the usual ones.
        relevant_from: Held-out ratings of so many stars and more count; None: the bundle's own.
        among: `rated` ranks only what the user has rated, which is not honest.
        workers: 1 measures in this process without Ray; the digits do not depend on it.
        address: Ray cluster for more.

    Returns:
        By metric: model, low, high (the 95 % bootstrap interval over users), then the baselines.
        `attrs["verdict"]` compares with the best of them in words.

    Raises:
        RecrayError: There is nobody to evaluate, or a name or a cut-off is out of range.

    Example:
        >>> table = recray.evaluate(bundle, k=[5, 10], baselines=["popularity"])
        >>> bool(table.loc["recall@10", "model"] > table.loc["recall@10", "popularity"])
        True
    """
    if among not in ("all", "rated"):
        raise RecrayError(f"among={among!r}: give 'all' or 'rated'")
    changes: Changes = {} if relevant_from is None else {"relevant_from": relevant_from}
    if k is not None:
        changes = {**changes, "k": cast("JsonValue", k)}  # settings judge it
    return _measure(model, changes, baselines, among == "rated", workers, address)


def _measure(
    model: Loaded | str,
    changes: Changes,
    baselines: Sequence[str] | None,
    rated: bool,
    workers: int,
    address: str,
) -> pd.DataFrame:
    from recray.evaluation.protocol import Protocol
    from recray.pipelines import stages

    names = None if baselines is None else tuple(baselines)
    protocol = Protocol(names, "rated" if rated else "full")
    path = model.path if isinstance(model, Loaded) else resolve_bundle(model)
    with telling(f"measure {path}"):
        return frames.metrics(stages.evaluate(path, changes, None, workers, address, protocol))


def tune(
    data: Data | str,
    out: str,
    *,
    trials: int = 20,
    preset: str | None = None,
    settings: Changes | None = None,
    space: str | None = None,
    searcher: str = "random",
    scheduler: str = "asha",
    concurrent: int | None = None,
    seeds: int = 1,
    address: str = LOCAL,
) -> Sweep:
    """Search settings on the validation split; see `recray tune`.

    Args:
        data: What prepare returned, or its folder.
        out: Folder of the sweep; this very sweep may be there: it is continued.
        trials: How many in all; trial 0 is the preset itself.
        preset: Recipe to start from.
        settings: Changes to it.
        space: YAML file with a `search:` section; the model's own by default.
        searcher: random, grid or tpe.
        scheduler: asha, median or none: which trials are stopped early.
        concurrent: Trials at once; None: as many as fit.
        seeds: Trainings of the winner and of trial 0 that are measured on test; 0: none.
        address: Ray cluster; `local` starts one.

    Raises:
        RecrayError: What cannot be searched; no trial came to a value.

    Source: Li et al. (2020), MLSys, for asha; Bergstra et al. (2011), NeurIPS, for tpe.
    """
    from recray.tuning.request import TuneRequest

    request = TuneRequest(
        _path(data), out, trials, concurrent, searcher, scheduler, True, address, seeds
    )
    return _search(request, _settings(preset, None, settings), space)


def _search(request: "TuneRequest", settings: Settings, space: str | None) -> Sweep:
    from recray.pipelines import search
    from recray.reporting.plots.search import draw
    from recray.tuning.request import check
    from recray.tuning.space import load_space

    checked = check(request, settings, load_space(settings, space))
    with telling(f"{request.trials} trials into {request.out}") as ui:
        return Sweep(request.out, search.tune(checked, ui.log, draw=draw))


def serve(
    model: Loaded | str, *, port: int = 8000, replicas: int = 1, address: str = LOCAL
) -> Service:
    """Serve a bundle over HTTP on this machine until it is closed; see `recray serve`.

    Args:
        model: What load or export returned, or a folder.
        port: HTTP port.
        replicas: Processes that answer.
        address: Ray cluster; `local` starts one.

    Returns:
        The service, which answers: with its url, `get`, `verify` and `close`; a context manager.

    Raises:
        RecrayError: The port is taken, or the bundle is missing or damaged.
    """
    from recray.serving.deployment import serving

    opened = model if isinstance(model, Loaded) else load(model)
    with contextlib.ExitStack() as stack, telling(f"serve {opened.path}"):
        started = serving(opened.path, port=port, replicas=replicas, address=address)
        url = stack.enter_context(started)
        return Service(url, opened, stack.pop_all())


def session(address: str = LOCAL) -> contextlib.ExitStack:
    """Start or join Ray once for all that follows, instead of in every call.

    Args:
        address: Ray cluster; `local` starts one.

    Returns:
        What ends it by `close()`; a context manager.

    Raises:
        RecrayError: The cluster cannot be reached.
    """
    from recray.runtime.session import session as ray_session

    with contextlib.ExitStack() as stack, telling("start Ray"):
        stack.enter_context(ray_session(address))
        return stack.pop_all()


def load(bundle: str) -> Loaded:
    """Open a bundle, or the current version of a registry; every file is checked first.

    Args:
        bundle: Local path or URI.

    Raises:
        RecrayError: It is missing, damaged or not a bundle.

    Example:
        >>> recray.load(bundle)
        <recray bundle ...: ranking on sample, 600 users, 1,500 items>
        >>> recray.load("nowhere")
        Traceback (most recent call last):
        recray.errors.RecrayError: no such folder: ...nowhere
    """
    return Loaded.open(bundle)


def _settings(preset: str | None, config: str | None, changes: Changes | None) -> Settings:
    """Preset, file and changes as checked settings."""
    overrides = [f"{name}={json.dumps(value)}" for name, value in (changes or {}).items()]
    return load_settings(preset, config, overrides)


def _matching(out: str, ratings: "Source", settings: Settings) -> Prepared:
    """The data set that lies in a folder, if it is of these ratings and settings."""
    from recray.data.ingest import same_settings

    prepared = Prepared.open(out)
    if not same_settings(prepared, ratings, settings):
        raise RecrayError(f"{out} holds other data or settings; give another folder")
    return prepared


def _refuse(changes: Changes | None, groups: tuple[str, ...], function: str) -> None:
    """Refuse settings that another function takes, which would be ignored here."""
    for name in changes or {}:
        if name.split(".")[0] in groups:
            raise RecrayError(f"{name}: this is decided by {function}; give it there")


def _path(data: Data | str) -> str:
    return data.path if isinstance(data, Data) else data
