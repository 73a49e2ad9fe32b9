"""Titles are found as people write them."""

import numpy as np
import pyarrow as pa
import pytest

from recray.inference.titles import TitleIndex, fold, folded, spoken

TITLES = [
    "Shawshank Redemption, The (1994)",
    "Amélie (Fabuleux destin d'Amélie Poulain, Le) (2001)",
    "Avventura, L' (Adventure, The) (1960)",
    "City of Lost Children, The (Cité des enfants perdus, La) (1995)",
    "Star Wars: Episode IV - A New Hope (1977)",
    "Lone Star (1996)",
    "Schindler's List (1993)",
    "Good, the Bad and the Ugly, The (1966)",
    "Starman (1984)",
    "Æon Flux (2005)",
    "Red (Trois couleurs: Rouge) (1994)",
    "M (1931)",
]


def index_of(titles, weight=None):
    weights = np.ones(len(titles)) if weight is None else np.array(weight)
    return TitleIndex(pa.array(titles, pa.large_string()), weights)


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("the shawshank", 0),
        ("Shawshank Redemption, The", 0),
        ("shawshank", 0),
        ("redemption", 0),
        ("shawshank redemption, the (1994)", 0),
        ("AMELIE", 1),
        ("le fabuleux destin", 1),
        ("l'avventura", 2),
        ("the adventure", 2),
        ("la cite des", 3),
        ("city of lost", 3),
        ("schindlers list", 6),
        ("Schindler\u2019s", 6),
        ("the good the bad", 7),
        ("hope new", 4),
        ("trois couleurs", 10),
    ],
)
def test_it_is_found_first(query, first):
    assert index_of(TITLES).find(query, 3)[0] == first


def test_titles_that_begin_so_come_first_then_by_weight():
    index = index_of(TITLES, [float(n) for n in range(len(TITLES))])
    assert index.find("star", 10) == [8, 4, 5]
    assert index.find("star", 2) == [8, 4]


def test_an_article_left_out_or_put_behind_is_still_a_beginning():
    index = index_of(["Lord of the Ring (1999)", "Ring, The (2002)"], [9.0, 1.0])
    assert index.find("ring", 2) == [1, 0]
    assert index.find("Ring, The", 2) == [1, 0]


@pytest.mark.parametrize(
    "query", ["", " ", "?!", "\u0301", "zzz", "zzzz", "hwshnk", "shawshank zzz"]
)
def test_nothing_is_found_for_nothing(query):
    assert index_of(TITLES).find(query, 3) == []


@pytest.mark.parametrize(
    ("query", "first"),
    [
        ("hawshank", 0),
        ("shawshakn", 0),
        ("the shawshaank redemtion", 0),
        ("amelye", 1),
        ("Fabulleux", 1),
        ("shindler", 6),
        ("good bat xx", None),
        ("teh good bat", 7),
    ],
)
def test_one_letter_of_a_word_may_be_wrong(query, first):
    found = index_of(TITLES).find(query, 3)
    assert found[:1] == ([] if first is None else [first])


def test_what_is_spelt_right_is_not_guessed_at():
    index = index_of(["Alien (1979)", "Aliens (1986)", "Allen (2000)"], [1.0, 1.0, 9.0])
    assert index.find("alien", 3) == [0, 1]
    assert index.find("aliem", 3) == [0, 1]


def test_folding_takes_marks_and_case():
    assert fold("  Ça,  ÎLE-de-FRANCE! ") == "ca ile de france"
    assert spoken("Red (Trois couleurs: Rouge) (1994)") == "Red (Trois couleurs: Rouge) (1994)"


def test_all_titles_at_once_are_folded_as_each_alone():
    odd = [
        "",
        " ",
        "The",
        "X, The",
        "X, The, The",
        "A, The (B, L') (C, Le (D, Der",
        "it's  'a' - B_C",
    ]
    odd += ["ﬁlm ß İ", "a\u0301", "Ünal, Der", "12 Angry Men, the   ", "Beauty, L' (1)", ", The"]
    titles = [*TITLES, *odd]
    together = folded(pa.array(titles, pa.large_string())).to_pylist()
    assert together == [" " + fold(spoken(title)) for title in titles]


def test_no_titles_are_no_finds():
    assert index_of([]).find("star", 3) == []
