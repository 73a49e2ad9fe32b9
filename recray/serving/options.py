"""What a service has beside the model that answers: a ratings log, and a second model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recray.errors import RecrayError
from recray.storage import Folder

if TYPE_CHECKING:  # a config is checked without the torch that these load
    from recray.inference.recommender import Recommender
    from recray.serving.ab_test import Arms
    from recray.serving.metrics import Tally
    from recray.serving.routes.feedback import Feedback

LOG = "ratings"
"""Folder of the ratings log in a registry."""


@dataclass(frozen=True)
class Beside:
    """Paths and settings; what they mean is opened on each replica.

    Args:
        ratings_log: Folder of the log; None: a registry's own, and none beside a bundle.
        second: A second bundle or registry, to compare with.
        share: Share of the users that the second model answers, 0..1.
        shadow: Whether the second model gets a copy of the other requests.
    """

    ratings_log: str | None = None
    second: str | None = None
    share: float = 0.0
    shadow: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise RecrayError(f"--share {self.share:g} is out of range: 0 to 1")
        for name in ("second", "ratings_log"):  # replicas have working folders of their own
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Folder(path).path)
        if self.second is None and (self.share or self.shadow):
            raise RecrayError("--share and --shadow go with --second BUNDLE")

    def log_of(self, path: str) -> str | None:
        """Folder of the ratings log of a service of that bundle or registry."""
        from recray.serving.registry import is_registry

        if self.ratings_log is not None:
            return self.ratings_log
        return Folder(path).child(LOG).path if is_registry(path) else None

    def open_feedback(self, path: str, recommender: "Recommender") -> "Feedback | None":
        """The log, or None if none is kept.

        Raises:
            RecrayError: It is of another data set, or cannot be written.
        """
        from recray.data.feedback_log import RatingsLog
        from recray.serving.routes.feedback import Feedback

        folder = self.log_of(path)
        if folder is None:
            return None
        text = recommender.users.text, recommender.items.text
        return Feedback(RatingsLog.of(folder, recommender.bundle.config["dataset"], text))

    def open_arms(self, first: "Recommender", tally: "Tally") -> "Arms | None":
        """The second model, or None if there is none.

        Raises:
            RecrayError: It is missing, damaged, or of another data set.
        """
        if self.second is None:
            return None
        from recray.inference.recommender import Recommender
        from recray.serving.ab_test import Arms, refuse_misfit
        from recray.serving.registry import resolve_bundle

        second = Recommender.open(resolve_bundle(self.second))
        refuse_misfit(first, second)
        return Arms(second, tally, self.share, self.shadow)
