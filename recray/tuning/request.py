"""A request for a search, checked before anything starts or is written, and what a trial takes."""

import math
from dataclasses import asdict, dataclass

import torch
from pydantic import JsonValue

from recray.config import Settings, build_settings, load_settings, overridden
from recray.data.dataset import Prepared
from recray.errors import RecrayError, unknown_name
from recray.runtime.session import LOCAL, local_cpus
from recray.storage import check_store
from recray.training.devices import with_device
from recray.training.loop import LOWER_IS_BETTER
from recray.training.trainer import adapt_to_dataset, check_trainable
from recray.tuning.driver import SEARCHERS, GridSearch, Searcher, make_searcher
from recray.tuning.results import Point
from recray.tuning.space import SearchSpace, default_point, load_space, parse_space
from recray.tuning.store import Metric, SweepFolder, SweepMetadata, SweepOptions
from recray.tuning.trial import check_folds, open_without_test

SCHEDULERS = ("none", "asha", "median")
FIXED_OPTIONS = ("searcher", "scheduler", "folds", "workers")
"""The options that must stay when a sweep is resumed: the values of trials depend on them."""
PROCESS_BYTES = 500 << 20
"""Memory of a trial's process before it has any data."""


@dataclass(frozen=True)
class TuneRequest:
    """What is asked for.

    Args:
        prepared: Folder of the data set.
        out: Folder of the sweep.
        trials: Number of trials, trial 0 included.
        concurrent: Trials at once; None: as many as fit.
        searcher: random, grid or tpe.
        scheduler: none, asha or median.
        resume: Go on with the sweep in `out`.
        address: Ray cluster.
        seeds: How often the winner and trial 0 are trained for the final test; with 0 the test
            split stays closed.
        folds: Parts of the training and validation ratings that validate a trial in turn; with 0
            the validation split does.
        workers: Processes of a trial; several of them are run by Ray Train.
        gpus: GPUs that a trial reserves, a fraction for several trials on one.
    """

    prepared: str
    out: str
    trials: int = 20
    concurrent: int | None = None
    searcher: str = "random"
    scheduler: str = "asha"
    resume: bool = False
    address: str = LOCAL
    seeds: int = 3
    folds: int = 0
    workers: int = 1
    gpus: float = 0.0


@dataclass(frozen=True)
class ValidatedSearch:
    """A request that passed all checks; nothing has been written or started yet.

    Args:
        request: What was asked for.
        data: The data set, opened without its test split.
        settings: The settings that the search starts from, completed for this data set.
        space: What is searched.
        metric: What trials are compared by.
        sweep: Where everything is written.
    """

    request: TuneRequest
    data: Prepared
    settings: Settings
    space: SearchSpace
    metric: Metric
    sweep: SweepFolder

    @property
    def default_point(self) -> Point:
        """The point of trial 0: the values that the search starts from."""
        return default_point(self.space, self.settings)

    def searcher(self) -> Searcher:
        """A searcher that has seen no result yet."""
        seed, lower = self.settings.train.seed, self.metric.lower_is_better
        name = self.request.searcher
        return make_searcher(name, self.space, self.default_point, seed, lower)

    def resolve(self, settings: Settings) -> Settings:
        """The settings that a trial runs with.

        Raises:
            RecrayError: They do not fit each other or the data set.
        """
        resolved = adapt_to_dataset(settings, self.data)
        check_trainable(resolved, self.data, self.request.workers, self.request.address)
        return resolved

    def metadata(self) -> SweepMetadata:
        """What a resumed sweep must have in common with this one, and its other options."""
        options = asdict(self.request) | {"prepared": self.data.folder.path}
        return SweepMetadata(
            dataset=self.data.manifest["dataset"],
            fingerprint=self.data.fingerprint,
            settings=self.settings.plain(),
            space={p.setting: p.plain() for p in self.space},
            order=SweepOptions.model_validate(options),
            **{name: options[name] for name in FIXED_OPTIONS},
        )

    def largest(self, setting: str, value: int) -> int:
        """The largest value that a whole-numbered setting takes in any trial.

        Args:
            setting: Its name, such as train.epochs.
            value: Its value in trial 0.
        """
        bounds = [b for p in self.space if p.setting == setting for b in p.bounds()]
        return max([value, *(int(b) for b in bounds if isinstance(b, (int, float)))])


def check(request: TuneRequest, settings: Settings, space: SearchSpace) -> ValidatedSearch:
    """Refuse what cannot be searched, before anything starts or is written.

    Raises:
        RecrayError: See the message.
    """
    if request.trials < 1:
        raise RecrayError(f"--trials {request.trials}: give 1 or more")
    if request.searcher not in SEARCHERS:
        raise unknown_name("searcher", request.searcher, SEARCHERS)
    if request.scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", request.scheduler, SCHEDULERS)
    check_store(request.prepared, to_write=False)
    check_store(request.out, to_write=True)
    data = open_without_test(request.prepared)
    settings = adapt_to_dataset(settings, data)
    settings = with_device(settings, data, 1, lambda: math.ceil(request.gpus))
    _check_workers(request, data)
    check_trainable(settings, data, 1, request.address)
    if settings.train.max_rows_in_memory is not None:
        raise RecrayError("train.max_rows_in_memory: a search holds all ratings; leave it out")
    check_folds(request.folds, data)
    metric = Metric(settings.metric, settings.metric in LOWER_IS_BETTER)
    search = ValidatedSearch(request, data, settings, space, metric, SweepFolder(request.out))
    searcher = search.searcher()
    if isinstance(searcher, GridSearch) and request.trials < len(searcher.points) + 1:
        raise RecrayError(
            f"--trials {request.trials}: the grid has {len(searcher.points) + 1} trials; give as "
            "many, a smaller --space, or --searcher random"
        )
    if request.address == LOCAL:
        machine = Resources(local_cpus(), local_gpus() if request.gpus else 0)
        concurrency(request.concurrent, machine, Resources(request.workers, request.gpus))
    search.sweep.validate(search.metadata(), request.resume)
    return search


def _check_workers(request: TuneRequest, data: Prepared) -> None:
    """Refuse idle workers, and fractions of a GPU that Ray cannot reserve."""
    workers, gpus = request.workers, request.gpus
    if workers > data.buckets:
        raise RecrayError(
            f"--workers-per-trial {workers}: the data set has {data.buckets} parts, "
            "one is needed per worker"
        )
    if workers > 1 and request.folds:
        raise RecrayError(
            "--kfold is for small data, whose trials take one process; leave out "
            f"--workers-per-trial {workers}"
        )
    share = gpus / workers
    if gpus < 0 or (share > 1 and share != int(share)):
        raise RecrayError(
            f"--gpus-per-trial {gpus:g}: give 0, a fraction up to 1, or whole GPUs"
            + (f" for each of {workers} workers" if workers > 1 else "")
        )


def local_gpus() -> int:
    """GPUs of this machine that torch can use."""
    return torch.cuda.device_count()


@dataclass(frozen=True)
class Resources:
    """The resources of a cluster or of a trial.

    Args:
        cpus: CPUs; a trial takes one per worker.
        gpus: GPUs.
        memory: Bytes, None if unknown.
    """

    cpus: int
    gpus: float = 0.0
    memory: float | None = None

    def __str__(self) -> str:
        words = [f"{self.cpus} CPU{'s' * (self.cpus != 1)}"]
        if self.gpus:
            words.append(f"{self.gpus:g} GPU{'s' * (self.gpus > 1)}")
        if self.memory is not None:
            words.append(f"{self.memory / 1e9:.1f} GB")
        return ", ".join(words)

    def fits(self, trial: "Resources") -> int:
        """How many such trials fit at once."""
        fit = self.cpus // trial.cpus
        if self.memory is not None and trial.memory:
            fit = min(fit, int(self.memory // trial.memory))
        if trial.gpus > 0:
            # Ray places a fraction of a GPU on one GPU, so what several leave over is of no use.
            # 1e-9 keeps 1 / 0.1 from being rounded down to 9.
            per_gpu, gpus = math.floor(1 / trial.gpus + 1e-9), int(self.gpus)
            fit = min(fit, gpus * per_gpu if per_gpu else int(gpus // trial.gpus))
        return fit


def concurrency(requested: int | None, cluster: Resources, trial: Resources) -> int:
    """How many trials run at once.

    Args:
        requested: None for as many as fit.
        cluster: The resources of the cluster.
        trial: The resources of one trial.

    Raises:
        RecrayError: Not even one fits, or more are asked for than fit.
    """
    fit = cluster.fits(trial)
    if fit < 1:
        lacks = "no GPU" if trial.gpus and not cluster.gpus else str(cluster)
        raise RecrayError(
            f"a trial takes {trial}: the cluster has {lacks}; add nodes, or give less to a trial"
        )
    if requested is not None and requested > fit:
        raise RecrayError(
            f"--concurrent {requested}: at most {fit} trials fit at once: a trial takes {trial}, "
            f"the cluster has {cluster}; give fewer, or auto"
        )
    return fit if requested is None else requested


def trial_resources(search: ValidatedSearch) -> Resources:
    """The resources of the largest trial: processes, rows, and weights with Adam's two moments."""
    request, data = search.request, search.data
    dim = search.largest("model.dim", int(search.settings.model.dim))
    users = math.ceil(data.users / request.workers)  # a worker has rows of its own users alone
    rows = sum(data.manifest["splits"][name]["rows"] for name in ("train", "valid"))
    weights = 16 * dim * (users + data.items)  # bytes; float32 weight, gradient, two moments
    if search.settings.model.kind in ("ease", "next-ridge"):
        weights = 30 * data.items**2  # a solve for every pair of items
    memory = request.workers * (PROCESS_BYTES + weights * max(1, request.folds)) + 100 * rows
    return Resources(request.workers, request.gpus, memory)


class ResumeState:
    """The sweep that is resumed; what it was started with need not be given again.

    Args:
        out: Its folder.

    Raises:
        RecrayError: There is no sweep in it.
    """

    def __init__(self, out: str) -> None:
        metadata = SweepFolder(out).metadata()
        if metadata is None:
            raise RecrayError(f"{out} holds no sweep to resume; start one with PREPARED and --out")
        self.metadata = metadata

    def options(self) -> dict[str, JsonValue]:
        """The fields of its TuneRequest."""
        return self.metadata.order.model_dump() | self.metadata.model_dump(
            include=set(FIXED_OPTIONS)
        )

    def settings(
        self, preset: str | None, config: str | None, overrides: tuple[str, ...]
    ) -> Settings:
        """The settings of the sweep, with the given ones in their place."""
        if preset is not None or config is not None:
            return load_settings(preset, config, overrides)
        return overridden(build_settings(self.metadata.settings), overrides)

    def space(self, settings: Settings, path: str | None) -> SearchSpace:
        """The space of the sweep, unless a file or another preset brings its own."""
        if path is not None or settings.preset != self.metadata.settings["preset"]:
            return load_space(settings, path)
        return parse_space(self.metadata.space, settings)
