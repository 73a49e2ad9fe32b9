"""Search in titles: accents and case folded, articles in their place, prefixes first."""

import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = "the|a|an|le|la|les|l'|un|une|der|die|das|ein|eine|el|los|las|il|lo|gli|de|het|den|o|os"
_TURNED = re.compile(rf"(^|\()([^()]+), ({_ARTICLES})(?=\s*(?:\(|\)|$))", re.IGNORECASE)
_LEADING = re.compile(r"^(?:the|a|an) ")
_BETWEEN = re.compile(r"[^\w]+")


def fold(text: str) -> str:
    """Lower-case words without accents, with one space between them."""
    marks = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in marks if not unicodedata.combining(letter))
    return _BETWEEN.sub(" ", re.sub("['\u2019]", "", plain)).strip()


def spoken(title: str) -> str:
    """A title with its articles in front: The Shawshank Redemption, not Shawshank Redemption, The.

    Those of further titles in brackets too.
    """

    def turn(found: re.Match[str]) -> str:
        before, rest, article = found.groups()
        return before + article + ("" if article.endswith("'") else " ") + rest.strip()

    return _TURNED.sub(turn, title)


class TitleIndex:
    """Finds items by what somebody types.

    Args:
        titles: Title of each item.
        weight: Of each item; the heavier of two equal finds comes first.
    """

    def __init__(self, titles: list[str], weight: Sequence[float]) -> None:
        self._folded = [" " + fold(spoken(title)) for title in titles]
        self._weight = weight

    def find(self, query: str, k: int) -> list[int]:
        """At most k items: titles that begin so, then those with these words, then with each.

        The last word may be a beginning. A leading article may be left out, and titles are also
        found as they are written, such as "Shawshank Redemption, The".
        """
        wanted = fold(query), fold(spoken(query))
        if not wanted[0]:
            return []
        found = []
        for item, title in enumerate(self._folded):
            rank = min(_rank(words, title) for words in wanted)
            if rank < NO:
                found.append((rank, -self._weight[item], item))
        return [item for _, _, item in sorted(found)[:k]]


NO = 3


def _rank(words: str, title: str) -> int:
    """0 begins so, 1 has these words in this order, 2 has words that begin so, 3 none of it."""
    if (at := title.find(" " + words)) == 0:
        return 0
    if at > 0:
        return 0 if _LEADING.sub("", title[1:]).startswith(words) else 1
    return 2 if all(" " + word in title for word in words.split()) else NO
