"""Make the report of a run, a sweep or a bundle, and write it as HTML."""

import tempfile
from pathlib import Path

from recray.errors import RecrayError
from recray.inference.bundle import KIND as BUNDLE
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.reporting import sections
from recray.reporting.html import Document
from recray.serving.registry import resolve_bundle
from recray.storage import Folder, is_uri, storage_errors
from recray.training.checkpoint import RunFolder
from recray.training.trainer import export
from recray.tuning.store import SweepFolder


def make(path: str) -> Document:
    """Make the report of a folder.

    Args:
        path: A run, a sweep, a bundle, a registry, or what `recray up` wrote.

    Raises:
        RecrayError: It is none of them, or it cannot be read.
    """
    folder = Folder(path)
    if not folder.exists():
        raise RecrayError(f"no such folder: {folder}")
    if folder.exists("sweep.json"):
        return _of_sweep(folder)
    if folder.exists("run.json"):
        return _of_run(folder)
    inner = folder.child("bundle")
    bundle = inner.path if inner.published() and not folder.published() else resolve_bundle(path)
    if not Folder(bundle).published() or Folder(bundle).manifest().kind != BUNDLE:
        raise RecrayError(f"{folder} is no run, no sweep and no bundle: there is nothing to report")
    return of_bundle(Bundle.open(bundle), "bundle")


def write(document: Document, out: str, png: bool) -> list[str]:
    """Write the page, and with `png` a folder of its pictures beside it.

    Args:
        document: The report.
        out: The HTML file.
        png: Whether to write the pictures, too, as PNG.

    Returns:
        The files, the page first.

    Raises:
        StorageError: They cannot be written.
    """
    page = Path(out)
    written = {page: document.html().encode()}
    if png:
        from recray.reporting.plots.style import png as drawn

        beside = page.with_suffix("")
        folder = beside.with_name(f"{beside.name}-pictures")
        written |= {folder / f"{p.name}.png": drawn(p.figure) for p in document.plots}
    for path, content in written.items():
        with storage_errors(str(path.parent)):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return [str(path) for path in written]


def default_out(path: str) -> str:
    """Beside the folder, under its name; in the current one where the folder is remote."""
    name = Folder(path).name
    return f"{name}.html" if is_uri(path) else f"{Folder(path).path}.html"


def _of_run(folder: Folder) -> Document:
    """Export the best epoch of the run into a temporary bundle, and report that."""
    with tempfile.TemporaryDirectory(prefix="recray-report-") as temporary:
        bundle = export(folder.path, f"{temporary}/bundle")
        return of_bundle(bundle, "run", RunFolder(folder.path))


def of_bundle(bundle: Bundle, what: str, run: RunFolder | None = None) -> Document:
    """The report of an opened bundle.

    Args:
        bundle: The bundle.
        what: What to call it.
        run: The run that it was exported from.
    """
    recommender, settings = Recommender(bundle), bundle.settings
    report = bundle.metrics
    candidates = [
        sections.data_section(bundle),
        sections.training_section(bundle),
        sections.predictions_section(recommender),
        sections.ranking_section(report),
        sections.users_section(recommender),
        sections.facts_section(bundle, run),
    ]
    title = f"{bundle.config['dataset']}: {settings.preset} ({what})"
    lead = report["verdict"].split("; ") if report else ["There is no test split to measure on."]
    chosen = [section for section in candidates if section is not None]
    return Document(title, lead, _tiles(bundle), chosen)


def _of_sweep(folder: Folder) -> Document:
    """Report the search, then the winner's first run on test where there is one."""
    result = SweepFolder(folder.path).summary()
    if result is None:
        raise RecrayError(f"{folder} is not finished; continue it with `recray tune --resume`")
    lead = [result.test.verdict if result.test else "The test split was not opened."]
    tiles = [
        (f"{len(result.trials)}", "trials"),
        (f"{result.best_value:.4f}", f"best validation {result.metric}"),
        (f"trial {result.best}", "won"),
    ]
    title = f"{result.dataset}: search from {result.preset}"
    trials = sections.search_section(result)
    runs = [n for n in folder.child("final").folders() if n.startswith("winner-")]
    if not runs:
        return Document(title, lead, tiles, [trials])
    winner = _of_run(folder.child("final").child(runs[0]))
    return Document(title, lead + winner.lead, tiles, [trials, *winner.sections])


def _tiles(bundle: Bundle) -> list[tuple[str, str]]:
    ratings = len(bundle.history) + len(bundle.holdout)
    tiles = [
        (f"{ratings:,}", "ratings"),
        (f"{len(bundle.user_ids):,}", "users"),
        (f"{len(bundle.item_ids):,}", "films"),
    ]
    wanted = (bundle.settings.metric, f"ndcg@{bundle.settings.evaluate.k[0]}")
    for name in dict.fromkeys(wanted):
        value = bundle.metrics.get("metrics", {}).get(name)
        if value is not None:
            words = f"{name} on test ({value['low']:.4f} to {value['high']:.4f})"
            tiles.append((f"{value['value']:.4f}", words))
    if bundle.metrics.get("coverage") is not None:
        tiles.append((f"{100 * bundle.metrics['coverage']:.0f} %", "of all films in some list"))
    return tiles
