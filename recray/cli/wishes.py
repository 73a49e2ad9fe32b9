"""Options that say what may be in a list."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from recray.errors import RecrayError

if TYPE_CHECKING:
    from recray.inference.filters import Wish
    from recray.inference.recommender import Recommender


def wishes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command takes them as **wanted and gives them to wish_of."""
    year = click.IntRange(1, 9999)
    options = [
        click.option("--genres", multiple=True, metavar="NAME", help="At least one; repeatable."),
        click.option("--not-genres", multiple=True, metavar="NAME", help="None; repeatable."),
        click.option("--year-from", type=year, metavar="YEAR", help="First year."),
        click.option("--year-to", type=year, metavar="YEAR", help="Last year."),
        click.option("--exclude", multiple=True, metavar="ITEM", help="Not this; repeatable."),
        click.option(
            "--min-popularity",
            type=click.IntRange(min=0),
            metavar="N",
            help="Fewest training ratings.",
        ),
        click.option(
            "--diversity",
            type=click.FloatRange(0, 1),
            metavar="0..1",
            help="0 by score alone, 1 as varied as can be.",
        ),
        click.option("--why", is_flag=True, help="Name the rated items behind each."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def wish_of(wanted: dict[str, Any], recommender: "Recommender") -> "Wish":
    """What the options ask for.

    Raises:
        RecrayError: An excluded id is none of this data.
    """
    from recray.inference.filters import Wish

    given = {name: value for name, value in wanted.items() if value}
    explain = bool(given.pop("why", False))
    exclude = []
    for text in given.pop("exclude", ()):
        try:
            exclude.append(recommender.items.parse(text))
        except KeyError:
            raise RecrayError(f"--exclude {text}: the items of this data are numbers") from None
    return Wish(exclude=exclude, explain=explain, **given)
