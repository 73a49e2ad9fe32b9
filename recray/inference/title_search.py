"""Search in titles: no accents, no case, articles in place, prefixes first, typos last."""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property

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
        found as they are written, such as "Shawshank Redemption, The". Where nothing is found, each
        word of three letters and more may have one letter wrong, missing, too many, or swapped.
        """
        wanted = fold(query), fold(spoken(query))
        if not wanted[0]:
            return []
        found = []
        for item, title in enumerate(self._folded):
            rank = min(_rank(words, title) for words in wanted)
            if rank < NO:
                found.append((rank, -self._weight[item], item))
        if not found:
            found = list(self._mistyped(wanted[0].split()))
        return [item for _, _, item in sorted(found)[:k]]

    @cached_property
    def _words(self) -> str:
        return "\n".join(sorted({word for title in self._folded for word in title.split()}))

    def _mistyped(self, words: list[str]) -> Iterator[tuple[int, float, int]]:
        """Rank, weight and item of titles that have all words, but for a letter of each."""
        meant = [re.findall(_but_for_a_letter(word), self._words, re.MULTILINE) for word in words]
        if not all(meant):
            return
        each = [re.compile(f" (?:{'|'.join(variants)})(?= |$)") for variants in meant]
        for item, title in enumerate(self._folded):
            places = [pattern.search(title) for pattern in each]
            if all(places):
                begins = any(place is not None and place.start() == 0 for place in places)
                yield int(not begins), -self._weight[item], item


NO = 3
SURE = 3
"""Words of fewer letters are taken as they are."""


def _rank(words: str, title: str) -> int:
    """0 begins so, 1 has these words in this order, 2 has words that begin so, 3 none of it."""
    if (at := title.find(" " + words)) == 0:
        return 0
    if at > 0:
        return 0 if _LEADING.sub("", title[1:]).startswith(words) else 1
    return 2 if all(" " + word in title for word in words.split()) else NO


def _but_for_a_letter(word: str) -> str:
    """A pattern of the words that begin so, but for one letter."""
    if len(word) < SURE:
        return rf"^{word}\w*$"
    places = range(len(word))
    wrong = [word[:i] + r"\w?" + word[i + 1 :] for i in places]  # or one too many
    missing = [word[:i] + r"\w" + word[i:] for i in places]
    swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]]
    return rf"^(?:{'|'.join((*wrong, *missing, *swapped))})\w*$"
