"""Replays a bundle's hold-out users over HTTP and compares with what the bundle says offline."""

import http.client
import json
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from recray.errors import RecrayError
from recray.evaluation import metrics
from recray.inference.recommender import Recommender
from recray.inference.scorer import NONE

SAME_SCORE = 1e-5
KEY = "RECRAY_API_KEY"
"""Environment variable with the key that opens a service."""


class Client:
    """One kept-alive connection to a service.

    Args:
        url: http:// or https:// address.
        key: Opens the service, if it asks for one.
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
) -> dict[str, Any]:
    """Compare a service with a bundle.

    Args:
        url: The service.
        recommender: The bundle, opened here.
        users: How many hold-out users at most, taken at even distances.
        k: Length of the lists.
        key: Opens the service, if it asks for one.

    Returns:
        {"verified", "users", "differences", "ndcg": {"offline", "online"}, "model_version"}; items
        may change places where their scores differ by under 1e-5.

    Raises:
        RecrayError: The service does not answer, or the key does not open it.
    """
    holdout = recommender.bundle.holdout
    everyone = np.unique(holdout.user)
    step = max(1, len(everyone) // users)
    chosen = everyone[::step][:users].astype(np.int64)
    k = min(k, recommender.items.known)
    with Client(url, key) as client:
        status, model = client.call("GET", "/v1/model")
        if status in (401, 403):
            raise RecrayError(f"{url} asks for a key: set {KEY} to one that it knows")
        served = model.get("model_version") if isinstance(model, dict) else None
        if status != 200 or served != recommender.version:
            return {
                "verified": False,
                "users": 0,
                "ndcg": {"offline": None, "online": None},
                "model_version": recommender.version,
                "differences": [
                    f"{url} serves version {served}, the bundle is {recommender.version}"
                ],
            }
        return _replay(client, recommender, chosen, k)


def _replay(client: Client, recommender: Recommender, users: Any, k: int) -> dict[str, Any]:
    ranker = recommender.ranker
    if not len(users):
        none = {"offline": None, "online": None}
        version = recommender.version
        return {
            "verified": True, "users": 0, "differences": [], "ndcg": none, "model_version": version
        }  # fmt: skip
    query = f"k={k}&since=false&model={recommender.version}"  # a second model may have the user
    offline = ranker.rank(users, k)
    online = np.full(offline.item.shape, NONE, np.int64)
    differences = []
    for row, user in enumerate(users):
        raw = quote(str(recommender.users.raw[user]), safe="")
        status, reply = client.call("GET", f"/v1/users/{raw}/recommendations?{query}")
        expected = offline.item[row][offline.item[row] != NONE]
        try:
            listed = [(entry["item"], float(entry["score"])) for entry in reply["items"]]
        except (KeyError, TypeError, ValueError):
            differences.append(f"user {raw}: status {status}, and no list of items")
            continue
        if len(listed) != len(expected):
            differences.append(f"user {raw}: {len(listed)} items online, {len(expected)} offline")
            continue
        items = np.array([recommender.items.encode_one(item) for item, _ in listed], np.int64)
        online[row, : len(items)] = items
        scores = ranker.scores(*ranker.states(users[row : row + 1]))[0].numpy()
        problem = _difference(scores, expected, items, np.array([score for _, score in listed]))
        if problem:
            differences.append(f"user {raw}: {problem}")
    ndcg = {
        name: round(float(np.nanmean(_ndcg(recommender, users, lists, k))), 9)
        for name, lists in (("offline", offline.item), ("online", online))
    }
    return {
        "verified": not differences,
        "users": len(users),
        "differences": differences[:20],
        "ndcg": ndcg,
        "model_version": recommender.version,
    }


def _difference(scores: Any, offline: Any, online: Any, online_scores: Any) -> str | None:
    """Why two lists differ, None if they do not: at each place the offline score of the item
    online, and the score it came with, must be that of the item offline.
    """
    for place, (expected, item) in enumerate(zip(offline, online, strict=True), 1):
        limit = SAME_SCORE * max(1.0, abs(float(scores[expected])))
        if not 0 <= item < len(scores) or abs(scores[item] - scores[expected]) > limit:
            return f"place {place}: another item online than item {expected} offline"
        if abs(online_scores[place - 1] - scores[expected]) > limit:
            return f"place {place}: the scores differ"
    return "an item is listed twice" if len(set(online.tolist())) < len(online) else None


def _ndcg(recommender: Recommender, users: Any, lists: Any, k: int) -> Any:
    holdout = recommender.bundle.holdout
    hits = np.zeros(lists.shape, bool)
    relevant = np.zeros(len(users), np.int64)
    for row, user in enumerate(users):
        wanted = holdout.item[holdout.user == user]
        hits[row] = np.isin(lists[row], wanted)
        relevant[row] = len(wanted)
    return metrics.ndcg(hits, relevant, k)
