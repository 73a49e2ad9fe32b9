"""Links of the OpenAPI document: what may be asked next, with what the last reply has.

Clients made from the document may follow them, and tests of it do: model, user's list, an item, a
rating, the list again, the rating taken back.
"""

from typing import Any, NamedTuple

from pydantic import JsonValue

LIST, NEW_LIST = "/v1/users/{user}/recommendations", "/v1/recommendations"
ITEM, SIMILAR, SEARCH = "/v1/items/{item}", "/v1/items/{item}/similar", "/v1/items"
HISTORY, RATINGS, RATING = "/v1/users/{user}", "/v1/ratings", "/v1/ratings/{user}/{item}"
ALL_RATINGS = "/v1/users/{user}/ratings"
_SAME_USER = {"user": "$request.path.user"}
FIRST_ITEM = "$response.body#/items/0/item"


class Link(NamedTuple):
    """One link.

    Args:
        name: In the document.
        source: Path, method and status of the reply that it begins with.
        target: Path and method of what is asked next.
        parameters: Of its path, if it has some, as runtime expressions of OpenAPI.
        body: Its body, if it has one.
    """

    name: str
    source: tuple[str, str, str]
    target: tuple[str, str]
    parameters: dict[str, str] | None = None
    body: dict[str, str] | None = None


_EXAMPLE_USER = {"user": "$response.body#/example_users/0"}
_RATER, _RATED = {"user": "$request.body#/user"}, {"item": "$request.body#/item"}
_FIRST_RATED = {"user": "$response.body#/user"} | {
    name: f"$response.body#/highest/0/{name}" for name in ("item", "rating")
}
_ABOUT_FIRST = [
    Link(name, (path, method, "200"), (target, "get"), {"item": FIRST_ITEM})
    for path, method in ((LIST, "get"), (LIST, "post"), (NEW_LIST, "post"), (SEARCH, "get"))
    for name, target in (("item", ITEM), ("similar", SIMILAR))
]
LINKS = (
    *_ABOUT_FIRST,
    Link("list", ("/v1/model", "get", "200"), (LIST, "get"), _EXAMPLE_USER),
    Link("user", ("/v1/model", "get", "200"), (HISTORY, "get"), _EXAMPLE_USER),
    Link("user", (LIST, "get", "200"), (HISTORY, "get"), _SAME_USER),
    Link("list", (HISTORY, "get", "200"), (LIST, "get"), _SAME_USER),
    Link("rate", (HISTORY, "get", "200"), (RATINGS, "post"), body=_FIRST_RATED),
    Link("list", (RATINGS, "post", "202"), (LIST, "get"), _RATER),
    Link("takeBack", (RATINGS, "post", "202"), (RATING, "delete"), _RATER | _RATED),
    Link("takeAllBack", (RATINGS, "post", "202"), (ALL_RATINGS, "delete"), _RATER),
    Link("list", (RATING, "delete", "200"), (LIST, "get"), _SAME_USER),
    Link("list", (ALL_RATINGS, "delete", "200"), (LIST, "get"), _SAME_USER),
    Link("similar", (ITEM, "get", "200"), (SIMILAR, "get"), {"item": "$request.path.item"}),
)  # fmt: skip


def add_links(document: Any) -> None:
    """Put all links into an OpenAPI document that has their operations."""
    paths = document["paths"]
    for link in LINKS:
        path, method, status = link.source
        target, how = link.target
        entry: dict[str, JsonValue] = {"operationId": paths[target][how]["operationId"]}
        if link.parameters is not None:
            entry["parameters"] = {**link.parameters}
        if link.body is not None:
            entry["requestBody"] = {**link.body}
        paths[path][method]["responses"][status].setdefault("links", {})[link.name] = entry
