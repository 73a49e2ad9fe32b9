"""What would help where rows of ratings cannot be read, by the reasons of the rejections."""

import re
from collections.abc import Iterable

_ADVICE = (
    (
        r"(user|item) (is (not a number|negative|too large)|has leading zeros)",
        "read ids as text: --set data.ids=text",
    ),
    (
        r"(user|item) is too long",
        "is this the column of the {word}? tell it: --columns {word}=NAME",
    ),
    (
        r"rating is not a number",
        "is this the column of ratings? tell it: --columns rating=NAME; words must be numbers",
    ),
    (r"rating outside the scale", "tell the lowest and highest rating: --set data.scale=LOW,HIGH"),
    (
        r"rating is (empty|not finite)",
        "rows without a rating are left out: give them one, or a file without the column",
    ),
    (
        r"missing column|too many columns|quote is not closed",
        "lines have other numbers of fields than the first one: put fields that hold the delimiter "
        "in double quotes",
    ),
    (r"not UTF-8|NUL byte", "the file is damaged there, or is no text: save it as UTF-8"),
)


def advice(reasons: Iterable[str]) -> list[str]:
    """What would help, each remedy once, in the order of the reasons.

    Args:
        reasons: Why rows were rejected, the most frequent first.
    """
    found: dict[str, None] = {}
    for reason in reasons:
        for pattern, remedy in _ADVICE:
            if re.match(pattern, reason):
                found[remedy.format(word=reason.split(" ", 1)[0])] = None
    return list(found)
