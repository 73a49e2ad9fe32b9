"""Evaluate a bundle: the model and others beside it on the hold-out, with intervals and a verdict.

`evaluate` measures in this process; `evaluate_on_ray` shares the blocks of users among workers and
gives the same digits.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation.beyond_accuracy import ItemTraits, add_list_metrics, exposure_metrics
from recray.evaluation.comparison import Bootstrap, Comparison, compare_all
from recray.evaluation.metrics import (
    PerUserMetrics,
    RankedBatch,
    blocks_of,
    compute_metrics,
    metric_names,
    rank_block,
)
from recray.evaluation.next_item import NextTargets, baselines_beside
from recray.evaluation.protocol import (
    FULL_RANKING,
    SAMPLED,
    Protocol,
    build_baselines,
    choose_baselines,
)
from recray.evaluation.report import (
    BaselineReport,
    ComparisonReport,
    EvaluationReport,
    SplitReport,
    Unseen,
    Values,
)
from recray.evaluation.segments import add_segments, segments_report
from recray.inference.bundle import Bundle
from recray.inference.scorer import Scorer
from recray.inference.top_k import Ids
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session
from recray.runtime.tasks import map_tasks

POPULARITY = "popularity"
Tables = Mapping[str, PerUserMetrics]


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
        self.next = NextTargets.of(bundle, protocol.next) if protocol.next else None
        own = bundle.holdout if self.next is None else self.next.ratings
        self.targets = own if targets is None else targets
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
        asked, items = protocol.baselines, bundle.item_ids.known
        if self.next is not None and asked is None:
            asked = baselines_beside(items, self.next.rows.timestamp)
        self.baselines = choose_baselines(asked, items)
        self.others = [other.name for other in protocol.others]

    @functools.cached_property
    def scorers(self) -> dict[str, Scorer]:
        """All systems by name; built only in the process that measures blocks."""
        scorer = Scorer.for_measurement(self.bundle)
        others = {
            other.name: Scorer.for_measurement(Bundle.open(other.path).measured)
            for other in self.protocol.others
        }
        histories = self.bundle.interactions.for_measurement
        baselines = build_baselines(self.baselines, scorer, histories)
        return {"model": scorer} | others | baselines

    @functools.cached_property
    def _traits(self) -> ItemTraits:
        return ItemTraits.of(self.bundle, self.scorers["model"].popularity.numpy())

    @functools.cached_property
    def _popular(self) -> Scorer:
        """Popularity, whether it is asked for as a baseline or not."""
        found = self.scorers.get(POPULARITY)
        return found or build_baselines([POPULARITY], self.scorers["model"])[POPULARITY]

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
        """All systems on one block of users."""
        torch.set_num_threads(1)  # so that sums are added in one order everywhere
        users = self.blocks[block]
        pieces = [users] if self.next is None else self.next.moments_of(users)
        parts = [self._measure(piece) for piece in pieces]
        return {name: PerUserMetrics.join(part[name] for part in parts) for name in parts[0]}

    def _measure(self, piece: Ids) -> dict[str, PerUserMetrics]:
        """All systems on some users, or on some moments of users."""
        lists = {name: self._rank(scorer, piece) for name, scorer in self.scorers.items()}
        tables = {name: self._table(name, *found) for name, found in lists.items()}
        if self.protocol.kind != "full":
            return tables
        popular, _ = lists.get(POPULARITY) or self._rank(self._popular, piece)
        traits, settings, shown = self._traits, self.settings, popular.ranked.item
        return {
            name: add_list_metrics(table, lists[name][0], traits, shown, settings)
            for name, table in tables.items()
        }

    def _rank(self, scorer: Scorer, piece: Ids) -> tuple[RankedBatch, Ids]:
        """The lists, and how many known ratings are behind each."""
        if self.next is not None:
            return self.next.rank(scorer, piece, self.settings)
        candidates = self.protocol.candidate_cells(scorer, piece)
        known = scorer.seen.counts(piece)
        return rank_block(scorer, self.targets, piece, self.settings, candidates), known

    def _table(self, name: str, lists: RankedBatch, known: Ids) -> PerUserMetrics:
        scorer = self.scorers[name]
        table = compute_metrics(scorer, lists, self.settings, errors=self.next is None)
        return add_segments(table, lists, scorer, self.settings, known)

    def report(self, parts: list[dict[str, PerUserMetrics]]) -> EvaluationReport:
        """Put the blocks together: means, intervals, baselines and the verdict."""
        names = ("model", *self.others, *self.baselines)
        tables = {name: PerUserMetrics.join(part[name] for part in parts) for name in names}
        config, catalogue = self.bundle.config, self._catalogue(tables["model"])
        rows = {name: split["rows"] for name, split in config["splits"].items()}
        drawn = Bootstrap.of(tables, {n: self._metrics(table) for n, table in tables.items()})
        compared = self._compare(tables, drawn)
        return EvaluationReport(
            dataset=config["dataset"],
            preset=self.bundle.settings.preset,
            model_version=self.bundle.version,
            protocol=self.protocol.report(self.next.users_seen_ahead() if self.next else 0),
            users=tables["model"].users,
            split=SplitReport(**config["split"], rows=rows),
            fit_on=self.bundle.settings.train.fit_on,
            final_fit=self.final_fit,
            metrics=drawn.intervals("model"),
            baselines={name: self._other(name, tables, drawn) for name in self.baselines},
            bundles={name: self._other(name, tables, drawn) for name in self.others},
            targets=None if self.next is None else len(self.next.target),
            verdict=self._verdict(drawn, compared),
            comparisons=[_plain(name, comparison) for name, comparison in compared],
            unseen=Unseen.model_validate(config["unseen"]),
            coverage=next(iter(catalogue.values())) if catalogue else None,
            catalogue=catalogue,
            slices=segments_report(tables, self.settings, self.bundle.user_features),
        )

    def _other(self, name: str, tables: Tables, drawn: Bootstrap) -> BaselineReport:
        return BaselineReport(catalogue=self._catalogue(tables[name]), **drawn.intervals(name))

    def _catalogue(self, table: PerUserMetrics) -> Values | None:
        """What the lists show of the catalogue; None where the protocol limits it."""
        return exposure_metrics(table, self.settings) if self.protocol.kind == "full" else None

    def _metrics(self, table: PerUserMetrics) -> list[str]:
        # Under "rated" the errors would include those of training rows.
        rates = table.predicts_ratings and self.protocol.kind != "rated"
        names = metric_names(self.settings, rates)
        if self.protocol.kind == "sampled":
            names = [name for name in names if name.partition("@")[0] in SAMPLED]
        return names

    def _compare(self, tables: Tables, drawn: Bootstrap) -> list[tuple[str, Comparison]]:
        """The model against every other: by error if both predict ratings, and by ranking."""
        others = [name for name in tables if name != "model"]
        by_error = tables["model"].predicts_ratings and self.protocol.kind == "full"
        family = [
            (name, metric)
            for metric in ("rmse", f"ndcg@{self.settings.k[0]}")
            for name in others
            if metric != "rmse" or (by_error and tables[name].predicts_ratings)
        ]
        compared = compare_all(drawn, tables, "model", family)
        return [(name, found) for (name, _), found in zip(family, compared, strict=True)]

    def _verdict(self, drawn: Bootstrap, compared: list[tuple[str, Comparison]]) -> str:
        """The model against the best baseline by each metric, and every bundle, in words."""
        sentences = []
        for metric in dict.fromkeys(found.metric for _, found in compared):
            own = {name: found for name, found in compared if found.metric == metric}
            values = {name: drawn.mean(name, metric) for name in own if name in self.baselines}
            if values:
                best = (min if metric == "rmse" else max)(values, key=lambda name: values[name])
                sentences.append(own[best].words(best))
            sentences += [found.words(name) for name, found in own.items() if name in self.others]
        return "; ".join(sentences)


def _plain(other: str, found: Comparison) -> ComparisonReport:
    p, corrected = (None if v is None or np.isnan(v) else v for v in (found.p, found.p_holm))
    return ComparisonReport(
        other=other,
        metric=found.metric,
        difference=found.difference,
        low=found.low,
        high=found.high,
        p=p,
        p_holm=corrected,
        verdict=found.verdict,
    )


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
