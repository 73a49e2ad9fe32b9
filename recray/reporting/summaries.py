"""How several stages in a row, and what watches over them, end: as text."""

import os
from typing import Any

from recray.reporting.terminal import evaluation, table


def up(result: dict[str, Any]) -> str:
    """The end of `recray up`: the table, where the time went, and one line to try."""
    report = (
        evaluation(result["evaluation"]) if result["evaluation"] else "no test split to measure on"
    )
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in result["seconds"].items())
    check = result["verification"]
    words = (
        f"HTTP answers equal offline ones for {check['users']} users"
        if result["verified"]
        else f"HTTP ANSWERS DIFFER: {'; '.join(check['differences'][:3])}"
    )
    url, bundle, user = result["url"], _short(result["bundle"]), result["example_user"]
    steps = [
        ["look at one user", f"recray explain {bundle} --user {user}"],
        ["see it all", f"recray report {bundle} --open"],
        ["search settings", f"recray tune {_short(result['prepared'])} --out sweeps/first"],
        ["serve it again", f"recray serve {bundle}"],
    ]
    width = max(len(words) for words, _ in steps)
    return "\n".join(
        [
            "",
            report,
            "",
            f"{words}; {seconds}",
            f"bundle: {result['bundle']}",
            f"page: {url}  (documentation: {url}/docs)",
            f"try: curl '{url}/v1/users/{user}/recommendations?k=5'",
            "",
            "next, in another terminal or after Ctrl-C:",
            *(f"  {words.ljust(width)}  {line}" for words, line in steps),
        ]
    )


def findings(rows: list[dict[str, Any]]) -> str:
    """What `recray doctor` found, with what to do under it."""
    wide = max(len(row["check"]) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row['level']:<8} {row['check']:<{wide}}  {row['found']}")
        if row["todo"]:
            lines.append(f"{'':<8} {'':<{wide}}  -> {row['todo']}")
    counts = {level: sum(r["level"] == level for r in rows) for level in ("problem", "warning")}
    words = [f"{n} {level}{'s' if n > 1 else ''}" for level, n in counts.items() if n]
    return "\n".join([*lines, ", ".join(words) or "all is well"])


def jobs(rows: list[dict[str, Any]]) -> str:
    """The jobs of a cluster."""
    if not rows:
        return "no jobs yet"
    body = [
        [
            row["name"],
            row["status"].lower(),
            "" if row["exit_code"] is None else str(row["exit_code"]),
            "" if row["started"] is None else row["started"].replace("+00:00", "Z"),
            "" if row["seconds"] is None else f"{row['seconds']:,.0f} s",
        ]
        for row in rows
    ]
    return table("", ["job", "status", "exit", "started", "ran"], body)


def release(result: dict[str, Any]) -> str:
    """The end of `recray pipeline`: the table, what became of the version, where the time went."""
    report = (
        evaluation(result["evaluation"]) if result["evaluation"] else "no test split to measure on"
    )
    seconds = ", ".join(f"{stage} {value:.1f} s" for stage, value in result["seconds"].items())
    done = "promoted" if result["promoted"] else "NOT promoted"
    return "\n".join(
        [
            "",
            report,
            "",
            f"version {result['version']} {done}: {result['verdict']}",
            seconds,
            f"bundle: {result['bundle']}",
            f"registry: {result['registry']}  (recray serve {result['registry']})",
        ]
    )


def _short(path: str) -> str:
    """A path as one would type it here."""
    if "://" in path:
        return path
    near = os.path.relpath(path)
    return path if near.startswith("..") else near


def benchmark(name: str, result: dict[str, Any]) -> str:
    """A benchmark: its rows, then its figures, with the machine and its load."""
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    body = [[_cell(row.get(column)) for column in columns] for row in result["rows"]]
    facts = result["machine"]
    title = (
        f"{name} on {facts['cpus']} CPUs, load {facts['load']} before, {facts['load_after']} after"
    )
    figures = [[figure, _cell(value)] for figure, value in result["figures"].items()]
    return "\n\n".join([table(title, columns, body), table("", ["figure", ""], figures)])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        if 0 < abs(value) < 0.001:
            return f"{value:.3g}"
        return f"{value:,.3f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def folds(result: dict[str, Any]) -> str:
    """Folds or seeds: a row each, then mean, standard deviation, and the mean of each baseline."""
    names = list(result["mean"])
    body = [[r["fold"], *(f"{r['metrics'][n]:.4f}" for n in names)] for r in result["folds"]]
    for label, values in (("mean", result["mean"]), ("sd", result["sd"])):
        body.append([label, *(f"{values[n]:.4f}" for n in names)])
    for name, values in result["baselines"].items():
        body.append([name, *(f"{values[n]:.4f}" if n in values else "" for n in names)])
    return table("", ["fold", *names], body)


def ratings_log(path: str, told: dict[str, Any]) -> str:
    """What a ratings log gave, and what of it could not be used, in a line."""
    parts = [f"{path}: {told['ratings']:,} ratings of {told['users']:,} users"]
    if told["damaged_parts"]:
        parts.append(f"{len(told['damaged_parts'])} damaged parts left out")
    if told["unknown_items"]:
        parts.append(f"{told['unknown_items']:,} of items that the source does not have left out")
    return "; ".join(parts)


def refreshed(result: dict[str, Any]) -> str:
    """What a refresh gained, and what its warm start saved."""
    gain, full, spared = result["gain"], result["against_full"], result["saved"]
    lines = []
    if gain is not None:
        rows = [[result["taken"], "the live version", *_difference(gain)]]
        if full is not None:
            rows.append(["the warm start", "training from nothing", *_difference(full)])
        title = f"{result['version']} on the hold-out of {result['before']}, {gain['metric']}"
        lines.append(
            table(title, ["of", "against", "difference", "95 % interval", "verdict"], rows)
        )
    if spared is not None:
        lines.append(_spared(spared))
    done = "promoted" if result["promoted"] else "NOT promoted"
    lines.append(f"{done} in {result['registry']}: {result['version']}")
    return "\n".join(lines)


def _difference(row: dict[str, Any]) -> list[str]:
    words = row["verdict"].split(": ", 1)[1].split(" (", 1)[0]
    interval = f"{row['low']:+.4f} to {row['high']:+.4f}"
    return [f"{row['value']:+.4f}", interval, words]


def _spared(spared: dict[str, Any]) -> str:
    cold = f"{spared['full_epochs']} epochs ({spared['full_seconds']:.1f} s)"
    if spared["warm_epochs"] is None:
        return f"warm start: never as good on validation as from nothing after {cold}"
    warm = f"{spared['warm_epochs']} epochs ({spared['warm_seconds']:.1f} s)"
    return f"warm start: as good on validation after {warm} as from nothing after {cold}"
