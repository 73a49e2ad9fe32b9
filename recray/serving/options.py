"""Settings of a service: what it has besides the model, and what a Serve config may say to it.

Needs neither Ray nor torch, so a Serve config is checked quickly.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field

from recray.errors import RecrayError, StorageError
from recray.serving.auth import ApiKey, load_keys, new_key, parse_key, require_keys
from recray.serving.hosts import AllowedHosts
from recray.storage import Folder

if TYPE_CHECKING:  # these import torch
    from recray.inference.recommender import Recommender
    from recray.serving.ab_test import ABTest
    from recray.serving.feedback_service import FeedbackService
    from recray.serving.guard import ServiceMetrics

APP_BUILDER = "recray.serving.deployment:app_builder"
DEPLOYMENT = "recray"
LOG_FOLDER = "ratings"
"""Name of the ratings log's folder in a registry."""


LIMITS = "timeout", "budget", "queue", "rate", "burst", "ratings_per_day"
"""Limits that a Serve config says as ServiceLimits has them."""
LogLevel = Literal["errors", "requests", "users"]


@dataclass(frozen=True)
class ServiceLimits:
    """What the service lets through; each limit is one replica's.

    Args:
        keys: Keys that open the service; without any it is open to everybody.
        max_body: Largest body, in bytes.
        timeout: Seconds after which a request is given up.
        budget: Seconds of a processor that one request may take, by its price.
        queue: Requests that are answered at the same time; the next one gets a 503.
        rate: Requests a second of one key; 0 sets no limit.
        burst: Requests of one key that may come at once before the rate counts.
        cors: Origins whose pages may read replies, such as https://shop.example.
        log: errors, requests, or users, which adds paths, and with them user ids.
        hosts: Names by which the service is called, beside localhost and addresses in numbers. With
            keys and without names here every name will do.
        ratings_per_day: Ratings that one key may keep in a day; 0 sets no limit.
    """

    keys: tuple[ApiKey, ...] = ()
    max_body: int = 1 << 20
    timeout: float = 10.0
    budget: float = 1.0
    queue: int = 64
    rate: float = 0.0
    burst: int = 20
    cors: tuple[str, ...] = ()
    log: LogLevel = "errors"
    hosts: tuple[str, ...] = ()
    ratings_per_day: int = 100_000

    def __post_init__(self) -> None:
        AllowedHosts(self.hosts)
        for origin in self.cors:
            parts = urlsplit(origin)
            whole = f"{parts.scheme}://{parts.netloc}" == origin
            if parts.scheme not in ("http", "https") or not whole:
                raise RecrayError(
                    f"--cors {origin!r}: write an origin such as https://shop.example"
                )

    def allowed_hosts(self) -> AllowedHosts | None:
        """The names that count; None where a key is asked for in their place."""
        return None if self.keys and not self.hosts else AllowedHosts(self.hosts)


def limits_with_own_key(host: str, name: str) -> tuple[str | None, ServiceLimits]:
    """The keys of the environment, and one of our own beside them for who starts the service.

    Args:
        host: Interface to bind.
        name: Of the own key.

    Returns:
        The own key, and the limits; None and no keys where the service asks for none.

    Raises:
        RecrayError: Other machines reach the host, and there are no keys.
    """
    keys = load_keys(None)
    require_keys(host, keys)
    if not keys:
        return None, ServiceLimits()
    own, line = new_key(name)
    return own, ServiceLimits(keys=(*keys, parse_key(line, name)))


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
            StorageError: The log cannot be written.
            RecrayError: The log is of another data set.
        """
        from recray.data.feedback_log import RatingsLog
        from recray.serving.feedback_service import FeedbackService

        folder = self.log_folder(path)
        if folder is None:
            return None
        text = recommender.users.text, recommender.items.text
        try:
            bundle = recommender.bundle
            rule = bundle.settings.data.duplicates
            log = RatingsLog.of(folder, bundle.config["dataset"], text, rule)
        except StorageError as error:  # such as a registry on a read-only disk
            raise StorageError(f"{error}; give --ratings-log a folder that can be") from error
        return FeedbackService(log)

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


class AppArgs(BaseModel):
    """What `args:` of our application may say.

    Limits are as in ServiceLimits, each one replica's; max_body is in MiB here.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    bundle: str = Field(min_length=1)
    """A bundle, or a registry whose current version is followed; every replica must reach it."""
    api_keys: str | None = None
    """File of keys on every node; without it the keys of RECRAY_API_KEYS there."""
    without_keys: bool = False
    """Let everybody in; only where no other machine reaches the service."""
    max_body: int = Field(1, ge=1, le=1024)
    timeout: float = Field(10.0, gt=0)
    budget: float = Field(1.0, gt=0)
    queue: int = Field(64, ge=1)
    rate: float = Field(0.0, ge=0)
    burst: int = Field(20, ge=1)
    ratings_per_day: int = Field(100_000, ge=0)
    cors: tuple[str, ...] = ()
    log: LogLevel = "errors"
    hosts: tuple[str, ...] = ()
    """Names by which the service is called, beside localhost; see ServiceLimits."""
    ratings_log: str | None = None
    """Folder of the ratings log; without it a registry's own."""
    second: str | None = None
    """A second bundle or registry, to compare with; see ServiceOptions."""
    share: float = Field(0.0, ge=0, le=1)
    shadow: bool = False
    revision: str = ""
    """Any text; a new one replaces the replicas one after another."""

    def options(self) -> ServiceOptions:
        """Return the ratings log and the challenger.

        Raises:
            RecrayError: There is a share, and no second model.
        """
        return ServiceOptions(self.ratings_log, self.second, self.share, self.shadow)

    def limits(self) -> ServiceLimits:
        """Return the limits, with the keys of the machine on which this is called.

        Raises:
            RecrayError: There are no keys, and `without_keys` is not set.
        """
        keys = () if self.without_keys else load_keys(self.api_keys)
        if not keys and not self.without_keys:
            raise RecrayError(
                "no keys: give args.api_keys or set RECRAY_API_KEYS on every node, "
                "or args.without_keys where no other machine reaches the service"
            )
        limits = {name: getattr(self, name) for name in LIMITS}
        return ServiceLimits(
            keys=keys,
            max_body=self.max_body << 20,
            cors=self.cors,
            log=self.log,
            hosts=self.hosts,
            **limits,
        )
