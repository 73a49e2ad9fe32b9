"""Whether validation can pick the best epoch: with too few or mostly unknown users it cannot."""

import numpy as np
from numpy.typing import NDArray

from recray.config import Settings
from recray.data.dataset import Prepared
from recray.evaluation.metrics import RATING

FEWEST_USERS = 50
"""Validation users below which the best of several epochs is luck."""


def distrust_of_validation(settings: Settings, prepared: Prepared) -> str | None:
    """Why the ranking of validation users cannot pick an epoch; None where it can.

    The error of predicted ratings is a mean over ratings, of which few users have enough.
    """
    if settings.train.fit_on != "train" or settings.metric in RATING:
        return None
    users = np.unique(prepared.load("valid").user)
    if not len(users):
        return None
    if len(users) < FEWEST_USERS:
        return f"validation has {len(users)} users, and {FEWEST_USERS} are needed to pick an epoch"
    cold = _cold(users, prepared)
    if 2 * cold > len(users):
        return f"{cold} of {len(users)} validation users are unknown to training"
    return None


def _cold(users: NDArray[np.int32], prepared: Prepared) -> int:
    """Count the users of whom nothing is known; held-out users are folded in and are not cold."""
    new = users[users >= prepared.users]
    return len(np.setdiff1d(new, prepared.load("fold_in").user)) if len(new) else 0
