"""Evaluates a bundle: the model and its baselines on the hold-out, with intervals and a verdict."""

from functools import cached_property
from typing import Any

import numpy as np
import torch

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.errors import RecrayError
from recray.evaluation import baselines, segments
from recray.evaluation.bootstrap import compare, means, summarise
from recray.evaluation.per_user import (
    UserTable,
    blocks_of,
    catalogue,
    measure_lists,
    metric_names,
    rank_lists,
)
from recray.evaluation.protocol import HONEST, SAMPLED, Protocol
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.inference.scorer import Ranker


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
        protocol: Protocol = HONEST,
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
        self.beside = baselines.choose(protocol.baselines, bundle.item_ids.known)

    @cached_property
    def rankers(self) -> dict[str, Ranker]:
        """Model and baselines by name; made where blocks are measured, not where they join."""
        ranker = Recommender(self.bundle).ranker
        model = ranker.model
        return {"model": ranker} | baselines.build(
            self.beside, ranker.history, model.users, model.items
        )

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
        return {name: self._measure(ranker, block) for name, ranker in self.rankers.items()}

    def _measure(self, ranker: Ranker, block: int) -> UserTable:
        users = self.blocks[block]
        pool = self.protocol.pool(ranker, users)
        lists = rank_lists(ranker, self.targets, users, self.settings, pool)
        table = measure_lists(ranker, lists, self.settings)
        return segments.add_columns(table, lists, ranker, self.settings)

    def report(self, parts: list[dict[str, UserTable]]) -> dict[str, Any]:
        """Put the blocks together: means, intervals, baselines and the verdict."""
        names = ("model", *self.beside)
        tables = {name: UserTable.join(part[name] for part in parts) for name in names}
        measured = {n: self._measured(t) | self._catalogue(t) for n, t in tables.items()}
        config, group = self.bundle.config, measured["model"].pop("catalogue", {})
        return {
            "dataset": config["dataset"],
            "preset": self.bundle.settings.preset,
            "model_version": self.bundle.version,
            "protocol": self.protocol.plain(),
            "users": len(tables["model"].user),
            "split": config["split"]
            | {"rows": {k: v["rows"] for k, v in config["splits"].items()}},
            "metrics": measured["model"],
            "baselines": {name: measured[name] for name in self.beside},
            "verdict": self._verdict(tables),
            "unseen": config["unseen"],
            **({"coverage": next(iter(group.values())), "catalogue": group} if group else {}),
            "slices": segments.report(tables, self.settings),
        }

    def _catalogue(self, table: UserTable) -> dict[str, Any]:
        """The group of the catalogue; none where the protocol chooses what can be shown."""
        if self.protocol.kind != "full":
            return {}
        return {"catalogue": catalogue(table, self.settings)}

    def _measured(self, table: UserTable) -> dict[str, Any]:
        # Among rated films the errors would be those of training rows, too.
        stars = _predicts_stars(table) and self.protocol.kind != "rated"
        names = metric_names(self.settings, stars)
        if self.protocol.kind == "sampled":
            names = [name for name in names if name.partition("@")[0] in SAMPLED]
        return summarise(table, names)

    def _verdict(self, tables: dict[str, UserTable]) -> str:
        """The model against the best baseline: by error if both predict stars, and by ranking."""
        model, words = tables["model"], []
        for metric in ("rmse", f"ndcg@{self.settings.k[0]}"):
            if metric == "rmse" and (not _predicts_stars(model) or self.protocol.kind != "full"):
                continue
            others = {
                name: means(tables[name], [metric])[metric]
                for name in self.beside
                if metric != "rmse" or _predicts_stars(tables[name])
            }
            if others:
                sign = -1 if metric == "rmse" else 1
                best = max(others, key=lambda name: sign * others[name])
                words.append(compare(model, tables[best], metric).words(best))
        return "; ".join(words)


def _with_history(targets: Ratings, history: Ratings) -> Ratings:
    """All ratings of the users who have held-out ones."""
    own = history.where(np.isin(history.user, np.unique(targets.user)))
    return Ratings.concatenate([own, targets])


def _predicts_stars(table: UserTable) -> bool:
    return "ratings" in table.values


def evaluate(
    bundle: Bundle,
    settings: EvaluateSettings | None = None,
    protocol: Protocol = HONEST,
) -> dict[str, Any]:
    """Evaluate a bundle on its own hold-out in this process; see Evaluator.report for the keys."""
    evaluator = Evaluator(bundle, settings, None, protocol)
    return evaluator.report([evaluator.measure_block(b) for b in range(len(evaluator.blocks))])
