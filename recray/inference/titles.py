"""Search by title: accents, case and articles do not matter, and typing errors are tried last."""

# Shape letters: I = items, W = words of all titles, V = different words.

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_ARTICLES = "the|a|an|le|la|les|l'|un|une|der|die|das|ein|eine|el|los|las|il|lo|gli|de|het|den|o|os"
_BEHIND = rf", ({_ARTICLES})\s*(\(|\)|$)"
_TURNED = re.compile(rf"(^|\()([^()]+), ({_ARTICLES})(?=\s*(?:\(|\)|$))", re.IGNORECASE)
_BETWEEN = re.compile(r"[^\w]+")
LEADING = ("", "the ", "a ", "an ")
"""What may stand before the words that a title begins with."""
MIN_TYPO_LETTERS = 3
"""Words of fewer letters are taken as they are."""


def fold(text: str) -> str:
    """Lower-case words without accents, with one space between them."""
    plain = text.casefold()
    if not plain.isascii():
        marks = unicodedata.normalize("NFKD", plain)
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


def folded(titles: pa.Array) -> pa.Array:
    """`fold(spoken(title))` of each title, and a space before it.

    Arrow does it for plain titles, and Python for those with other letters or an article behind.
    """
    by_hand = pc.or_(
        pc.invert(pc.string_is_ascii(titles)),
        pc.match_substring_regex(titles, _BEHIND, ignore_case=True),
    )
    plain = pc.replace_substring(pc.ascii_lower(titles), "'", "")
    plain = pc.ascii_trim_whitespace(pc.replace_substring_regex(plain, r"[^0-9a-z_]+", " "))
    written = [fold(spoken(title)) for title in titles.filter(by_hand).to_pylist()]
    joined = pc.replace_with_mask(plain, by_hand, pa.array(written, titles.type))
    return pc.binary_join_element_wise(
        pa.scalar(" ", titles.type), joined, pa.scalar("", titles.type)
    )


class Postings:
    """Which rows have a code.

    Args:
        codes: (W,) codes, 0..V-1.
        rows: (W,) the row of each, 0..I-1.
        sizes: V and I.
    """

    def __init__(
        self, codes: NDArray[np.integer], rows: NDArray[np.int32], sizes: tuple[int, int]
    ) -> None:
        count, self._size = sizes
        self._rows = rows[np.argsort(codes, kind="stable")]
        self._end = np.cumsum(np.bincount(codes, minlength=count))

    def having(self, codes: Iterable[range]) -> NDArray[np.bool_]:
        """(I,) the rows that have one of these codes."""
        mask = np.zeros(self._size, np.bool_)
        for some in codes:
            if some:
                begin = self._end[some[0] - 1] if some[0] else 0
                mask[self._rows[begin : self._end[some[-1]]]] = True
        return mask


class TitleIndex:
    """Finds items by what somebody types.

    Args:
        titles: Title of each item, large_string.
        weight: (I,) the heavier of two equal finds comes first.
    """

    def __init__(self, titles: pa.Array, weight: NDArray[np.integer | np.floating]) -> None:
        self._folded, self._weight = folded(titles), weight
        words = pc.split_pattern(pc.utf8_ltrim(self._folded, " "), " ")
        row = pc.list_parent_indices(words).to_numpy().astype(np.int32)
        found = words.flatten().dictionary_encode()
        order = pc.sort_indices(found.dictionary).to_numpy()
        self._words = found.dictionary.take(pa.array(order))
        code = np.empty(len(order), np.int32)
        code[order] = np.arange(len(order), dtype=np.int32)
        self._items = Postings(code[found.indices.to_numpy()], row, (len(order), len(titles)))

    def find(self, query: str, k: int) -> list[int]:
        """At most k items: titles that begin so, then those with these words, then with each.

        The last word may be a beginning. A leading article may be left out, and titles are also
        found as they are written, such as "Shawshank Redemption, The". Where nothing is found, each
        word of three letters and more may have one letter wrong, missing, too many, or swapped.
        """
        if not fold(query):
            return []
        forms = dict.fromkeys((fold(query), fold(spoken(query))))
        found = [self._ranked(phrase) for phrase in forms if phrase]
        if not any(len(items) for items, _ in found):
            found = [self._mistyped(fold(query).split())]
        items, rank = (np.concatenate(part) for part in zip(*found, strict=True))
        best = np.lexsort((items, -self._weight[items], rank))
        return list(dict.fromkeys(items[best[: k * len(found)]].tolist()))[:k]

    def _ranked(self, phrase: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items with these words; 0 begins so, 1 has them in this order, 2 all others."""
        words = phrase.split()
        items = self._with_each([[self._beginning(word)] for word in words])
        titles = self._folded.take(pa.array(items))
        begins = np.zeros(len(items), np.bool_)
        for article in LEADING:
            begins |= _bools(pc.starts_with(titles, f" {article}{phrase}"))
        in_order = _bools(pc.match_substring(titles, f" {phrase}"))
        return items, np.where(begins, 0, np.where(in_order, 1, 2))

    def _mistyped(self, words: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Items with all words but for a letter of each; 0 begins with one of them, 1 others."""
        meant = [
            re.findall(_but_for_a_letter(word), self._vocabulary, re.MULTILINE) for word in words
        ]
        codes = [[self._exactly(variant) for variant in variants] for variants in meant]
        items = self._with_each(codes)
        first = {variant for variants in meant for variant in variants}
        titles = self._folded.take(pa.array(items)).to_pylist()
        return items, np.array([title.split()[0] not in first for title in titles], np.int64)

    def _with_each(self, codes: Sequence[Iterable[range]]) -> NDArray[np.int64]:
        """Items with a word of each."""
        masks = (self._items.having(some) for some in codes)
        return np.flatnonzero(np.logical_and.reduce(list(masks)))

    def _beginning(self, word: str) -> range:
        """The codes of words that begin so."""
        return range(self._place(word), self._place(word + chr(0x10FFFF)))

    def _exactly(self, word: str) -> range:
        place = self._place(word)
        return range(place, place + 1)

    def _place(self, word: str) -> int:
        """The number of words that come before it."""
        return bisect_left(range(len(self._words)), word, key=lambda n: self._words[n].as_py())

    @cached_property
    def _vocabulary(self) -> str:
        return "\n".join(self._words.to_pylist())


def _bools(values: pa.Array) -> NDArray[np.bool_]:
    return np.asarray(values.to_numpy(zero_copy_only=False))


def _but_for_a_letter(word: str) -> str:
    """A pattern of the words that begin so, but for one letter."""
    if len(word) < MIN_TYPO_LETTERS:
        return rf"^{word}\w*$"
    places = range(len(word))
    wrong = [word[:i] + r"\w?" + word[i + 1 :] for i in places]  # or one too many
    missing = [word[:i] + r"\w" + word[i:] for i in places]
    swapped = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in places[:-1]]
    return rf"^(?:{'|'.join((*wrong, *missing, *swapped))})\w*$"
