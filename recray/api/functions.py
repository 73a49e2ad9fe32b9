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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from recray.api import arguments
from recray.api.caller import left_as_found
from recray.api.handles import Data, Run, Service, Sweep, telling
from recray.api.model import Loaded
from recray.api.sources import Path, matching, opened
from recray.config import Settings, load_settings
from recray.data import ingest
from recray.data.source import Source
from recray.data.table_source import Table
from recray.errors import RecrayError
from recray.reporting.data_text import remarks
from recray.runtime.tasks import TaskRunner
from recray.storage import Folder
from recray.training import model_selection
from recray.training.callbacks import Callbacks, TensorBoard
from recray.tuning.request import TuneRequest, check

Changes = Mapping[str, Any]
"""Settings by name, such as {"train.epochs": 5}."""
LOCAL = "local"


def prepare(
    source: Path | Table,
    out: Path,
    *,
    settings: Changes | None = None,
    preset: str | None = None,
    columns: Mapping[str, Any] | None = None,
    items: Table | None = None,
    mirror: Path | None = None,
    address: str = LOCAL,
) -> Data:
    """Read, check, split and encode ratings; see `recray prepare`.

    Args:
        source: `sample`, a MovieLens release, the path or URI of a zip, folder or file, or a table
            of pandas, pyarrow or polars, whose columns are recognised as a file's are.
        out: Folder of the data set; the same data with the same settings may be there already.
        settings: Of data.* and split.*, such as {"split.kind": "leave-one-out"}.
        preset: Recipe whose data and split settings are taken.
        columns: Role (user, item, rating, timestamp, title) to the name of a column of yours.
        items: Titles for a table of ratings: a table with item, title, genres and year.
        mirror: Where a release lies instead of its official address.
        address: Ray cluster; `local` starts one.

    Raises:
        RecrayError: There are no ratings, too many rows cannot be read, or the folder is taken.

    Example:
        >>> data = recray.prepare("sample", folder + "/prepared")
        >>> data
        <recray data sample: 600 users, 1,500 items; train 47,917, valid 6,012, test 6,012>
    """
    chosen = _data_settings(preset, settings, columns)
    folder = arguments.path_of("out", out)
    with opened(source, items, folder, chosen, mirror) as ratings:
        if Folder(folder).published():
            return Data(matching(folder, ratings, chosen))
        return _prepare(ratings, folder, chosen, address)


def _prepare(ratings: Source, out: str, settings: Settings, address: str) -> Data:
    with telling(f"prepare {ratings.name} into {out}") as ui:
        made = ingest.prepare(ratings, out, settings, address, runner=TaskRunner(ui.stage))
        for line in remarks(made.manifest):
            ui.log(line)
    return Data(made)


def _data_settings(
    preset: str | None, changes: Changes | None, columns: Mapping[str, Any] | None
) -> Settings:
    _refuse(changes, ("model", "objective", "train", "evaluate"), "recray.train")
    told = {role: str(name) for role, name in (columns or {}).items()}
    return _settings(preset, None, {**(changes or {}), **({"data.columns": told} if told else {})})


def train(
    data: Data | Path,
    out: Path,
    *,
    preset: str | None = None,
    settings: Changes | None = None,
    config: Path | None = None,
    workers: int | str = 1,
    address: str = LOCAL,
) -> Run:
    """Train a model; see `recray train`.

    Args:
        data: What prepare returned, or its folder.
        out: Folder of the run; this very run may be there, finished or not: it is continued.
        preset: Recipe to start from; `ranking` by default.
        settings: Changes to it, such as {"model.dim": 32, "train.epochs": 5}.
        config: YAML file with settings by group, such as a sweep's best.yaml.
        workers: Processes, or a range of them such as "1..4" on a cluster.
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
    _refuse(settings, ("data", "split"), "recray.prepare")
    chosen = _settings(preset, config, settings)
    folder, workers = arguments.path_of("out", out), _workers(workers)
    with telling(f"train {chosen.preset} into {folder}") as ui:
        calls = Callbacks(ui.log, ui.epoch, (TensorBoard,), ui.expect)
        path = _path(data)
        summary = model_selection.train(chosen, path, folder, workers, True, address, calls)
        return Run(folder, summary)


def tune(
    data: Data | Path,
    out: Path,
    *,
    trials: int = 20,
    preset: str | None = None,
    settings: Changes | None = None,
    space: Path | None = None,
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
    folder, fixed = arguments.path_of("out", out), (searcher, scheduler, True, address)
    request = TuneRequest(_path(data), folder, trials, concurrent, *fixed, seeds)
    space = arguments.optional_path("space", space)
    return _search(request, _settings(preset, None, settings), space)


def _search(request: TuneRequest, settings: Settings, space: str | None) -> Sweep:
    from recray.pipelines import search
    from recray.reporting.plots.search import draw
    from recray.tuning.space import load_space

    request = replace(
        request,
        trials=arguments.whole("trials", request.trials),
        concurrent=arguments.optional_whole("concurrent", request.concurrent),
        seeds=arguments.whole("seeds", request.seeds),
    )
    with left_as_found:
        checked = check(request, settings, load_space(settings, space))
    with telling(f"{request.trials} trials into {request.out}") as ui:
        return Sweep(request.out, search.tune(checked, ui.log, draw=draw))


def serve(
    model: Loaded | Path, *, port: int = 8000, replicas: int = 1, address: str = LOCAL
) -> Service:
    """Serve a bundle over HTTP on this machine until it is closed; see `recray serve`.

    With keys in RECRAY_API_KEYS it asks others for one of them.

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
    from recray.serving.options import limits_with_own_key

    opened = model if isinstance(model, Loaded) else load(model)
    port, replicas = arguments.whole("port", port), arguments.whole("replicas", replicas)
    with contextlib.ExitStack() as stack, telling(f"serve {opened.path}"):
        key, limits = limits_with_own_key("127.0.0.1", "recray-serve")
        started = serving(opened.path, port=port, replicas=replicas, address=address, limits=limits)
        url = stack.enter_context(started)
        return Service(url, opened, stack.pop_all(), key)


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


def load(bundle: Path) -> Loaded:
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


def _settings(preset: str | None, config: Path | None, changes: Changes | None) -> Settings:
    """Preset, file and changes as checked settings."""
    if not isinstance(changes, Mapping | None):
        raise RecrayError(f"settings={arguments.shown(changes)}: give {{'group.key': value}}")
    overrides = [
        f"{name}={json.dumps(arguments.plain(name, value))}"
        for name, value in (changes or {}).items()
    ]
    return load_settings(preset, arguments.optional_path("config", config), overrides)


def _workers(given: object) -> int | str:
    """A number of workers of any type, or a range of them as text."""
    return given if isinstance(given, str) and ".." in given else arguments.whole("workers", given)


def _refuse(changes: Changes | None, groups: tuple[str, ...], function: str) -> None:
    """Refuse settings that another function takes, which would be ignored here."""
    for name in changes or {}:
        if name.split(".")[0] in groups:
            raise RecrayError(f"{name}: this is decided by {function}; give it there")


def _path(data: Data | Path) -> str:
    return data.path if isinstance(data, Data) else arguments.path_of("data", data)
