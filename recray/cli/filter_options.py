"""Options that say which items may be in a list, and how the list is arranged."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from recray.errors import RecrayError

if TYPE_CHECKING:
    from recray.inference.filters import Filters
    from recray.inference.recommender import Recommender

_YEAR = click.IntRange(1, 9999)
_OPTIONS = (
    click.option("--genres", multiple=True, metavar="NAME", help="At least one; repeatable."),
    click.option("--not-genres", multiple=True, metavar="NAME", help="None; repeatable."),
    click.option("--year-from", type=_YEAR, metavar="YEAR", help="First year."),
    click.option("--year-to", type=_YEAR, metavar="YEAR", help="Last year."),
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
)


def filter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command takes them as **filters and gives them to parse_filters."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def parse_filters(
    recommender: "Recommender", exclude: Sequence[str] = (), why: bool = False, **filters: Any
) -> "Filters":
    """Make the recommender's filters of the values of the options.

    Raises:
        RecrayError: An id to exclude is a text, and the data set has numbers.
    """
    from recray.inference.filters import Filters

    ids = []
    for text in exclude:
        try:
            ids.append(recommender.items.parse(text))
        except KeyError:
            raise RecrayError(f"--exclude {text}: the items of this data are numbers") from None
    used = {name: value for name, value in filters.items() if value}
    return Filters(exclude=ids, explain=why, **used)
