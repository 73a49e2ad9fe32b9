"""Evaluation that looks forward: one target at a time, ranked from what was known before it.

The words are those of "Time to Split" (Gusak et al., 2025, arXiv 2507.16289): of the test
interactions of a user the `last`, each in turn (`successive`), or `all` from what was known before
the first of them. Unlike there, each of `all` is a target of its own, so that all three are means
over single targets.
"""

# Shape letters: R = known ratings, T = targets, M = moments (a user with what was known then).

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray

from recray import schema
from recray.config import EvaluateSettings
from recray.data.dataset import Ratings, row_order
from recray.data.ids import FIT_SPLITS
from recray.data.split import TEST
from recray.errors import RecrayError
from recray.evaluation.metrics import RankedBatch, mark_hits, rows_of_users
from recray.evaluation.protocol import BASELINES, NextKind
from recray.inference.bundle import Bundle
from recray.inference.history import History, UserRatings
from recray.inference.interactions import FILTERED
from recray.inference.queries import Queries
from recray.inference.scorer import Scorer
from recray.inference.top_k import Ids, TopK
from recray.models.history import ITEM_LIMIT, HistoryModel
from recray.models.recent_popular import RecentPopular
from recray.schema import UNKNOWN_TIME

MOMENTS = 256
"""Moments that are ranked at once."""
BESIDE = ("markov", "recent-popular", "popularity", "item-knn", "last-item-knn")
"""Baselines of this evaluation."""
PAIRS_OF_ITEMS = ("item-knn", "last-item-knn")
"""Those that a large catalogue makes slow."""
NOTHING = UserRatings(
    torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
)
"""No ratings."""


@dataclass(frozen=True)
class NextTargets:
    """What is looked for, and what was known before it.

    Args:
        rows: (R,) all that is known, the rows of each user in order, test rows among them.
        learned: (R,) whether the measured fit learned from the row.
        items: Items that the model knows.
        target: (T,) row of each target, ascending.
        moment: (T,) number of the moment that it is ranked from.
        first: (M,) first row of the moment's user.
        end: (M,) row before which the history of the moment ends.
    """

    rows: Ratings
    learned: NDArray[np.bool_]
    items: int
    target: Ids
    moment: Ids
    first: Ids
    end: Ids

    @classmethod
    def of(cls, bundle: Bundle, kind: NextKind) -> "NextTargets":
        """Choose the targets among the test ratings of a bundle.

        Args:
            bundle: What is measured.
            kind: Which of a user's test ratings are targets.

        Raises:
            RecrayError: There are no test ratings, or nothing tells their order.
        """
        rows, part = _in_order(bundle)
        test = part == TEST
        if not test.any():
            raise RecrayError("the test split has no ratings: nobody can be evaluated")
        if rows.place is None:  # a place is an order, whether times are known or not
            test &= rows.timestamp != UNKNOWN_TIME
        if not test.any():
            raise RecrayError(
                f"--next {kind} needs the order of the test ratings, and none of "
                f"{bundle.config['dataset']} has a time; prepare it again with "
                "--set data.order=file, which takes the order of the source, or leave --next out"
            )
        fit_on = bundle.settings.train.fit_on
        learned = np.isin(part, [schema.PARTS.index(name) for name in FIT_SPLITS[fit_on]])
        learned &= (rows.user < bundle.model.users) & (rows.item < bundle.model.items)
        target = np.flatnonzero(test)
        of_user = rows.user[target]
        starts = np.flatnonzero(np.diff(of_user, prepend=of_user[0] - 1))
        if kind == "last":
            target = target[np.append(starts[1:], len(target)) - 1]
        end = target[starts] if kind == "all" else target
        moment = np.cumsum(np.isin(np.arange(len(of_user)), starts)) - 1
        first = np.searchsorted(rows.user, rows.user[end], "left")
        places = moment if kind == "all" else np.arange(len(target))
        return cls(rows, learned, bundle.model.items, target, places, first, end)

    @property
    def ratings(self) -> Ratings:
        """The targets as ratings."""
        return self.rows.where(self.target)

    @cached_property
    def _kept(self) -> Ids:
        """(R + 1,) how many rows before each have an item that the model knows."""
        return np.append(0, np.cumsum(self.rows.item < self.items))

    @cached_property
    def _columns(self) -> Ratings:
        return self.rows.where(self.rows.item < self.items)

    @cached_property
    def _learned_before(self) -> Ids:
        """(R + 1,) how many rows before each were learned from."""
        return np.append(0, np.cumsum(self.learned))

    def users_seen_ahead(self) -> int:
        """Users of whom the model has learned a rating that came after a moment."""
        last = np.searchsorted(self.rows.user, self.rows.user[self.end], "right")
        ahead = self._learned_before[last] > self._learned_before[self.end]
        return len(np.unique(self.rows.user[self.end[ahead]]))

    def moments_of(self, users: Ids) -> Iterator[Ids]:
        """The moments of some users, in order, in pieces of MOMENTS."""
        moments, _ = rows_of_users(self.rows.user[self.end], users)
        for first in range(0, len(moments), MOMENTS):
            yield moments[first : first + MOMENTS]

    def history(self, moments: Ids) -> History:
        """What was known at each moment, of items that the model knows, with times."""
        start, stop = self._kept[self.first[moments]], self._kept[self.end[moments]]
        indptr = np.append(0, np.cumsum(stop - start))
        cells = np.arange(indptr[-1]) + np.repeat(start - indptr[:-1], stop - start)
        known = self._columns
        return History(indptr, known.item[cells], known.rating[cells], known.timestamp[cells])

    def rank(
        self, scorer: Scorer, moments: Ids, settings: EvaluateSettings
    ) -> tuple[RankedBatch, Ids]:
        """Rank what was not seen yet at some moments, and look for their targets.

        Returns:
            A list for each target, and (T,) how many ratings were known before it.
        """
        longest = min(max(settings.k), scorer.model.items)
        queries = self._queries(scorer, moments)
        ranked = scorer.top_k(queries, longest)
        chosen, place = rows_of_users(self.moment, moments)
        target = self.rows.where(self.target[chosen])
        each = TopK(ranked.item[place], ranked.score[place], ranked.source[place])
        user, item = target.user.astype(np.int64), target.item.astype(np.int64)
        lists = mark_hits(user, np.arange(len(user)), item, target.rating, each, settings)
        return lists, np.diff(queries.rated.indptr)[place]

    def _queries(self, scorer: Scorer, moments: Ids) -> Queries:
        """The moments as the model sees them.

        A model with a table of users has a trained state where it has learned just what was known
        at the moment, and folds in what was known otherwise, as the service does.
        """
        history, user = self.history(moments), self.rows.user[self.end[moments]].astype(np.int64)
        if scorer.objective is None:  # a baseline that does not look at the history
            return Queries(*scorer.user_embeddings(user), lambda: history, history)
        by_history = isinstance(scorer.model, HistoryModel)
        trained = np.zeros(len(user), np.bool_) if by_history else self._is_trained(moments)
        known = [history.of_user(row) if fold else NOTHING for row, fold in enumerate(~trained)]
        # When a target came says something of what it is: published figures leave it out, and so
        # does this one. It only tells where a window of time ends, which is the same for everybody.
        now = self._now(moments) if isinstance(scorer.model, RecentPopular) else None
        queries = scorer.queries_of_ratings(known, now=now)
        if trained.any():
            embedding, source = scorer.user_embeddings(user[trained])
            queries.embedding[torch.from_numpy(trained)] = embedding
            queries.source[trained] = source
        return Queries(queries.embedding, queries.source, lambda: history, history)

    def _is_trained(self, moments: Ids) -> NDArray[np.bool_]:
        """(M,) whether the model has learned what was known at a moment, and nothing else."""
        first, end = self.first[moments], self.end[moments]
        last = np.searchsorted(self.rows.user, self.rows.user[end], "right")
        before, kept = self._learned_before, self._kept
        known = before[end] - before[first]
        only = (known == kept[end] - kept[first]) & (before[last] == before[end])
        return np.asarray(only & (known > 0))

    def _now(self, moments: Ids) -> Ids:
        """(M,) time of the first target of each moment; where unknown, that of the rating before.

        Both may be unknown.
        """
        time, end = self.rows.timestamp, self.end[moments]
        before = np.where(end > self.first[moments], time[np.maximum(end - 1, 0)], UNKNOWN_TIME)
        return np.where(time[end] != UNKNOWN_TIME, time[end], before)


def _in_order(bundle: Bundle) -> tuple[Ratings, NDArray[np.int8]]:
    """All but filtered rows in order, and the part of each.

    Of rows of one time without places those of training come first, then those of validation: a
    split by time may have broken such a tie in its own way.
    """
    every = bundle.interactions
    kept = every.part != FILTERED
    rows, part = every.rows.where(kept), every.part[kept]
    order = row_order(rows)
    if rows.place is None:
        codes, times, users = part[order], rows.timestamp[order], rows.user[order]
        rank = np.where(codes > TEST, 0, codes)  # what is known of held-out users is no test row
        order = order[np.lexsort((rank, times, users))]
    return rows.where(order), part[order]


def baselines_beside(items: int, times: NDArray[np.int64]) -> tuple[str, ...]:
    """The baselines that are measured unless others are asked for.

    Args:
        items: Size of the catalogue; a large one makes some of them slow.
        times: Times of what is known; a window of time needs some.
    """
    names = [name for name in BASELINES if name in BESIDE]
    if items > ITEM_LIMIT:
        names = [name for name in names if name not in PAIRS_OF_ITEMS]
    if (times == UNKNOWN_TIME).all():
        names = [name for name in names if name != "recent-popular"]
    return tuple(names)
