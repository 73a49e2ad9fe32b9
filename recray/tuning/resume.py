"""A sweep that goes on: what is there need not be told again."""

from typing import Any

from recray.config import Settings, build_settings, load_settings, overridden
from recray.errors import RecrayError
from recray.tuning.request import ASKED, KEPT
from recray.tuning.space import Space, load_space, parse_space
from recray.tuning.store import SweepFolder


class Resumed:
    """What a sweep was started with.

    Args:
        out: Its folder.
    """

    def __init__(self, out: str) -> None:
        facts = SweepFolder(out).before()
        if facts is None:
            raise RecrayError(f"{out} holds no sweep to resume; start one with PREPARED and --out")
        self.facts: dict[str, Any] = facts

    def options(self) -> dict[str, Any]:
        """The fields of an Order, as they were."""
        asked = {name: self.facts["order"][name] for name in ASKED}
        return asked | {name: self.facts[name] for name in KEPT}

    def settings(
        self, preset: str | None, config: str | None, overrides: tuple[str, ...]
    ) -> Settings:
        """Those of the sweep, with what is given now in their place."""
        if preset is not None or config is not None:
            return load_settings(preset, config, overrides)
        return overridden(build_settings(self.facts["settings"]), overrides)

    def space(self, settings: Settings, path: str | None) -> Space:
        """That of the sweep, or the one of a file; another preset has another."""
        if path is not None or settings.preset != self.facts["settings"]["preset"]:
            return load_space(settings, path)
        return parse_space(self.facts["space"], settings)
