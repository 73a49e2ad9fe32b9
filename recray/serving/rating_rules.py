"""Who may rate, and how much: keys that are bound to a user, and ratings of a key in a day."""

from recray.data.ids import RawId
from recray.serving.http_errors import HTTPError
from recray.serving.options import ServiceLimits
from recray.serving.rate import RateLimiter

DAY_SECONDS = 86_400


class RatingRules:
    """Lets through what a key may write into the ratings log.

    Args:
        limits: Has the keys, and the ratings that one of them may send in a day.
    """

    def __init__(self, limits: ServiceLimits) -> None:
        self._user_of = {key.name: key.user for key in limits.keys if key.user is not None}
        self.per_day = limits.ratings_per_day
        self._limiter = RateLimiter(self.per_day / DAY_SECONDS, self.per_day)

    def check_user(self, caller: str, user: RawId) -> None:
        """Refuse to write for another user than the key's own.

        Raises:
            HTTPError: The key is bound to another user.
        """
        own = self._user_of.get(caller)
        if own is not None and own != str(user):
            text = f"this key keeps and takes back the ratings of user {own!r} alone"
            raise HTTPError(403, "other_user", text)

    def check_count(self, caller: str) -> None:
        """Count a rating of a key.

        Raises:
            HTTPError: The key has sent as many as it may within a day.
        """
        wait = self._limiter.acquire(caller)
        if wait:
            text = f"more than {self.per_day:,} ratings of this key in a day"
            headers = {"retry-after": str(max(1, round(wait + 0.5)))}
            raise HTTPError(429, "too_many_ratings", text, headers)
