"""What a service has besides the model that answers: a ratings log, and a challenger."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recray.errors import RecrayError
from recray.storage import Folder

if TYPE_CHECKING:  # a Serve config is checked without loading torch, which these import
    from recray.inference.recommender import Recommender
    from recray.serving.ab_test import ABTest
    from recray.serving.feedback_service import FeedbackService
    from recray.serving.telemetry import ServiceMetrics

LOG_FOLDER = "ratings"
"""Name of the ratings log's folder in a registry."""


@dataclass(frozen=True)
class ServiceOptions:
    """Paths and settings; each replica opens the folders that they name.

    Args:
        ratings_log: Folder of the ratings log. None stands for the log of a registry, and for no
            log if a bundle is served.
        challenger: A second bundle or registry, to compare with.
        traffic_share: Share of the users that the challenger answers, 0..1.
        shadow: Whether the challenger also makes the lists of all other users.
    """

    ratings_log: str | None = None
    challenger: str | None = None
    traffic_share: float = 0.0
    shadow: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.traffic_share <= 1:
            raise RecrayError(f"--share {self.traffic_share:g} is out of range: 0 to 1")
        for name in ("challenger", "ratings_log"):  # replicas have working folders of their own
            if (path := getattr(self, name)) is not None:
                object.__setattr__(self, name, Folder(path).path)
        if self.challenger is None and (self.traffic_share or self.shadow):
            raise RecrayError("--share and --shadow go with --second BUNDLE")

    def log_folder(self, path: str) -> str | None:
        """Folder of the ratings log of a service of the bundle or registry at `path`."""
        from recray.serving.registry import is_registry

        if self.ratings_log is not None:
            return self.ratings_log
        return Folder(path).child(LOG_FOLDER).path if is_registry(path) else None

    def open_feedback(self, path: str, recommender: "Recommender") -> "FeedbackService | None":
        """Open the ratings log of a service of the bundle or registry at `path`.

        Returns:
            The opened log, or None if the service keeps no ratings.

        Raises:
            RecrayError: The log is of another data set, or cannot be written.
        """
        from recray.data.feedback_log import RatingsLog
        from recray.serving.feedback_service import FeedbackService

        folder = self.log_folder(path)
        if folder is None:
            return None
        text = recommender.users.text, recommender.items.text
        return FeedbackService(RatingsLog.of(folder, recommender.bundle.config["dataset"], text))

    def open_ab_test(self, first: "Recommender", metrics: "ServiceMetrics") -> "ABTest | None":
        """Open the challenger.

        Returns:
            The A/B test, or None if there is no challenger.

        Raises:
            RecrayError: The challenger is missing, damaged, or of another data set.
        """
        if self.challenger is None:
            return None
        from recray.inference.recommender import Recommender
        from recray.serving.ab_test import ABTest, check_same_dataset
        from recray.serving.registry import resolve_bundle

        challenger = Recommender.open(resolve_bundle(self.challenger))
        check_same_dataset(first, challenger)
        return ABTest(challenger, metrics, self.traffic_share, self.shadow)
