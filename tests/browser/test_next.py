"""The page of a model that reads the order: films clicked in a row move the list."""

import dataclasses
import os

import pytest
from playwright.sync_api import expect

from recray.data.feedback_log import RatingsLog
from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.feedback_service import FeedbackService

from ..conftest import ITEMS, USERS, NextNumber, raw
from .conftest import of_films

PICK = "#lists .pick"
SHOTS = os.environ.get("RECRAY_SHOTS")
"""Folder for pictures of the page, for who wants to look at it."""


@pytest.fixture
def films(make_bundle):
    bundle = dataclasses.replace(make_bundle(), model=NextNumber(USERS, ITEMS))
    return Recommender(of_films(bundle))


def watch(page, where, title):
    page.locator(where, has_text=title).get_by_role("button", name="Watched").click()


def shot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


@pytest.mark.parametrize("width", [1280, pytest.param(375, marks=pytest.mark.slow)])
def test_films_clicked_in_a_row_move_the_list(visit, films, width):
    page = visit(build_app(films), width=width)
    page.wait_for_selector("#begin .row")
    assert page.locator("h1").inner_text().startswith("Click a few films")
    first = page.locator(f"{PICK} .name").first
    watch(page, "#begin .row", "Toy Story")
    expect(first).to_have_text("Amélie (Le Fabuleux destin d'Amélie Poulain)")
    watch(page, "#begin .row", "The Matrix")
    expect(first).to_have_text("The Godfather")
    expect(page.locator("#recommended-title")).to_have_text("Next for you")
    assert "what comes next after The Matrix" in page.locator("#said").inner_text()
    why = page.locator(PICK).first.locator(".why").inner_text()
    assert why == "Because you watched The Matrix and Toy Story"
    assert page.evaluate("document.documentElement.scrollWidth") == width
    shot(page, f"next-{width}")
    watch(page, PICK, "The Godfather")
    expect(first).to_have_text("Alien")
    page.get_by_role("button", name="Watched Toy Story again").click()
    expect(first).to_have_text("Amélie (Le Fabuleux destin d'Amélie Poulain)")
    mine = page.locator("#mine-list .name").all_inner_texts()
    assert mine == ["Toy Story", "The Godfather", "The Matrix"]
    page.get_by_role("button", name="Take back Toy Story").click()
    expect(first).to_have_text("Alien")
    assert page.locator("#begin .stars").count() == 0


@pytest.mark.slow
def test_a_known_users_last_films_stand_beside_what_comes_next(visit, films, tmp_path):
    kept = FeedbackService(RatingsLog.of(str(tmp_path / "log"), "tiny", (False, False)))
    page = visit(build_app(films, feedback=kept))
    page.wait_for_selector("#begin .row")
    watch(page, "#begin .row", "Toy Story")
    page.wait_for_selector(PICK)
    assert not page.locator("#keep").is_visible(), "a click is no rating to keep"
    page.click("#tab-user")
    page.fill("#user", str(raw(0)))
    page.keyboard.press("Enter")
    expect(page.locator("#recommended-title")).to_have_text(f"Next for user {raw(0)}")
    last = page.locator('#history ul[aria-label="Last"] .name').all_inner_texts()
    assert last[0] == "The Good, the Bad and the Ugly"
    assert "Because they watched" in page.locator(PICK).first.inner_text()
    shot(page, "next-user")


@pytest.mark.slow
def test_fingers_find_the_buttons(visit, films):
    page = visit(build_app(films), width=375, has_touch=True, is_mobile=True)
    page.wait_for_selector("#begin .row")
    page.locator("#begin .taken").first.tap()
    page.locator("#begin .taken").nth(1).tap()
    page.wait_for_selector(PICK)
    small = page.evaluate(
        "[...document.querySelectorAll('.taken, #mine .quiet:not(#forget)')]"
        ".filter((n) => n.offsetParent && n.offsetHeight < 44).length"
    )
    assert small == 0, "a finger needs 44 pixels"
