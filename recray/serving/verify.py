"""Asks a service for the lists of a bundle's hold-out users, and compares them with its own."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from recray.errors import RecrayError
from recray.inference.exact_lists import exact_top_k
from recray.inference.recommender import Recommender
from recray.inference.top_k import NONE, shared
from recray.serving.schemas.responses import RecommendationList

SCORE_TOLERANCE = 1e-5
"""Relative difference of two scores that counts as none: replies have six decimals."""
MAX_DIFFERENCES = 20
"""Differences that a result names; the rest is left out."""
KEY_VARIABLE = "RECRAY_API_KEY"
"""Environment variable with the key that opens a service."""


class ServedNdcg(BaseModel):
    """NDCG of the lists on the hold-out. Served lists leave the held-out items out with all that is
    known, so both are null; `recray evaluate` measures.
    """

    offline: None = None
    online: None = None


class Verification(BaseModel):
    """The comparison of a service with a bundle."""

    verified: bool
    users: int = Field(0, description="Users that were compared.")
    differences: list[str]
    index_recall: float | None = Field(
        None, description="Share of the exact lists that lists by the index of the items have."
    )
    ndcg: ServedNdcg = ServedNdcg()
    model_version: str


class Client:
    """One kept-alive connection to a service.

    Args:
        url: http:// or https:// address.
        key: API key; None if the service asks for none.
    """

    def __init__(self, url: str, key: str | None = None) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host = None
        if host is None or parts.scheme not in ("http", "https"):
            raise RecrayError(f"{url!r} is no service address; write http://HOST:PORT")
        kind = (
            http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        )
        self.url = url.rstrip("/")
        self._headers = {"authorization": f"Bearer {key}"} if key else {}
        self._prefix = parts.path.rstrip("/")
        self._connection = kind(host, port, timeout=30)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of one request.

        Raises:
            RecrayError: Nothing answers there, or not with JSON.
        """
        content = None if body is None else json.dumps(body)
        headers = self._headers | ({"content-type": "application/json"} if content else {})
        try:
            self._connection.request(method, self._prefix + path, content, headers)
            reply = self._connection.getresponse()
            return reply.status, json.loads(reply.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RecrayError(f"{self.url} does not answer as recray does: {error}") from error


def verify(
    url: str, recommender: Recommender, users: int = 500, k: int = 10, key: str | None = None
) -> Verification:
    """Compare a service with a bundle, list by list.

    Items may change places where their scores differ by under SCORE_TOLERANCE.

    Args:
        url: Address of the service.
        recommender: The bundle, opened here.
        users: How many hold-out users at most; they are taken at even distances.
        k: Length of the lists.
        key: API key; None if the service asks for none.

    Raises:
        RecrayError: The service does not answer, or the key does not open it.
    """
    all_users = np.unique(recommender.bundle.holdout.user)
    step = max(1, len(all_users) // users)
    chosen = all_users[::step][:users].astype(np.int64)
    with Client(url, key) as client:
        status, model = client.call("GET", "/v1/model")
        if status in (401, 403):
            raise RecrayError(f"{url} asks for a key: set {KEY_VARIABLE} to one that it knows")
        served = model.get("model_version") if isinstance(model, dict) else None
        version = recommender.version
        if status != 200 or served != version:
            problem = f"{url} serves version {served}, the bundle is {version}"
            return Verification(verified=False, differences=[problem], model_version=version)
        if not len(chosen):
            return Verification(verified=True, differences=[], model_version=version)
        return _compare(client, recommender, chosen, recommender.at_most(k))


def _compare(
    client: Client, recommender: Recommender, users: NDArray[np.int64], k: int
) -> Verification:
    # A challenger may answer some of the users, so the query names the version.
    query = f"k={k}&since=false&model={recommender.version}"
    scorer = recommender.scorer
    queries = scorer.queries(users)
    ranked = scorer.top_k(queries, k)
    recall = None
    if scorer.index is not None:
        recall = shared(exact_top_k(scorer, queries, k, True, None).item, ranked.item)
    offline, offline_scores = ranked.item, scorer.shown_scores(ranked)
    differences = []
    for row, user in enumerate(users):
        raw = quote(str(recommender.users.raw_of(np.array([user]))[0]), safe="")
        status, reply = client.call("GET", f"/v1/users/{raw}/recommendations?{query}")
        expected = offline[row][offline[row] != NONE]
        try:
            listed = RecommendationList.model_validate(reply).items
        except ValidationError:
            differences.append(f"user {raw}: status {status}, and no list of items")
            continue
        if len(listed) != len(expected):
            differences.append(f"user {raw}: {len(listed)} items online, {len(expected)} offline")
            continue
        items = recommender.items.encode_all([entry.item for entry in listed]).astype(np.int64)
        scores = scorer.scores(queries[row : row + 1])
        shown = np.array([entry.score for entry in listed])
        problem = _difference(scores[0].numpy(), expected, items, offline_scores[row], shown)
        if problem:
            differences.append(f"user {raw}: {problem}")
    return Verification(
        verified=not differences,
        users=len(users),
        differences=differences[:MAX_DIFFERENCES],
        index_recall=recall,
        model_version=recommender.version,
    )


def _difference(
    scores: NDArray[np.float32],
    offline: NDArray[np.int64],
    online: NDArray[np.int64],
    offline_scores: NDArray[np.float32],
    online_scores: NDArray[np.float64],
) -> str | None:
    """Say where two lists differ; None if they are the same.

    Two items may stand in each other's place if they have the same score. So at each place both
    the offline score of the item online and the score that came with it are compared with the
    score of the item offline. Lists show predicted ratings cut to the scale; the order is that of
    the scores before.

    Args:
        scores: Offline score of each item of the catalogue, not cut.
        offline: The items of the list offline.
        online: As many items that the service listed.
        offline_scores: What the list offline shows, place by place.
        online_scores: The scores that came with the items online.
    """
    for place, (expected, item) in enumerate(zip(offline, online, strict=True), 1):
        tolerance = SCORE_TOLERANCE * max(1.0, abs(float(scores[expected])))
        if not 0 <= item < len(scores) or abs(scores[item] - scores[expected]) > tolerance:
            return f"place {place}: another item online than item {expected} offline"
        if abs(online_scores[place - 1] - offline_scores[place - 1]) > tolerance:
            return f"place {place}: the scores differ"
    return "an item is listed twice" if len(set(online.tolist())) < len(online) else None
