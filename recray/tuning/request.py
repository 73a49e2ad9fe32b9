"""An order for a search, checked before anything starts or is written."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.errors import RecrayError, unknown_name
from recray.runtime.session import LOCAL, local_cpus
from recray.training import checks
from recray.training.loop import LOWER_IS_BETTER
from recray.tuning.searchers import SEARCHERS, GridSearch, make_searcher
from recray.tuning.space import Space, own_point
from recray.tuning.store import Goal, SweepFolder
from recray.tuning.trial import check_folds, open_sealed
from recray.tuning.trial_queue import Plan

SCHEDULERS = ("none", "asha", "median")
KEPT = ("searcher", "scheduler", "folds", "workers")
"""What a resumed sweep takes over, and what must stay: values depend on it."""
ASKED = ("prepared", "trials", "concurrent", "seeds", "gpus")
"""What a resumed sweep takes over, and what may change: values do not depend on it."""
PROCESS_BYTES = 500 << 20
"""What a trial's process takes before it has any data."""


@dataclass(frozen=True)
class Order:
    """What is asked for.

    Args:
        prepared: Folder of the data set.
        out: Folder of the sweep.
        trials: How many, trial 0 included.
        concurrent: How many at once; None: as many as fit.
        searcher: random, grid or tpe.
        scheduler: none, asha or median.
        resume: Go on with the sweep in `out`.
        address: Ray cluster.
        seeds: How often winner and trial 0 are trained for the test; 0 leaves it sealed.
        folds: Parts of the training and validation ratings that validate a trial in turn; 0: the
            validation split does.
        workers: Processes of a trial; several train it by Ray Train.
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
class Search:
    """A checked order; nothing has been written or started yet.

    Args:
        order: What was asked for.
        data: The data set, opened without its test split.
        settings: What the search starts from, as it is for this data set.
        space: What is searched.
        goal: What is compared.
        sweep: Where all is written.
    """

    order: Order
    data: Prepared
    settings: Settings
    space: Space
    goal: Goal
    sweep: SweepFolder

    def plan(self) -> Plan:
        """What is still to be tried."""
        own = own_point(self.space, self.settings)
        seed = self.settings.train.seed
        searcher = make_searcher(self.order.searcher, self.space, own, seed, self.goal.lower)
        return Plan(
            self.sweep,
            searcher,
            self.settings,
            self.space,
            self.goal,
            self.order.trials,
            self._resolve,
        )

    def _resolve(self, settings: Settings) -> Settings:
        resolved = checks.for_data(settings, self.data)
        checks.check(resolved, self.data, self.order.workers, self.order.address)
        return resolved

    def facts(self) -> dict[str, Any]:
        """What a resumed sweep must have in common with the one before; values depend on it."""
        return {
            "dataset": self.data.manifest["dataset"],
            "fingerprint": self.data.fingerprint,
            "settings": self.settings.plain(),
            "space": {d.setting: d.plain() for d in self.space},
            **{name: getattr(self.order, name) for name in KEPT},
        }

    def claim(self) -> None:
        """Make the folder this sweep's, and write down what a resumed one need not be told."""
        asked = asdict(self.order) | {"prepared": self.data.folder.path}
        self.sweep.claim(self.facts() | {"order": {name: asked[name] for name in ASKED}})

    @property
    def longest(self) -> int:
        """The most epochs that a trial may have."""
        ends = [e for d in self.space if d.setting == "train.epochs" for e in d.ends()]
        return int(max([self.settings.train.epochs, *ends]))


def check(order: Order, settings: Settings, space: Space) -> Search:
    """Refuse what cannot be searched, before anything starts or is written.

    Raises:
        RecrayError: See the message.
    """
    if order.trials < 1:
        raise RecrayError(f"--trials {order.trials}: give 1 or more")
    if order.searcher not in SEARCHERS:
        raise unknown_name("searcher", order.searcher, SEARCHERS)
    if order.scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", order.scheduler, SCHEDULERS)
    data = open_sealed(order.prepared)
    settings = checks.for_data(settings, data)
    _check_team(order, data)
    checks.check(settings, data, 1, order.address)
    if settings.train.max_rows_in_memory is not None:
        raise RecrayError("train.max_rows_in_memory: a search holds all ratings; leave it out")
    check_folds(order.folds, data)
    goal = Goal(settings.metric, settings.metric in LOWER_IS_BETTER)
    own = own_point(space, settings)
    searcher = make_searcher(order.searcher, space, own, 0, goal.lower)
    if isinstance(searcher, GridSearch) and order.trials < len(searcher.points) + 1:
        raise RecrayError(
            f"--trials {order.trials}: the grid has {len(searcher.points) + 1} trials; give as "
            "many, a smaller --space, or --searcher random"
        )
    if order.address == LOCAL:
        room = Room(local_cpus(), local_gpus() if order.gpus else 0)
        concurrency(order.concurrent, room, Room(order.workers, order.gpus))
    search = Search(order, data, settings, space, goal, SweepFolder(order.out))
    search.sweep.check(search.facts(), order.resume)
    return search


def _check_team(order: Order, data: Prepared) -> None:
    """Refuse workers that have nothing to do, and shares of a GPU that Ray cannot give."""
    workers, gpus = order.workers, order.gpus
    if workers > data.buckets:
        raise RecrayError(
            f"--workers-per-trial {workers}: the data set has {data.buckets} parts, "
            "one is needed per worker"
        )
    if workers > 1 and order.folds:
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
class Room:
    """What a cluster has, or what a trial takes.

    Args:
        cpus: CPUs, 1 a worker.
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

    def fits(self, trial: "Room") -> int:
        """How many such trials fit; a trial's share of a GPU lies on one GPU."""
        fit = self.cpus // trial.cpus
        if self.memory is not None and trial.memory:
            fit = min(fit, int(self.memory // trial.memory))
        if trial.gpus > 0:
            a_gpu = math.floor(1 / trial.gpus + 1e-9)
            gpus = int(self.gpus)
            fit = min(fit, gpus * a_gpu if a_gpu else int(gpus // trial.gpus))
        return fit


def concurrency(asked: int | None, room: Room, trial: Room) -> int:
    """How many trials run at once.

    Args:
        asked: None for as many as fit.
        room: What the cluster has.
        trial: What a trial takes.

    Raises:
        RecrayError: Not even one fits, or more are asked for than fit.
    """
    fit = room.fits(trial)
    if fit < 1:
        lacks = "no GPU" if trial.gpus and not room.gpus else str(room)
        raise RecrayError(
            f"a trial takes {trial}: the cluster has {lacks}; add nodes, or give less to a trial"
        )
    if asked is not None and asked > fit:
        raise RecrayError(
            f"--concurrent {asked}: at most {fit} trials fit at once: a trial takes {trial}, "
            f"the cluster has {room}; give fewer, or auto"
        )
    return fit if asked is None else asked


def takes(search: Search) -> Room:
    """What the largest trial takes: processes, rows, and weights with Adam's two moments."""
    order = search.order
    ends = [e for d in search.space if d.setting == "model.dim" for e in d.ends()]
    dim = max([search.settings.model.dim, *ends])
    rows = sum(search.data.manifest["splits"][name]["rows"] for name in ("train", "valid"))
    weights = 16 * dim * (search.data.users + search.data.items)
    memory = order.workers * (PROCESS_BYTES + weights * max(1, order.folds)) + 100 * rows
    return Room(order.workers, order.gpus, memory)
