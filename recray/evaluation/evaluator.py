"""Evaluates a bundle: the model and its baselines on the hold-out, with intervals and a verdict."""

from functools import cached_property

import numpy as np
import torch

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation import baselines, segments
from recray.evaluation.bootstrap import compare, means, summarise
from recray.evaluation.per_user import (
    PerUserMetrics,
    blocks_of,
    compute_metrics,
    exposure_metrics,
    metric_names,
    rank_block,
)
from recray.evaluation.protocol import FULL_RANKING, SAMPLED, Protocol
from recray.evaluation.report import (
    BaselineReport,
    EvaluationReport,
    Interval,
    SplitReport,
    Unseen,
    Values,
)
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.inference.scorer import Scorer


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
        self.bundle = bundle
        self.settings = settings or bundle.settings.evaluate
        self.targets = bundle.holdout if targets is None else targets
        self.blocks = blocks_of(self.targets)
        if not self.blocks:
            raise RecrayError("the test split has no ratings: nobody can be evaluated")
        self._check()
        self.protocol = protocol
        if protocol.kind == "rated":
            self.targets = _with_history(self.targets, bundle.history)
        protocol.check(bundle, np.concatenate(self.blocks))
        self.baselines = baselines.choose(protocol.baselines, bundle.item_ids.known)

    @cached_property
    def scorers(self) -> dict[str, Scorer]:
        """Model and baselines by name; built only in the process that measures blocks."""
        scorer = Recommender(self.bundle).scorer
        model = scorer.model
        return {"model": scorer} | baselines.build(
            self.baselines, scorer.history, model.users, model.items
        )

    def _check(self) -> None:
        threshold = self.settings.relevant_from
        if threshold is not None and not (self.targets.rating >= threshold).any():
            raise RecrayError(
                f"no held-out rating has {threshold:g} stars or more: nothing would be relevant"
            )
        largest = max(self.settings.k)
        if largest > self.bundle.item_ids.known:
            raise RecrayError(
                f"evaluate.k={largest} is larger than the catalogue of "
                f"{self.bundle.item_ids.known} items"
            )

    def measure_block(self, block: int) -> dict[str, PerUserMetrics]:
        """Model and baselines on one block of users."""
        torch.set_num_threads(1)  # so that sums are added in one order everywhere
        return {name: self._measure(scorer, block) for name, scorer in self.scorers.items()}

    def _measure(self, scorer: Scorer, block: int) -> PerUserMetrics:
        users = self.blocks[block]
        candidates = self.protocol.candidate_cells(scorer, users)
        lists = rank_block(scorer, self.targets, users, self.settings, candidates)
        table = compute_metrics(scorer, lists, self.settings)
        return segments.add_columns(table, lists, scorer, self.settings)

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
            metrics=self._measured(tables["model"]),
            baselines={
                name: BaselineReport(
                    catalogue=self._catalogue(tables[name]), **self._measured(tables[name])
                )
                for name in self.baselines
            },
            verdict=self._verdict(tables),
            unseen=Unseen.model_validate(config["unseen"]),
            coverage=next(iter(catalogue.values())) if catalogue else None,
            catalogue=catalogue,
            slices=segments.report(tables, self.settings),
        )

    def _catalogue(self, table: PerUserMetrics) -> Values | None:
        """What the lists show of the catalogue; None where the protocol limits it."""
        return exposure_metrics(table, self.settings) if self.protocol.kind == "full" else None

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


def _with_history(targets: Ratings, history: Ratings) -> Ratings:
    """All ratings of the users who have held-out ones."""
    rated = history.where(np.isin(history.user, np.unique(targets.user)))
    return Ratings.concatenate([rated, targets])


def evaluate(
    bundle: Bundle,
    settings: EvaluateSettings | None = None,
    protocol: Protocol = FULL_RANKING,
) -> EvaluationReport:
    """Evaluate a bundle on its own hold-out in this process."""
    evaluator = Evaluator(bundle, settings, None, protocol)
    return evaluator.report([evaluator.measure_block(b) for b in range(len(evaluator.blocks))])
