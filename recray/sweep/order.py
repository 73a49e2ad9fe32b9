"""An order for a search, checked before anything starts or is written."""

from dataclasses import dataclass
from typing import Any

from recray import cluster
from recray.config import Settings
from recray.data.prepared import Prepared
from recray.errors import RecrayError, unknown_name
from recray.sweep.plan import Plan
from recray.sweep.records import Goal, SweepFolder
from recray.sweep.searchers import SEARCHERS, GridSearch, make_searcher
from recray.sweep.spaces import Space, own_point
from recray.sweep.trial import open_sealed
from recray.training import trainer
from recray.training.loop import LOWER_IS_BETTER

SCHEDULERS = ("none", "asha", "median")
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
    """

    prepared: str
    out: str
    trials: int = 20
    concurrent: int | None = None
    searcher: str = "random"
    scheduler: str = "asha"
    resume: bool = False
    address: str = cluster.LOCAL


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
        resolved = trainer.for_data(settings, self.data)
        trainer.check(resolved, self.data, 1, self.order.address)
        return resolved

    def facts(self) -> dict[str, Any]:
        """What a resumed sweep must have in common with the one before."""
        return {
            "dataset": self.data.manifest["dataset"],
            "fingerprint": self.data.fingerprint,
            "settings": self.settings.plain(),
            "space": {d.setting: d.plain() for d in self.space},
            "searcher": self.order.searcher,
            "scheduler": self.order.scheduler,
        }

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
    settings = trainer.for_data(settings, data)
    trainer.check(settings, data, 1, order.address)
    if settings.train.resident_rows is not None:
        raise RecrayError("train.resident_rows: a search holds all ratings; leave it out")
    goal = Goal(settings.metric, settings.metric in LOWER_IS_BETTER)
    own = own_point(space, settings)
    searcher = make_searcher(order.searcher, space, own, 0, goal.lower)
    if isinstance(searcher, GridSearch) and order.trials < len(searcher.points) + 1:
        raise RecrayError(
            f"--trials {order.trials}: the grid has {len(searcher.points) + 1} trials; give as "
            "many, a smaller --space, or --searcher random"
        )
    if order.address == cluster.LOCAL:
        concurrency(order.concurrent, cluster.local_cpus(), None, 1)
    search = Search(order, data, settings, space, goal, SweepFolder(order.out))
    search.sweep.check(search.facts(), order.resume)
    return search


def concurrency(asked: int | None, cpus: int, memory: float | None, need: float) -> int:
    """How many trials run at once.

    Args:
        asked: None for as many as fit.
        cpus: Of the cluster; a trial takes one.
        memory: Bytes that the cluster has, None if unknown.
        need: Bytes that a trial takes.

    Raises:
        RecrayError: Not even one fits, or more are asked for than fit.
    """
    fit = cpus if memory is None else min(cpus, int(memory // need))
    if fit < 1:
        raise RecrayError(
            f"a trial needs 1 CPU and {need / 1e9:.1f} GB: the cluster has {cpus} CPUs"
            + (f" and {memory / 1e9:.1f} GB" if memory is not None else "")
            + "; add nodes, or search smaller models"
        )
    if asked is not None and asked > fit:
        raise RecrayError(
            f"--concurrent {asked}: at most {fit} trials fit at once ({cpus} CPUs, 1 a trial"
            + (f"; {memory / 1e9:.1f} GB, {need / 1e9:.1f} a trial" if memory is not None else "")
            + "); give fewer, or auto"
        )
    return fit if asked is None else asked


def need(search: Search) -> float:
    """Bytes of the largest trial: its process, its rows, and weights with Adam's two moments."""
    ends = [e for d in search.space if d.setting == "model.dim" for e in d.ends()]
    dim = max([search.settings.model.dim, *ends])
    rows = sum(search.data.manifest["splits"][name]["rows"] for name in ("train", "valid"))
    return PROCESS_BYTES + 100 * rows + 16 * dim * (search.data.users + search.data.items)
