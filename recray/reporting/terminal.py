"""Results of commands as text: lines and tables."""

import os
import textwrap
from typing import TYPE_CHECKING, Any

from recray.reporting.tables import table as table

if TYPE_CHECKING:
    pass


def evaluation(report: dict[str, Any], slices: bool = False) -> str:
    """An evaluation: data set, split, metrics beside the baselines, verdict; slices if wanted."""
    split = report["split"]
    rows = split["rows"]
    title = (
        f"{report['dataset']}, preset {report['preset']}: {report['users']:,} users, "
        f"split {split['kind']} "
        f"(train {rows['train']:,}, valid {rows['valid']:,}, test {rows['test']:,})"
    )
    baselines = report["baselines"]
    body = []
    for name, value in report["metrics"].items():
        interval = f"{value['low']:.4f} to {value['high']:.4f}"
        others = [f"{b[name]['value']:.4f}" if name in b else "" for b in baselines.values()]
        body.append([name, f"{value['value']:.4f}", interval, *others])
    for name, number in report.get("catalogue", {}).items():
        others = [_number(b["catalogue"][name]) for b in baselines.values()]
        body.append([name, _number(number), "", *others])
    unseen = report["unseen"]
    cold = (
        f"not in training: {unseen['users']:,} users, {unseen['items']:,} items, "
        f"{unseen['ratings']:,} of {rows['test']:,} test ratings"
    )
    columns = ["metric", "model", "95 % interval", *baselines]
    protocol = report.get("protocol", {"honest": True})
    lines = [] if protocol["honest"] else [protocol["words"]]
    lines += [table(title, columns, body), *report["verdict"].split("; "), cold]
    groups = report.get("slices", {}) if slices else {}
    return "\n".join(lines + _slices(groups, ["model", *baselines]))


def _slices(groups: dict[str, Any], systems: list[str]) -> list[str]:
    """NDCG by how much is known of users, and recall by how often items are rated."""
    lines = []
    titles = {"users": "users by known ratings", "items": "held-out items by known ratings"}
    for kind, title in titles.items():
        rows = []
        for name, group in groups.get(kind, {}).items():
            counted = "users" if kind == "users" else "ratings"
            for metric in group["model"]:
                if kind == "items" or metric.startswith(("ndcg", "rmse")):
                    values = [_number(group[system].get(metric)) for system in systems]
                    rows.append([name, f"{group[counted]:,}", metric, *values])
        if rows:
            lines += ["", table(title, ["", counted, "metric", *systems], rows)]
    return lines


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def releases(rows: list[dict[str, Any]], licence: str) -> str:
    """The MovieLens releases."""
    body = [
        [
            row["name"],
            f"{row['ratings']:,}",
            f"{row['users']:,}",
            f"{row['items']:,}",
            f"{row['bytes'] / 1e6:,.1f} MB" if row["bytes"] else "?",
            "cached" if row["cached"] else "",
        ]
        for row in rows
    ]
    columns = ["release", "ratings", "users", "films", "archive", ""]
    return "\n".join([table("", columns, body), *textwrap.wrap(licence, 90)])


def description(facts: dict[str, Any]) -> str:
    """Counts and histograms of a data set."""
    counts = ", ".join(f"{facts[n]:,} {n}" for n in ("ratings", "users", "items"))
    lines = [f"{facts['dataset']}: {counts}"]
    for name, word in (("per_user", "ratings per user"), ("per_item", "ratings per item")):
        if facts[name]:
            low, q1, median, q3, high = (f"{value:,.0f}" for value in facts[name])
            lines.append(f"{word}: {low} to {high}, half of them {q1} to {q3}, median {median}")
    lines += ["", "ratings by stars", *_histogram(facts["levels"])]
    if facts["years"]:
        lines += ["", "ratings by year", *_histogram(facts["years"])]
    if "splits" in facts:
        lines += ["", _splits(facts["splits"])]
    rejected = facts["rejected"]
    reasons = ", ".join(f"{count:,} {why}" for why, count in rejected["reasons"].items())
    lines += ["", f"rejected rows: {rejected['rows']:,}" + (f" ({reasons})" if reasons else "")]
    return "\n".join(lines)


def _histogram(pairs: list[list[Any]], width: int = 50) -> list[str]:
    """A bar for each value; at most 30, neighbours put together."""
    step = -(-len(pairs) // 30)
    groups = [pairs[first : first + step] for first in range(0, len(pairs), step)]
    counts = [sum(count for _, count in group) for group in groups]
    most = max(counts, default=1)
    return [
        f"{group[0][0]:>8g}  {count:>12,}  {'#' * max(1, round(width * count / most))}"
        for group, count in zip(groups, counts, strict=True)
    ]


def _splits(splits: dict[str, Any], title: str = "") -> str:
    rows = [
        [
            name,
            *(f"{s[column]:,}" for column in ("rows", "users", "items", "unseen")),
            f"{s['unseen_percent']:.2f} %",
        ]
        for name, s in splits.items()
    ]
    columns = ["split", "ratings", "users", "items", "with unseen ids", "share"]
    return table(title, columns, rows)


def prepared(manifest: dict[str, Any]) -> str:
    """What a prepared data set holds."""
    counts = manifest["counts"]
    title = f"{manifest['dataset']}: {counts['users']:,} users, {counts['items']:,} items"
    lines = [_splits(manifest["splits"], title)]
    if manifest["rejected"]["rows"]:
        reasons = ", ".join(f"{n:,} {why}" for why, n in manifest["rejected"]["reasons"].items())
        lines.append(f"rejected: {reasons} (see rejected.parquet)")
    if counts["duplicates"]:
        lines.append(f"repeated ratings merged: {counts['duplicates']:,}")
    return "\n".join(lines)


def recommendations(answer: dict[str, Any]) -> str:
    """A recommended list."""
    rows = [
        [f"{place}. {i['title']}", ", ".join(i["genres"]), str(i["item"]), f"{i['score']:.4f}"]
        for place, i in enumerate(answer["items"], 1)
    ]
    reasons = [
        f"{place}. because of {_reasons(i['why'])}"
        for place, i in enumerate(answer["items"], 1)
        if i.get("why", {}).get("items")
    ]
    title = f"source {answer['source']}, model {answer['model_version']}"
    return "\n".join([table(title, ["title", "genres", "item", "score"], rows), *reasons])


def _reasons(why: dict[str, Any]) -> str:
    rated = ", ".join(f"{r['title']} ({r['share']:+.3f})" for r in why["items"])
    return rated if why["kind"] == "exact" else f"{rated}, approximately"


def lists(result: dict[str, Any]) -> str:
    """Where the lists of all users are, and how fast they came."""
    before = f", {result['parts_before']} of them before" if result["parts_before"] else ""
    made = (
        f"{result['users']:,} users, {result['k']} items each, in {result['parts']} parts{before}"
    )
    if result["parts_before"] == result["parts"]:
        return f"{made}; nothing was left to do\n{result['out']}"
    nodes = f"{result['nodes']} node{'s' if result['nodes'] > 1 else ''}"
    speed = f"{result['seconds']:.1f} s on {nodes}, {result['users_per_second']:,.0f} users/s"
    return f"{made}\n{speed}\n{result['out']}"


def explanation(look: dict[str, Any], k: int) -> str:
    """One user: films rated best, recommended (hits marked) and held out, at most k of each."""
    stars = look["scores"] == "stars"
    words = {"score": "predicted"} if stars and look["source"] != "popular" else {}

    def films(title: str, rows: list[dict[str, Any]], *names: str) -> str:
        body = [
            [
                ("* " if film.get("hit") else "  ") + film["title"],
                ", ".join(film["genres"]),
                *("?" if film[name] is None else f"{film[name]:g}" for name in names),
            ]
            for film in rows[:k]
        ]
        columns = ["  title", "genres", *(words.get(name, name) for name in names)]
        more = f"\n  and {len(rows) - k:,} more" if len(rows) > k else ""
        return table(title, columns, body) + more

    held, hits = look["held_out"], look["hits"]
    rated = f"user {look['user']}: the best of {look['ratings']:,} ratings"
    listed = f"recommended (source {look['source']}, model {look['model_version']})"
    out = f"held out: {len(held):,} films, {hits} of them recommended (*)"
    return "\n\n".join(
        [
            films(rated, look["rated"], "rating"),
            films(listed, look["recommended"], "score"),
            films(out, held, "rating", "score", "rank"),
        ]
    )


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
