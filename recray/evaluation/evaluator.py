"""Evaluate a bundle: the model and its baselines on the hold-out, with intervals and a verdict.

`evaluate` measures in this process; `evaluate_on_ray` shares the blocks of users among workers and
gives the same digits. Metrics are also taken of groups: of users by the number of their known
ratings, and of items by theirs.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation.comparison import compare, means, summarise
from recray.evaluation.metrics import (
    Counts,
    PerUserMetrics,
    RankedBatch,
    blocks_of,
    compute_metrics,
    metric_names,
    rank_block,
    recall,
)
from recray.evaluation.protocol import (
    FULL_RANKING,
    SAMPLED,
    Protocol,
    build_baselines,
    choose_baselines,
)
from recray.evaluation.report import (
    BaselineReport,
    EvaluationReport,
    Interval,
    Segment,
    Segments,
    SplitReport,
    Unseen,
    Values,
)
from recray.inference.bundle import Bundle
from recray.inference.scorer import Scorer
from recray.inference.top_k import NONE
from recray.runtime.nodes import map_tasks, wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session

USER_SLICES = {"0": 0, "1-19": 1, "20-49": 20, "50-99": 50, "100+": 100}
"""Name to the least number of ratings known of a user."""

ITEM_SLICES = {"tail": 0, "middle": 5, "head": 50}
"""Name to the least number of ratings known of an item: under 5, 5 to 49, 50 and more."""


class Evaluator:
    """Measures a bundle and its baselines on held-out ratings.

    Args:
        bundle: An opened bundle.
        settings: Cut-offs and relevance; the bundle's own by default.
        targets: Held-out ratings in the bundle's ids; the bundle's own by default.
        protocol: What is measured, and beside what.

    Raises:
        RecrayError: There is nobody to evaluate, or a baseline cannot be measured.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: EvaluateSettings | None = None,
        targets: Ratings | None = None,
        protocol: Protocol = FULL_RANKING,
    ) -> None:
        self.final_fit, self.bundle = bundle.is_final, (bundle := bundle.measured)
        self.settings = settings or bundle.settings.evaluate
        if targets is None and bundle.is_final:
            raise RecrayError("this model was trained on the test split, too: nothing is held out")
        self.targets = bundle.holdout if targets is None else targets
        self.blocks = blocks_of(self.targets)
        if not self.blocks:
            raise RecrayError("the test split has no ratings: nobody can be evaluated")
        self._check_settings()
        self.protocol = protocol
        if protocol.kind == "rated":  # then all ratings of these users are targets
            before = bundle.interactions.before_test
            rated = np.isin(before.user, np.concatenate(self.blocks))
            self.targets = Ratings.concatenate([before.where(rated), self.targets])
        protocol.check(bundle, np.concatenate(self.blocks))
        self.baselines = choose_baselines(protocol.baselines, bundle.item_ids.known)

    @functools.cached_property
    def scorers(self) -> dict[str, Scorer]:
        """Model and baselines by name; built only in the process that measures blocks."""
        scorer = Scorer.for_measurement(self.bundle)
        return {"model": scorer} | build_baselines(self.baselines, scorer)

    def _check_settings(self) -> None:
        threshold = self.settings.relevant_from
        if threshold is not None and not (self.targets.rating >= threshold).any():
            raise RecrayError(
                f"no held-out rating has {threshold:g} stars or more: nothing would be relevant"
            )
        if (k := max(self.settings.k)) > (items := self.bundle.item_ids.known):
            words = f"evaluate.k={k} is larger than the catalogue of {items} items"
            raise RecrayError(f"{words}; give --k {items} or less")

    def measure_block(self, block: int) -> dict[str, PerUserMetrics]:
        """Model and baselines on one block of users."""
        torch.set_num_threads(1)  # so that sums are added in one order everywhere
        return {name: self._measure(scorer, block) for name, scorer in self.scorers.items()}

    def _measure(self, scorer: Scorer, block: int) -> PerUserMetrics:
        users = self.blocks[block]
        candidates = self.protocol.candidate_cells(scorer, users)
        lists = rank_block(scorer, self.targets, users, self.settings, candidates)
        table = compute_metrics(scorer, lists, self.settings)
        return add_segments(table, lists, scorer, self.settings)

    def report(self, parts: list[dict[str, PerUserMetrics]]) -> EvaluationReport:
        """Put the blocks together: means, intervals, baselines and the verdict."""
        names = ("model", *self.baselines)
        tables = {name: PerUserMetrics.join(part[name] for part in parts) for name in names}
        config, catalogue = self.bundle.config, self._catalogue(tables["model"])
        rows = {name: split["rows"] for name, split in config["splits"].items()}
        return EvaluationReport(
            dataset=config["dataset"],
            preset=self.bundle.settings.preset,
            model_version=self.bundle.version,
            protocol=self.protocol.report(),
            users=len(tables["model"].user),
            split=SplitReport(**config["split"], rows=rows),
            fit_on=self.bundle.settings.train.fit_on,
            final_fit=self.final_fit,
            metrics=self._measured(tables["model"]),
            baselines={name: self._baseline(tables[name]) for name in self.baselines},
            verdict=self._verdict(tables),
            unseen=Unseen.model_validate(config["unseen"]),
            coverage=next(iter(catalogue.values())) if catalogue else None,
            catalogue=catalogue,
            slices=segments_report(tables, self.settings),
        )

    def _catalogue(self, table: PerUserMetrics) -> Values | None:
        """What the lists show of the catalogue; None where the protocol limits it."""
        return exposure_metrics(table, self.settings) if self.protocol.kind == "full" else None

    def _baseline(self, table: PerUserMetrics) -> BaselineReport:
        return BaselineReport(catalogue=self._catalogue(table), **self._measured(table))

    def _measured(self, table: PerUserMetrics) -> dict[str, Interval]:
        # Under "rated" the errors would include those of training rows.
        rates = table.predicts_ratings and self.protocol.kind != "rated"
        names = metric_names(self.settings, rates)
        if self.protocol.kind == "sampled":
            names = [name for name in names if name.partition("@")[0] in SAMPLED]
        return summarise(table, names)

    def _verdict(self, tables: dict[str, PerUserMetrics]) -> str:
        """The model against the best baseline: by error if both predict ratings, and by ranking."""
        model, sentences = tables["model"], []
        for metric in ("rmse", f"ndcg@{self.settings.k[0]}"):
            by_error = metric == "rmse"
            if by_error and (not model.predicts_ratings or self.protocol.kind != "full"):
                continue
            values = {
                name: means(tables[name], [metric])[metric]
                for name in self.baselines
                if not by_error or tables[name].predicts_ratings
            }
            if values:
                best = (min if by_error else max)(values, key=lambda name: values[name])
                sentences.append(compare(model, tables[best], metric).words(best))
        return "; ".join(sentences)


def evaluate(
    bundle: Bundle,
    settings: EvaluateSettings | None = None,
    protocol: Protocol = FULL_RANKING,
) -> EvaluationReport:
    """Evaluate a bundle on its own hold-out in this process."""
    evaluator = Evaluator(bundle, settings, None, protocol)
    return evaluator.report([evaluator.measure_block(b) for b in range(len(evaluator.blocks))])


@functools.lru_cache(maxsize=1)
def _evaluator(
    path: str, _version: str, settings: EvaluateSettings, protocol: Protocol
) -> Evaluator:
    """One evaluator a process; the version is a key, so that a replaced bundle is opened anew."""
    return Evaluator(Bundle.open(path), settings, None, protocol)


@dataclass(frozen=True)
class _MeasureBlocks:
    """Every n-th block of users, for one of n workers."""

    path: str
    version: str
    settings: EvaluateSettings
    protocol: Protocol
    workers: int

    def __call__(self, worker: int) -> dict[str, PerUserMetrics] | None:
        """Measure the blocks of one worker; None if there are none for it."""
        evaluator = _evaluator(self.path, self.version, self.settings, self.protocol)
        numbers = range(worker, len(evaluator.blocks), self.workers)
        parts = [evaluator.measure_block(block) for block in numbers]
        names = parts[0] if parts else ()
        return {name: PerUserMetrics.join(part[name] for part in parts) for name in names} or None


def evaluate_on_ray(
    bundle: Bundle,
    settings: EvaluateSettings | None = None,
    workers: int = 1,
    address: str = LOCAL,
    protocol: Protocol = FULL_RANKING,
) -> EvaluationReport:
    """Evaluate a bundle on its hold-out with several workers; the digits are those of one.

    Args:
        bundle: An opened bundle, at a path that the workers can read too.
        settings: Cut-offs and relevance; the bundle's own by default.
        workers: Ray Data tasks that share the blocks of users.
        address: Ray cluster; `local` starts one.
        protocol: What is measured, and beside what.

    Raises:
        RecrayError: More workers than the cluster can place, or nobody to evaluate.
    """
    evaluator = Evaluator(bundle, settings, None, protocol)
    if address == LOCAL:
        require_local(workers)
    with session(address):
        wait_for_capacity(workers)
        path, version = bundle.folder.path, bundle.version
        task = _MeasureBlocks(path, version, evaluator.settings, protocol, workers)
        parts = map_tasks(task, workers)
    return evaluator.report([part for part in parts if part is not None])


# -------------------------------------------------------------------------------- catalogue


def coverage(shown: Counts) -> float:
    """Share of the catalogue that is in any list; (I,) counts of lists that show each item."""
    return float((shown > 0).mean())


def gini(shown: Counts) -> float:
    """How unevenly the places in the lists are shared out: 0 all alike, 1 one item has them all.

    Args:
        shown: (I,) int64; how many lists show each item.

    Returns:
        sum_i (2 i - I - 1) shown_i / ((I - 1) sum shown), with shown ascending and i from 1; so 1
        is reached for any I. nan if nothing is shown or there is one item.

    Source: Shani and Gunawardana (2011), Recommender Systems Handbook, section 8.3.3.
    """
    items, total = len(shown), int(shown.sum())
    if items < 2 or not total:
        return float("nan")
    weight = 2 * np.arange(1, items + 1, dtype=np.int64) - items - 1
    return int((weight * np.sort(shown)).sum()) / ((items - 1) * total)


def exposure_metrics(table: PerUserMetrics, settings: EvaluateSettings) -> Values:
    """Coverage, novelty and Gini of all lists at each cut-off; None where no list has an item."""
    out = {}
    for shown, k in zip(table.shown, settings.k, strict=True):
        surprise = table.values[f"novelty@{k}"]
        surprise = surprise[~np.isnan(surprise)]
        out[f"coverage@{k}"] = coverage(shown)
        out[f"novelty@{k}"] = float(surprise.mean()) if len(surprise) else float("nan")
        out[f"gini@{k}"] = gini(shown)
    return _without_nan(out)


# -------------------------------------------------------------------------------- segments


def add_segments(
    table: PerUserMetrics, lists: RankedBatch, scorer: Scorer, settings: EvaluateSettings
) -> PerUserMetrics:
    """Add what slices need of each user: `history`, the number of known ratings; for each slice of
    items `relevant/SLICE`, how many relevant items it has, and `recall@K/SLICE`, found of them.
    """
    edges, known = list(ITEM_SLICES.values()), scorer.popularity.numpy()
    slice_of = np.append(np.searchsorted(edges, known, "right") - 1, 0)  # unknown: in the tail
    unknown = len(slice_of) - 1
    listed = slice_of[np.where(lists.ranked.item == NONE, unknown, lists.ranked.item)]
    wanted = slice_of[np.minimum(lists.item, unknown)]
    indptr = scorer.seen.indptr
    values = {"history": (indptr[lists.users + 1] - indptr[lists.users]).astype(np.float64)}
    for place, name in enumerate(ITEM_SLICES):
        count = lists.count(lists.relevant & (wanted == place))
        values[f"relevant/{name}"] = count.astype(np.float64)
        hits = lists.hits & (listed == place)
        for k in settings.k:
            values[f"recall@{k}/{name}"] = recall(hits, count, min(k, unknown))
    return replace(table, values=table.values | values)


def segments_report(tables: Mapping[str, PerUserMetrics], settings: EvaluateSettings) -> Segments:
    """Measure every group that has a user or a held-out rating in it.

    Args:
        tables: Name of the model or baseline to its table, with the columns of add_segments.
        settings: Cut-offs.

    Returns:
        Groups of users with all metrics, and groups of items with their recall.
    """
    first = next(iter(tables.values()))
    slice_of = np.searchsorted(list(USER_SLICES.values()), first.values["history"], "right") - 1
    users: dict[str, Segment] = {}
    for place, name in enumerate(USER_SLICES):
        chosen = slice_of == place
        if chosen.any():
            parts = {system: table.where(chosen) for system, table in tables.items()}
            found = {
                system: means(part, metric_names(settings, part.predicts_ratings))
                for system, part in parts.items()
            }
            users[name] = Segment(
                users=int(chosen.sum()), **{s: _without_nan(v) for s, v in found.items()}
            )
    items: dict[str, Segment] = {}
    for name in reversed(ITEM_SLICES):
        ratings = int(first.values[f"relevant/{name}"].sum())
        if ratings:
            columns = [f"recall@{k}/{name}" for k in settings.k]
            found = {
                system: {n.partition("/")[0]: v for n, v in means(table, columns).items()}
                for system, table in tables.items()
            }
            items[name] = Segment(ratings=ratings, **{s: _without_nan(v) for s, v in found.items()})
    return Segments(users=users, items=items)


def _without_nan(values: Mapping[str, float]) -> Values:
    return {name: None if np.isnan(value) else value for name, value in values.items()}
