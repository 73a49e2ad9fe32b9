"""What `recray doctor` says: findings, each with what to do about it."""

from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

Level = Literal["ok", "warning", "problem"]


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        check: Its name.
        level: ok, warning or problem.
        found: What is there.
        todo: What to do; empty where nothing is.
    """

    check: str
    level: Level
    found: str
    todo: str = ""


class Diagnosis(BaseModel):
    """Whether a cluster is fit for the work.

    Args:
        problems: Number of findings that are problems.
        checks: All findings.
    """

    problems: int
    checks: list[Finding]

    def text(self) -> str:
        """A line for each finding, each problem with its remedy below it."""
        width = max(len(finding.check) for finding in self.checks)
        lines = []
        for finding in self.checks:
            lines.append(f"{finding.level:<8} {finding.check:<{width}}  {finding.found}")
            if finding.todo:
                lines.append(f"{'':<8} {'':<{width}}  -> {finding.todo}")
        levels = [finding.level for finding in self.checks]
        counts = {level: levels.count(level) for level in ("problem", "warning")}
        words = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
        return "\n".join([*lines, ", ".join(words) or "all is well"])
