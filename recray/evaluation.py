"""Evaluates a bundle: the model and its baselines on the hold-out, with intervals and a verdict."""

from typing import Any

import torch

from recray import metrics
from recray.bundle import Bundle
from recray.config import EvaluateSettings
from recray.data.prepared import Ratings
from recray.errors import RecrayError
from recray.measuring import UserTable, blocks_of, catalogue, measure, metric_names
from recray.models.base import Model
from recray.models.baselines import Popularity
from recray.ranking import History, Ranker, statistics_of_history
from recray.recommender import Recommender
from recray.significance import compare, summarise


class Evaluator:
    """Measures a bundle and its baselines on held-out ratings.

    Args:
        bundle: An opened bundle.
        settings: Cut-offs and relevance; the bundle's own by default.
        targets: Held-out ratings in the bundle's ids; the bundle's own by default.

    Raises:
        RecrayError: There is nobody to evaluate.
    """

    def __init__(
        self,
        bundle: Bundle,
        settings: EvaluateSettings | None = None,
        targets: Ratings | None = None,
    ) -> None:
        self.bundle = bundle
        self.settings = settings or bundle.settings.evaluate
        self.targets = bundle.holdout if targets is None else targets
        self.blocks = blocks_of(self.targets)
        if not self.blocks:
            raise RecrayError("the test split has no ratings: nobody can be evaluated")
        self._check()
        ranker = Recommender(bundle).ranker
        self.rankers = {"model": ranker, **baselines(ranker.history, ranker.model)}

    def _check(self) -> None:
        bar = self.settings.relevant_from
        if bar is not None and not (self.targets.rating >= bar).any():
            raise RecrayError(
                f"no held-out rating has {bar:g} stars or more: nothing would be relevant"
            )
        largest = max(self.settings.k)
        if largest > self.bundle.item_ids.known:
            raise RecrayError(
                f"evaluate.k={largest} is larger than the catalogue of "
                f"{self.bundle.item_ids.known} items"
            )

    def measure_block(self, block: int) -> dict[str, UserTable]:
        """Model and baselines on one block of users."""
        torch.set_num_threads(1)  # so that sums are added in one order everywhere
        return {
            name: measure(ranker, self.targets, self.blocks[block], self.settings)
            for name, ranker in self.rankers.items()
        }

    def report(self, parts: list[dict[str, UserTable]]) -> dict[str, Any]:
        """Put the blocks together: means, intervals, baselines and the verdict."""
        tables = {name: UserTable.join(part[name] for part in parts) for name in self.rankers}
        stars = self.bundle.model.returns == "stars"
        names = metric_names(self.settings, stars)
        ranking = metric_names(self.settings, stars=False)
        baseline_names = {"popularity": ranking, "bias-only": [*ranking, *metrics.RATING]}
        groups = {name: catalogue(table, self.settings) for name, table in tables.items()}
        config = self.bundle.config
        return {
            "dataset": config["dataset"],
            "preset": self.bundle.settings.preset,
            "model_version": self.bundle.version,
            "users": len(tables["model"].user),
            "split": config["split"]
            | {"rows": {k: v["rows"] for k, v in config["splits"].items()}},
            "metrics": summarise(tables["model"], names),
            "coverage": groups["model"][f"coverage@{self.settings.k[0]}"],
            "catalogue": groups["model"],
            "baselines": {
                n: summarise(tables[n], m) | {"catalogue": groups[n]}
                for n, m in baseline_names.items()
            },
            "verdict": self._verdict(tables, stars),
            "unseen": config["unseen"],
        }

    def _verdict(self, tables: dict[str, UserTable], stars: bool) -> str:
        ranking = f"ndcg@{self.settings.k[0]}"
        pairs = [(ranking, "popularity")]
        if stars:
            pairs.insert(0, ("rmse", "bias-only"))
        model = tables["model"]
        return "; ".join(compare(model, tables[other], m).words(other) for m, other in pairs)


def baselines(history: History, model: Model) -> dict[str, Ranker]:
    """Popularity and bias-only on the same history."""
    users, items = model.users, model.items
    popularity = Popularity(users, items)
    known = min(users, len(history.begins) - 1)
    popularity.observe(statistics_of_history(history, known, items))
    ranker = Ranker(popularity, None, history)
    return {"popularity": ranker, "bias-only": Ranker(ranker.bias_only, None, history)}


def evaluate(bundle: Bundle, settings: EvaluateSettings | None = None) -> dict[str, Any]:
    """Evaluate a bundle on its own hold-out in this process; see Evaluator.report for the keys."""
    evaluator = Evaluator(bundle, settings)
    return evaluator.report([evaluator.measure_block(b) for b in range(len(evaluator.blocks))])
