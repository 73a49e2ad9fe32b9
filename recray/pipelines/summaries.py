"""The results of several stages in a row, as text for the terminal."""

import os

from recray.pipelines.crossvalidation import FoldsReport
from recray.pipelines.doctor import Finding
from recray.pipelines.refresh import Difference, Refreshed, WarmStart
from recray.pipelines.stages import Release, Running
from recray.reporting.terminal import evaluation, table


def up(result: Running) -> str:
    """The end of `recray up`: the metrics, the seconds of each stage, and what to try next."""
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in result.seconds.items())
    check = result.verification
    verified = (
        f"HTTP answers equal offline ones for {check.users} users"
        if result.verified
        else f"HTTP ANSWERS DIFFER: {'; '.join(check.differences[:3])}"
    )
    url, bundle, user = result.url, _short(result.bundle), result.example_user
    steps = {
        "look at one user": f"recray explain {bundle} --user {user}",
        "see it all": f"recray report {bundle} --open",
        "search settings": f"recray tune {_short(result.prepared)} --out sweeps/first",
        "serve it again": f"recray serve {bundle}",
    }
    width = max(map(len, steps))
    return "\n".join(
        [
            "",
            evaluation(result.evaluation),
            "",
            f"{verified}; {seconds}",
            f"bundle: {result.bundle}",
            f"page: {url}  (documentation: {url}/docs)",
            f"try: curl '{url}/v1/users/{user}/recommendations?k=5'",
            "",
            "next, in another terminal or after Ctrl-C:",
            *(f"  {words.ljust(width)}  {line}" for words, line in steps.items()),
        ]
    )


def release(result: Release) -> str:
    """The end of `recray pipeline`: the metrics, whether it was promoted, and the seconds."""
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in result.seconds.items())
    done = "promoted" if result.promoted else "NOT promoted"
    return "\n".join(
        [
            "",
            evaluation(result.evaluation),
            "",
            f"version {result.version} {done}: {result.verdict}",
            seconds,
            f"bundle: {result.bundle}",
            f"registry: {result.registry}  (recray serve {result.registry})",
        ]
    )


def _short(path: str) -> str:
    """A path as one would type it in the current folder."""
    if "://" in path:
        return path
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def findings(found: list[Finding]) -> str:
    """What `recray doctor` found, each problem with its remedy below it."""
    width = max(len(finding.check) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.level:<8} {finding.check:<{width}}  {finding.found}")
        if finding.todo:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.todo}")
    counts = {level: sum(f.level == level for f in found) for level in ("problem", "warning")}
    words = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
    return "\n".join([*lines, ", ".join(words) or "all is well"])


def folds(result: FoldsReport) -> str:
    """A row for each fold or seed, then mean, deviation, and the mean of each baseline."""
    names = list(result.mean)
    rows = [[fold.fold, *(f"{fold.metrics[n]:.4f}" for n in names)] for fold in result.folds]
    for label, values in (("mean", result.mean), ("sd", result.sd), *result.baselines.items()):
        rows.append([label, *(f"{values[n]:.4f}" if n in values else "" for n in names)])
    return table("", ["fold", *names], rows)


def refreshed(result: Refreshed) -> str:
    """What a refresh gained, and what its warm start saved."""
    lines = []
    if result.gain is not None:
        rows = [[result.taken, "the live version", *_difference(result.gain)]]
        if result.against_full is not None:
            against = _difference(result.against_full)
            rows.append(["the warm start", "training from nothing", *against])
        title = f"{result.version} on the hold-out of {result.before}, {result.gain.metric}"
        columns = ["of", "against", "difference", "95 % interval", "verdict"]
        lines.append(table(title, columns, rows))
    if result.saved is not None:
        lines.append(_saved(result.saved))
    done = "promoted" if result.promoted else "NOT promoted"
    lines.append(f"{done} in {result.registry}: {result.version}")
    return "\n".join(lines)


def _difference(row: Difference) -> list[str]:
    words = row.verdict.split(": ", 1)[1].split(" (", 1)[0]
    return [f"{row.value:+.4f}", f"{row.low:+.4f} to {row.high:+.4f}", words]


def _saved(saved: WarmStart) -> str:
    cold = f"{saved.full_epochs} epochs ({saved.full_seconds:.1f} s)"
    if saved.warm_epochs is None or saved.warm_seconds is None:
        return f"warm start: never as good on validation as from nothing after {cold}"
    warm = f"{saved.warm_epochs} epochs ({saved.warm_seconds:.1f} s)"
    return f"warm start: as good on validation after {warm} as from nothing after {cold}"
