"""What a Serve config may say to our application. Needs no Ray."""

from pydantic import BaseModel, ConfigDict, Field

from recray.errors import RecrayError
from recray.serving.auth import load_keys
from recray.serving.guard import LogLevel, ServiceLimits
from recray.serving.options import ServiceOptions

APP_BUILDER = "recray.serving.deployment:app_builder"
DEPLOYMENT = "recray"


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
    max_body: int = Field(4, ge=1, le=1024)
    timeout: float = Field(10.0, gt=0)
    queue: int = Field(64, ge=1)
    rate: float = Field(0.0, ge=0)
    burst: int = Field(20, ge=1)
    cors: tuple[str, ...] = ()
    log: LogLevel = "errors"
    ratings_log: str | None = None
    """Folder of the ratings log; without it a registry's own."""
    second: str | None = None
    """A second bundle or registry, to compare with; see ServiceOptions."""
    share: float = Field(0.0, ge=0, le=1)
    shadow: bool = False
    revision: str = ""
    """Any text; a new one replaces the replicas one after another."""

    def options(self) -> ServiceOptions:
        """The ratings log and the challenger.

        Raises:
            RecrayError: There is a share, and no second model.
        """
        return ServiceOptions(self.ratings_log, self.second, self.share, self.shadow)

    def limits(self) -> ServiceLimits:
        """Keys and limits; reads the keys where it is called.

        Raises:
            RecrayError: Keys are wanted and there are none.
        """
        keys = () if self.without_keys else load_keys(self.api_keys)
        if not keys and not self.without_keys:
            raise RecrayError(
                "no keys: give args.api_keys or set RECRAY_API_KEYS on every node, "
                "or args.without_keys where no other machine reaches the service"
            )
        limits = {name: getattr(self, name) for name in ("timeout", "queue", "rate", "burst")}
        return ServiceLimits(
            keys=keys, max_body=self.max_body << 20, cors=self.cors, log=self.log, **limits
        )
