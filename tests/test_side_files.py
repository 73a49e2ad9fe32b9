"""Films: titles, years and genres of every layout."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from recray import schema
from recray.data import side_files
from recray.data.side_files import feature_matrix, feature_names
from recray.errors import RecrayError
from recray.models.factorization import Hybrid


def movies(table: pa.Table) -> list[tuple]:
    assert table.schema == schema.MOVIES
    return [tuple(row.values())[:4] for row in table.to_pylist()]


def flags(*on: int) -> str:
    return "|".join("1" if genre in on else "0" for genre in range(19))


def test_films_of_100k_are_latin_1_with_genre_flags():
    lines = [
        f"3|Misérables, Les (1995)|01-Jan-1996||http://x|{flags(8, 18)}",
        "",
        f"2|Untold|22-Dec-1997|||{flags(0)}",
        f"1|unknown||||{flags(0)}",
    ]
    assert movies(side_files.parse_items_100k("\n".join(lines).encode("latin-1"))) == [
        (1, "unknown", 0, []),
        (2, "Untold", 1997, []),
        (3, "Misérables, Les (1995)", 1995, ["Drama", "Western"]),
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8"])
def test_films_of_1m_and_10m_differ_in_encoding_only(encoding):
    content = "7::Café (2000)::Drama|War\r\n2::Heat (1995)::(no genres listed)\r\n".encode(encoding)
    assert movies(side_files.parse_items_1m(content)) == [
        (2, "Heat (1995)", 1995, []),
        (7, "Café (2000)", 2000, ["Drama", "War"]),
    ]


def test_films_of_a_csv_have_quoted_titles():
    content = (
        "\ufeffmovieId,title,genres\r\n"
        '11,"American President, The (1995)",Comedy|Drama\r\n'
        '2,"A ""B"" C, née (2001) ",(no genres listed)\r\n'
    )
    assert movies(side_files.parse_items_csv(content.encode())) == [
        (2, 'A "B" C, née (2001)', 2001, []),
        (11, "American President, The (1995)", 1995, ["Comedy", "Drama"]),
    ]


@pytest.mark.parametrize(
    ("read", "content", "message"),
    [
        (side_files.parse_items_100k, b"1|A|B", "u.item line 1 has 3 fields"),
        (side_files.parse_items_1m, b"1::A (1999)::War\n2::B", "movies.dat line 2 has 2 fields"),
        (side_files.parse_items_csv, b"id,name\n1,A\n", "has columns \\['id', 'name'\\]"),
        (side_files.parse_items_csv, b"movieId,title,genres\n", "lists no films"),
        (side_files.parse_items_100k, b"", "u.item lists no films"),
    ],
)
def test_a_damaged_film_list_is_refused(read, content, message):
    with pytest.raises(RecrayError, match=message):
        read(content)


@pytest.mark.parametrize(
    ("title", "year"),
    [
        ("Heat (1995)", 1995),
        ("Heat (1995) ", 1995),
        ("2001: A Space Odyssey (1968)", 1968),
        ("Shall We Dance? (1937) (2004)", 2004),
        ("Nikita (La Femme)", 0),
        ("Heat 1995", 0),
        ("Babylon 5 (95)", 0),
        ("Heat (1995) Uncut", 0),
        ("", 0),
    ],
)
def test_the_year_stands_in_the_last_brackets(title, year):
    assert side_files.year_of(title) == year


def test_a_line_separator_inside_a_title_is_no_line_end():
    found = side_files.parse_items_1m("1::A\u2028B (1995)::War\n".encode())
    assert found["year"].to_pylist() == [1995]


# -------------------------------------------------------------------------- links and people


def test_links_are_kept_by_film():
    listed = side_files.parse_items_csv(b"movieId,title,genres\n1,A,x\n2,B,x\n3,C,x\n")
    linked = side_files.add_links(
        listed, b"movieId,imdbId,tmdbId\r\n1,0114709,862\r\n3,15398776,\r\n"
    )
    assert linked.schema == schema.MOVIES
    assert linked["imdb"].to_pylist() == ["tt0114709", None, "tt15398776"]
    assert linked["tmdb"].to_pylist() == [862, None, None]


def test_own_items_may_have_text_ids_and_a_year():
    table = side_files.parse_items_csv(
        b"year,Title,item_id\n1999,Heat,b-2\n,Alien (1979),a-1\n", True
    )
    assert table["raw_item"].to_pylist() == ["a-1", "b-2"]
    assert table["title"].to_pylist() == ["Alien (1979)", "Heat"]
    assert table["year"].to_pylist() == [1979, 1999]
    assert table["genres"].to_pylist() == [[], []]


def test_people_of_both_releases_are_told_alike():
    hundred = side_files.parse_users_100k(b"2|53|F|other|94043\n1|24|M|technician|85711\n")
    assert hundred.schema == schema.PEOPLE
    assert [tuple(p.values()) for p in hundred.to_pylist()] == [
        (1, 24, "M", "technician"),
        (2, 53, "F", "other"),
    ]
    million = side_files.parse_users_1m(b"1::F::1::10::48067\n2::M::56::16::70072\n")
    assert [tuple(p.values()) for p in million.to_pylist()] == [
        (1, 1, "F", "K-12 student"),
        (2, 56, "M", "self-employed"),
    ]


def test_a_damaged_list_of_people_is_refused():
    with pytest.raises(RecrayError, match=r"users.dat line 2 has 2 fields"):
        side_files.parse_users_1m(b"1::F::1::10::48067\n2::M\n")


# Features of items, and a model that places rare items by them.

TABLE = pa.table({"genres": [["War", "Drama"], [], ["Drama"]], "year": [1994, 2001, 0]})
NAMES = ["decade:1990", "decade:2000", "genre:Drama", "genre:War"]


def test_features_are_genres_and_decades_in_order():
    assert feature_names(TABLE) == NAMES


def test_rows_of_features_have_length_1():
    third = 3**-0.5
    expected = [[third, 0, third, third], [0, 1, 0, 0], [0, 0, 1, 0]]
    assert np.allclose(feature_matrix(TABLE, NAMES), expected)


def test_features_that_training_did_not_have_are_left_out():
    assert feature_matrix(TABLE, ["genre:War"]).tolist() == [[1.0], [0.0], [0.0]]


def test_an_item_without_a_vector_of_its_own_scores_by_its_features():
    model = Hybrid(2, 3, 2, NAMES, "logit")
    model.describe_items(torch.from_numpy(feature_matrix(TABLE, NAMES)))
    with torch.no_grad():
        model.item_vectors.weight.zero_()
        model.feature_vectors.copy_(torch.tensor([[0.0, 0], [0, 0], [1, 2], [0, 0]]))
        model.feature_bias.copy_(torch.tensor([0.0, 0.5, 0, 0]))
        model.user_vectors.weight.copy_(torch.tensor([[1.0, 0], [0, 1]]))
    user, item = torch.tensor([0, 1, 0, 0]), torch.tensor([2, 2, 1, 0])
    assert torch.allclose(model(user, item), torch.tensor([1.0, 2.0, 0.5, 3**-0.5]))


def test_features_explain_what_items_of_weight_share_and_nothing_of_a_row_is_lost():
    model = Hybrid(2, 3, 2, NAMES, "logit")
    model.describe_items(torch.from_numpy(feature_matrix(TABLE, NAMES)))
    rows, weight = torch.tensor([[1.0, 0], [0, 2], [3, 3]]), torch.tensor([1.0, 2, 6])
    with torch.no_grad():
        model.set_item_rows(rows, weight)
    assert torch.allclose(model.item_rows(slice(None)), rows)
    vectors = model.feature_vectors.detach().clone().requires_grad_()
    left = weight[:, None] * (rows - model.features @ vectors).square()
    (slope,) = torch.autograd.grad(left.sum() + 3 * vectors.square().sum(), vectors)
    assert slope.abs().max() < 1e-5, "3 is the mean weight"
