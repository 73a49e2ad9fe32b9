"""What a visitor of the page does, in a real browser."""

import json
import re
import time
from importlib import resources

import pyarrow as pa
import pytest
from playwright.sync_api import expect

from recray.data.feedback_log import RatingsLog
from recray.inference.recommender import Recommender
from recray.serving import routes as about
from recray.serving.ab_test import ABTest
from recray.serving.app import build_app
from recray.serving.auth import new_key, parse_key
from recray.serving.feedback_service import FeedbackService
from recray.serving.guard import OPEN_PATHS, PAGE_PATHS, ServiceMetrics
from recray.serving.options import ServiceLimits

from ..conftest import ITEMS, raw
from .conftest import of_films

BEGIN = "#begin .row"
PICK = "#lists .pick"
AMELIE = "Amélie (Le Fabuleux destin d'Amélie Poulain)"


def rate(page, title, key="5"):
    """Give a well-known film stars by keyboard."""
    page.locator("#begin .row", has_text=title).locator(".stars").focus()
    page.keyboard.press(key)


def names(page, where):
    return page.locator(f"{where} .name").all_inner_texts()


def test_the_page_weighs_little_and_names_no_other_host():
    folder = resources.files("recray") / "serving" / "page"
    files = {
        name: (folder / name).read_bytes()
        for name in (name for name, _ in about.PAGE_FILES.values())
    }
    assert sum(map(len, files.values())) < 100_000
    for name in ("page.css", "index.html"):
        # w3.org is the name of a format here, no address that is asked.
        text = files[name].replace(b"http://www.w3.org/2000/svg", b"")
        assert not re.search(rb"https?://|//[a-z]+\.", text), name
    assert set(about.PAGE_FILES) == set(PAGE_PATHS) <= set(OPEN_PATHS)


def test_a_visitor_rates_by_keyboard_and_gets_a_list_with_reasons(page):
    assert page.locator("h1").inner_text().startswith("Rate a few films")
    page.wait_for_selector(BEGIN)
    assert page.get_by_text("Your list appears here").is_visible()
    for title, key in (("Toy Story", "5"), ("Godfather", "4"), ("Matrix", "2")):
        rate(page, title, key)
    page.get_by_text("Your ratings (3)").wait_for()
    expect(page.locator(PICK)).to_have_count(7)
    assert "Because you rated" in page.locator(PICK).first.inner_text()
    assert not {"Toy Story", "The Godfather", "The Matrix"} & set(names(page, PICK))
    assert "worked out just now from your ratings" in page.locator("#said").inner_text()


slow = pytest.mark.slow


@slow
def test_stars_answer_to_arrows_digits_delete_and_the_mouse(page):
    page.wait_for_selector(BEGIN)
    stars = page.locator("#begin .stars").first

    def value():
        return float(stars.get_attribute("aria-valuenow"))

    stars.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert value() == 2
    page.keyboard.press("End")
    assert (value(), stars.get_attribute("aria-valuetext")) == (5, "5 of 5")
    page.keyboard.press("ArrowRight")
    assert value() == 5
    page.keyboard.press("Delete")
    assert (value(), stars.get_attribute("aria-valuetext")) == (0, "not rated")
    box = stars.bounding_box()
    stars.click(position={"x": box["width"] * 0.7, "y": box["height"] / 2})
    assert value() == 4


@slow
@pytest.mark.parametrize(
    ("typed", "title"),
    [("amelie", "Amélie"), ("AMÉLIE", "Amélie"), ("shawshnak", "Shawshank"), ("matirx", "Matrix")],
)
def test_a_film_is_found_with_a_typo_or_without_its_accent(page, typed, title):
    page.fill("#search", typed)
    found = page.locator("#found .row")
    found.first.wait_for()
    assert title in found.first.inner_text()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("4")
    page.get_by_text("Your ratings (1)").wait_for()


@slow
def test_nothing_found_is_said_kindly(page):
    page.fill("#search", "qqqq")
    page.get_by_text("No film is called anything like").wait_for()


@slow
def test_genres_and_years_filter_the_list(page):
    page.wait_for_selector(BEGIN)
    rate(page, "Toy Story")
    page.wait_for_selector(PICK)
    page.click("#filters summary")
    page.get_by_role("button", name="Drama").click()
    expect(page.locator(PICK)).to_have_count(5)
    assert all("Drama" in text for text in page.locator(PICK).all_inner_texts())
    page.fill("#year-from", "1990")
    expect(page.locator(PICK)).to_have_count(3)
    assert set(names(page, PICK)) == {AMELIE, "The Matrix", "Heat"}
    page.fill("#year-to", "1980")
    page.get_by_text("Years run from the earlier to the later").wait_for()
    page.fill("#year-to", "1991")
    page.get_by_text("No film is left").wait_for()
    page.click("#unfilter")
    expect(page.locator(PICK)).to_have_count(9)


@slow
def test_a_click_on_a_title_shows_links_and_similar_films(page):
    page.wait_for_selector(BEGIN)
    page.locator("#begin .name", has_text="Matrix").click()
    window = page.locator("#film")
    window.locator(".row").first.wait_for()
    assert window.locator("h2").inner_text() == "The Matrix"
    assert window.locator(".row").count() == 8
    imdb = window.get_by_role("link", name="The Matrix on IMDb")
    assert imdb.get_attribute("href") == "https://www.imdb.com/title/tt0000003/"
    tmdb = window.get_by_role("link", name="The Matrix on TMDB")
    assert tmdb.get_attribute("href") == "https://www.themoviedb.org/movie/3"
    window.locator(".row .name", has_text="Vertigo").click()
    expect(window.locator("h2")).to_have_text("Vertigo")
    window.locator(".row").first.wait_for()
    assert window.get_by_role("link", name="Vertigo on").count() == 0
    page.keyboard.press("Escape")
    assert not window.is_visible()


@slow
def test_the_models_card_has_data_metrics_intervals_and_version(page, films):
    page.click("#open-model:enabled")
    card = page.locator("#model").inner_text()
    for part in (
        "tiny: 12 users, 10 films",
        films.version,
        "0.2300 to 0.2700",
        "popularity",
        "better than popularity",
    ):
        assert part in card


@slow
def test_a_known_users_history_stands_beside_their_list(page, films):
    page.click("#tab-user")
    page.fill("#user", str(raw(2)))
    page.keyboard.press("Enter")
    page.wait_for_selector(PICK)
    told = films.user(int(raw(2)))
    assert len(names(page, "#history")) == len(told.highest)
    assert page.locator("#history dd").first.inner_text() == str(told.ratings)
    assert page.locator("#recommended-title").inner_text() == f"Recommended for user {raw(2)}"
    expected = [entry.item for entry in films.recommend(int(raw(2)), ITEMS).items]
    assert page.locator(PICK).count() == len(expected)


@slow
def test_a_user_who_is_not_there_is_said_not_to_be(visit, films):
    page = visit(build_app(films), expect_errors=True)
    page.click("#tab-user")
    page.fill("#user", "7")
    page.keyboard.press("Enter")
    page.get_by_text("There is no user 7 in tiny").wait_for()
    assert page.get_by_text("Pick a user").is_visible()


@slow
def test_two_models_stand_side_by_side(visit, films, make_bundle):
    second = Recommender(of_films(make_bundle("other", flip=True)))
    page = visit(build_app(films, ab_test=ABTest(second, ServiceMetrics())))
    page.click("#tab-user")
    page.fill("#user", str(raw(1)))
    page.keyboard.press("Enter")
    expect(page.locator("#lists > div")).to_have_count(2)
    first, other = (page.locator("#lists > div").nth(n).inner_text() for n in (0, 1))
    assert films.version in first
    assert second.version in other
    assert "are in both lists" in page.locator("#said").inner_text()


@slow
def test_what_the_service_cannot_do_is_said_kindly_with_a_way_on(visit, films, monkeypatch):
    broken = [True]
    answer = films.recommend_from

    def fail(*args, **kwargs):
        if broken[0] and args[0]:
            raise ZeroDivisionError
        return answer(*args, **kwargs)

    monkeypatch.setattr(films, "recommend_from", fail)
    page = visit(build_app(films), expect_errors=True)
    page.wait_for_selector(BEGIN)
    rate(page, "Alien")
    trouble = page.locator("#lists .trouble")
    trouble.wait_for()
    assert "Something broke" in trouble.inner_text()
    assert "ZeroDivision" not in page.content()
    broken[0] = False
    trouble.get_by_role("button").click()
    page.wait_for_selector(PICK)


@slow
def test_a_service_that_went_away_is_said_to_have_gone(visit, films):
    page = visit(build_app(films), expect_errors=True)
    page.wait_for_selector(BEGIN)
    page.context.set_offline(True)
    rate(page, "Alien")
    page.get_by_text("The service does not answer").wait_for()
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    page.wait_for_selector(PICK)


@slow
def test_waiting_shows_where_the_list_will_be(visit, films, monkeypatch):
    answer = films.recommend_from
    monkeypatch.setattr(
        films, "recommend_from", lambda *a, **k: (a[0] and time.sleep(1), answer(*a, **k))[1]
    )
    page = visit(build_app(films))
    page.wait_for_selector(BEGIN)
    rate(page, "Alien")
    page.wait_for_selector("#lists .ghost")
    page.wait_for_selector(PICK)
    assert page.locator("#lists .ghost").count() == 0


@slow
def test_a_key_is_asked_for_where_the_service_asks_for_one(visit, films):
    secret, line = new_key("shop")
    page = visit(build_app(films, ServiceLimits(keys=(parse_key(line, "x"),))), expect_errors=True)
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.get_by_text("That key is not known here").wait_for()
    page.fill("#key", secret)
    page.keyboard.press("Enter")
    page.wait_for_selector(BEGIN)
    assert not page.locator("#door").is_visible()


@slow
def test_ratings_are_there_after_a_reload_and_gone_after_starting_over(page):
    page.wait_for_selector(BEGIN)
    rate(page, "Alien")
    page.wait_for_selector(PICK)
    page.reload()
    page.get_by_text("Your ratings (1)").wait_for()
    page.wait_for_selector(PICK)
    page.click("#forget")
    page.get_by_text("Your list appears here").wait_for()
    kept = page.evaluate("localStorage.getItem('recray:tiny')")
    assert json.loads(kept)["ratings"] == []


@slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_a_phone(visit, films, scheme):
    page = visit(build_app(films), width=375, color_scheme=scheme, has_touch=True, is_mobile=True)
    page.wait_for_selector(BEGIN)
    stars = page.locator("#begin .stars").first
    box = stars.bounding_box()
    stars.tap(position={"x": box["width"] - 3, "y": box["height"] / 2})
    page.wait_for_selector(PICK)
    page.evaluate("scrollTo(0, 0)")
    page.click("#jump")
    page.locator("#jump").wait_for(state="hidden")  # the list is in view
    page.click("#filters summary")
    width = "document.documentElement.scrollWidth"
    assert page.evaluate(width) == 375
    page.locator(".pick .name").first.click()
    page.wait_for_selector("#film .row")
    assert page.evaluate(width) == 375
    small = page.evaluate(
        "[...document.querySelectorAll('.stars[role=slider], input:not([type=checkbox])')]"
        ".filter((n) => n.offsetParent && n.offsetHeight < 44).length"
    )
    assert small == 0, "a finger needs 44 pixels"


@slow
def test_titles_are_text_and_never_markup(visit, films):
    titles = films.catalog.titles.to_pylist()
    titles[0] = "<img src=x onerror=document.title='broken'> (1995)"
    films.catalog.titles = pa.array(titles)
    page = visit(build_app(films))
    page.wait_for_selector(BEGIN)
    assert page.locator("#begin").get_by_text("<img src=x").count() == 1
    assert page.title().startswith("recray")


@slow
def test_ratings_go_to_the_log_if_the_visitor_wants_it(visit, films, tmp_path):
    kept = FeedbackService(RatingsLog.of(str(tmp_path / "ratings"), "tiny", (False, False)))
    kept.start()
    page = visit(build_app(films, feedback=kept))
    page.wait_for_selector(BEGIN)
    rate(page, "Alien", "4")
    page.wait_for_selector(PICK)
    assert kept.status().ratings == 0, "nothing is kept unasked"
    with page.expect_response(lambda reply: reply.url.endswith("/v1/ratings")):
        page.check("#save")
    page.get_by_text("The next training learns from these ratings").wait_for()
    with page.expect_response(lambda reply: reply.url.endswith("/v1/ratings")):
        rate(page, "Toy Story", "2")
    user = page.evaluate("JSON.parse(localStorage.getItem('recray:tiny')).saveAs")
    kept_ratings = [each[:2] for each in kept.ratings_of(user)]
    assert kept_ratings == [(int(raw(5)), 4.0), (int(raw(0)), 2.0)]
    with page.expect_response(lambda reply: reply.request.method == "DELETE"):
        page.get_by_label("Take back Alien").click()
    assert [each[:2] for each in kept.ratings_of(user)] == [(int(raw(0)), 2.0)]
    with page.expect_response(lambda reply: reply.request.method == "DELETE"):
        page.click("#forget")
    assert kept.ratings_of(user) == []
    kept.stop()
