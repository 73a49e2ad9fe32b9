"""The report: pictures of a run, a sweep or a bundle in one file."""

import click

from recray.cli.base import cli, shared
from recray.progress import Console


@cli.command()
@click.argument("folder", metavar="RUN|SWEEP|BUNDLE")
@click.option("--out", metavar="FILE", help="The page.  [default: FOLDER.html]")
@click.option("--png", is_flag=True, help="Write every picture as PNG, too, beside the page.")
@click.option("--open", "show", is_flag=True, help="Open the page in a browser.")
@shared()
def report(ui: Console, folder: str, out: str | None, png: bool, show: bool) -> None:
    """Draw a RUN, a SWEEP or a BUNDLE: one HTML file that needs nothing else.

    \b
    Example:
        recray report recray-out/sample/bundle --open
        recray report sweeps/neumf --png
    """
    from recray.reporting import report as reports

    with ui.during(f"draw {folder}"):
        document = reports.make(folder)
        files = reports.write(document, out or reports.default_out(folder), png)
    shown = [*files[:1], *([f"{len(files) - 1} pictures in {_folder(files[1])}"] if png else [])]
    ui.result({"report": files[0], "pictures": files[1:]}, "\n".join(shown))
    if show:
        click.launch(files[0])


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
