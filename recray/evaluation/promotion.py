"""The gate before a promotion: a new bundle beside the live one, on the live one's hold-out.

It refuses a worse one. That is fair only if the new bundle was trained on none of those ratings.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from recray.config import EvaluateSettings
from recray.data.dataset import Prepared, Ratings
from recray.errors import CheckFailed, RecrayError
from recray.evaluation.comparison import Comparison, compare
from recray.evaluation.metrics import PerUserMetrics, blocks_of, evaluate_block
from recray.inference.bundle import Bundle
from recray.inference.scorer import Scorer


class NotComparable(RecrayError):
    """A candidate has no hold-out to be compared on; `--force` promotes it all the same."""


def check_not_worse(candidate: Bundle, live: Bundle) -> str:
    """Compare a candidate with the live bundle on the live one's hold-out.

    Returns:
        The verdict in words.

    Raises:
        CheckFailed: The candidate is worse by the paired interval.
        NotComparable: The two cannot be compared.
    """
    comparison = compare_on_holdout(candidate, live, live)
    words = comparison.words(f"the live version {live.version}")
    own, other = (bundle.measured.settings.train.fit_on for bundle in (candidate, live))
    if own != other:  # an older version, or one without a final fit
        words += f"; compared are the new fit on {own} and the live one on {other}"
    if comparison.sign < 0:
        raise CheckFailed(
            f"{candidate.version} is not promoted: {words}; use --force to promote it"
        )
    return words


def compare_on_holdout(candidate: Bundle, other: Bundle, live: Bundle) -> Comparison:
    """Compare a candidate with another bundle on the live one's hold-out.

    Raises:
        NotComparable: There is no hold-out, or the candidate was trained on some of it or on
            another data set.
    """
    candidate, other, live = candidate.measured, other.measured, live.measured
    datasets = candidate.config["dataset"], live.config["dataset"]
    if datasets[0] != datasets[1]:
        raise NotComparable(
            f"{candidate.version} comes from {datasets[0]}, the live version from {datasets[1]}: "
            "they cannot be compared; use --force to promote it"
        )
    check_holdout_unseen(candidate.version, candidate.interactions.used, candidate, live)
    k = min(10, *(bundle.item_ids.known for bundle in (candidate, other, live)))
    metric = f"ndcg@{k}" if live.settings.ranks or candidate.settings.ranks else "rmse"
    settings = live.settings.evaluate.model_copy(update={"k": (k,)})
    first, second = (_measure(bundle, live, settings) for bundle in (candidate, other))
    return compare(first, second, metric)


def check_holdout_unseen(name: str, ratings: Ratings, ids: Bundle | Prepared, live: Bundle) -> None:
    """Refuse training data that hold ratings of the live version's hold-out.

    Args:
        name: Name of the candidate, for the error.
        ratings: The ratings that it is trained on.
        ids: Its id tables, in whose ids the ratings are.
        live: The live version.

    Raises:
        NotComparable: The data hold some of them, or there is no hold-out.
    """
    if not len(live.holdout):
        raise NotComparable(
            "the live version has no hold-out to compare on; use --force to promote"
        )
    seen = _count_shared(ratings, ids, live)
    if seen:
        raise NotComparable(
            f"{name} knows {seen:,} ratings of the hold-out that it would be compared on; "
            "prepare with the same split settings, or use --force"
        )


def _count_shared(ratings: Ratings, ids: Bundle | Prepared, live: Bundle) -> int:
    """Count the ratings of the live version's hold-out that are among these, by user and item."""
    user = ids.user_ids.encode(live.user_ids.raw[live.holdout.user]).astype(np.int64)
    item = ids.item_ids.encode(live.item_ids.raw[live.holdout.item])
    items = len(ids.item_ids)
    # user * items + item is another number for each pair, so pairs are compared as numbers.
    held_out = (user * items + item)[(user >= 0) & (item >= 0)]
    return int(np.isin(held_out, ratings.user.astype(np.int64) * items + ratings.item).sum())


def _measure(bundle: Bundle, live: Bundle, settings: EvaluateSettings) -> PerUserMetrics:
    """Measure a bundle on the live one's hold-out; the rows are sorted by raw user id."""
    raw_user = live.user_ids.raw[live.holdout.user]
    targets = _reencode(live.holdout, live, bundle)
    order = np.argsort(targets.user, kind="stable")  # `blocks_of` wants the rows of a user together
    targets = targets.where(order)
    scorer = Scorer.for_measurement(bundle, int(targets.user[-1]) + 1)
    table = PerUserMetrics.join(
        evaluate_block(scorer, targets, b, settings) for b in blocks_of(targets)
    )
    # Dense ids differ between the bundles, raw ids do not: they line the two tables up.
    _, first_row = np.unique(targets.user, return_index=True)
    raw = raw_user[order][first_row]
    by_raw = np.argsort(raw)
    return replace(table.where(by_raw), user=raw[by_raw])


def _reencode(ratings: Ratings, source: Bundle, target: Bundle) -> Ratings:
    """Give ratings the dense ids of another bundle; users and items unknown to it get new ids."""
    columns = []
    for ids, raw in (
        (target.user_ids, source.user_ids.raw[ratings.user]),
        (target.item_ids, source.item_ids.raw[ratings.item]),
    ):
        dense: NDArray[np.int32] = ids.encode(raw)
        _, place = np.unique(raw[dense < 0], return_inverse=True)
        dense[dense < 0] = (len(ids) + place).astype(np.int32)
        columns.append(dense)
    return replace(ratings, user=columns[0], item=columns[1])
