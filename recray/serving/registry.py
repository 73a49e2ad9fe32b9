"""Versions of a bundle, one of them current; promoted through a gate, rolled back in one step.

REGISTRY/versions/<version>/    bundles, never changed
REGISTRY/current.json           {"version", "before": [...]}, swapped in a single step
"""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recray.config import EvaluateSettings
from recray.data.dataset import Prepared, Ratings
from recray.errors import CheckFailed, RecrayError, unknown_name
from recray.evaluation.bootstrap import Comparison, compare
from recray.evaluation.per_user import PerUserMetrics, blocks_of, evaluate_block
from recray.inference.bundle import KIND, Bundle, check_bundle
from recray.inference.scorer import History, Ranker
from recray.storage import Folder, publish

VERSIONS, CURRENT = "versions", "current.json"
VERSION = re.compile(r"[0-9a-f]{12}")


class Registry:
    """A registry on disk.

    Args:
        path: Local path or URI; made by the first `add`.
    """

    def __init__(self, path: str) -> None:
        self.folder = Folder(path)

    def add(self, bundle_path: str) -> str:
        """Copy a bundle in, checking every file; return its version. Adding it again is fine.

        Raises:
            RecrayError: It is no bundle, or damaged.
        """
        source = Folder(bundle_path)
        manifest = check_bundle(source)
        version: str = manifest["version"]
        target = self.folder_of(version)
        if not target.published():
            with publish(target) as folder:
                for entry in manifest["files"]:
                    folder.write_bytes(entry["name"], source.read_bytes(entry["name"]))
                facts = {k: v for k, v in manifest.items() if k not in ("kind", "files")}
                folder.write_manifest(KIND, facts)
        return version

    def folder_of(self, version: str) -> Folder:
        """Where a version lies."""
        return self.folder.child(VERSIONS).child(version)

    def versions(self) -> list[dict[str, Any]]:
        """The versions with data set, preset and creation time; the current one is marked.

        Raises:
            RecrayError: There is no registry.
        """
        if not self.folder.exists(VERSIONS):
            raise RecrayError(f"no registry at {self.folder}; `recray registry add` makes one")
        current = self._pointer()["version"]
        rows = []
        for version in self.folder.child(VERSIONS).folders():
            folder = self.folder_of(version)
            if not folder.published():
                continue
            manifest = folder.manifest()
            facts = {k: manifest[k] for k in ("version", "dataset", "preset", "created")}
            rows.append(facts | {"current": version == current})
        return sorted(rows, key=lambda row: row["created"])

    def _pointer(self) -> dict[str, Any]:
        if not self.folder.exists(CURRENT):
            return {"version": None, "before": []}
        pointer: dict[str, Any] = self.folder.read_json(CURRENT)
        return pointer

    def pointer(self) -> tuple[str, list[str]]:
        """The current version and those before it, oldest first.

        Raises:
            RecrayError: No version has been promoted, or the registry cannot be read.
        """
        return _checked(self._pointer(), self.folder)

    def watch(self) -> Callable[[], tuple[str, list[str]]]:
        """What reads the pointer again and again: one small file, over one connection."""
        read = self.folder.reader(CURRENT)

        def pointer() -> tuple[str, list[str]]:
            try:
                content = json.loads(read())
            except ValueError as error:
                raise RecrayError(f"{self.folder}/{CURRENT} is damaged: {error}") from error
            return _checked(content, self.folder)

        return pointer

    def current(self) -> Folder:
        """The folder of the current version.

        Raises:
            RecrayError: No version has been promoted.
        """
        return self.folder_of(self.pointer()[0])

    def promote(self, version: str, force: bool = False) -> dict[str, Any]:
        """Make a version current, if it is not worse than the one that is.

        Returns:
            The new version, the one before, and the comparison in words.

        Raises:
            CheckFailed: The version is worse on the current one's hold-out.
            RecrayError: The version is unknown, or has seen that hold-out in training.
        """
        known = [row["version"] for row in self.versions()]
        if version not in known:
            raise unknown_name("version", version, known or ["none yet"])
        pointer = self._pointer()
        live = pointer["version"]
        words = "first version" if live is None else "is current already"
        if live not in (None, version) and not force:
            words = gate(
                Bundle.open(self.folder_of(version).path), Bundle.open(self.current().path)
            )
        elif force:
            words = "forced"
        before = [*pointer["before"], live] if live not in (None, version) else pointer["before"]
        self._point(version, before)
        return {"version": version, "before": live, "verdict": words}

    def rollback(self) -> dict[str, Any]:
        """Make the version before the current one current again.

        Raises:
            RecrayError: There is none before.
        """
        pointer = self._pointer()
        if not pointer["before"]:
            raise RecrayError(f"{self.folder} has no earlier version to go back to")
        *before, version = pointer["before"]
        self._point(version, before)
        return {"version": version, "before": pointer["version"]}

    def _point(self, version: str, before: list[str]) -> None:
        content = json.dumps({"version": version, "before": before}, indent=1)
        self.folder.replace_bytes(CURRENT, content.encode())


def _checked(pointer: Any, folder: Folder) -> tuple[str, list[str]]:
    try:
        version, before = pointer["version"], list(pointer["before"])
    except (KeyError, TypeError) as error:
        raise RecrayError(f"{folder}/{CURRENT} is damaged: it names no version") from error
    if version is None:
        raise RecrayError(f"{folder} has no current version; use `recray registry promote`")
    for name in (version, *before):
        if not (isinstance(name, str) and VERSION.fullmatch(name)):
            raise RecrayError(f"{folder}/{CURRENT} names {name!r}, which is no version")
    return version, before


def is_registry(path: str) -> bool:
    """Whether the folder is a registry and not a bundle."""
    folder = Folder(path)
    return folder.exists(CURRENT) or (folder.exists(VERSIONS) and not folder.published())


def resolve_bundle(path: str) -> str:
    """The bundle that a path means: itself, or the current version of a registry."""
    return Registry(path).current().path if is_registry(path) else path


def gate(candidate: Bundle, live: Bundle) -> str:
    """Compare a candidate with the live bundle on the live one's hold-out; the verdict in words.

    Raises:
        CheckFailed: The candidate is worse by the paired interval.
        RecrayError: They cannot be compared, or the candidate was trained on hold-out rows.
    """
    comparison = on_holdout(candidate, live, live)
    words = comparison.words(f"the live version {live.version}")
    if comparison.sign < 0:
        raise CheckFailed(
            f"{candidate.version} is not promoted: {words}; use --force to promote it"
        )
    return words


class Incomparable(RecrayError):
    """There is no hold-out that a candidate can be compared on; `--force` promotes it all the
    same.
    """


def on_holdout(candidate: Bundle, other: Bundle, live: Bundle) -> Comparison:
    """Compare a candidate with another bundle on the live one's hold-out.

    Raises:
        Incomparable: There is no hold-out, or the candidate was trained on some of it or on the
            data of another data set.
    """
    datasets = candidate.config["dataset"], live.config["dataset"]
    if datasets[0] != datasets[1]:
        raise Incomparable(
            f"{candidate.version} comes from {datasets[0]}, the live version from {datasets[1]}: "
            "they cannot be compared; use --force to promote it"
        )
    refuse_seen_holdout(candidate.version, candidate.history, candidate, live)
    metric = "ndcg@10" if live.settings.ranks or candidate.settings.ranks else "rmse"
    return _compare(candidate, other, live, metric)


def refuse_seen_holdout(name: str, known: Ratings, ids: Bundle | Prepared, live: Bundle) -> None:
    """Refuse to compare what knows ratings of the live version's hold-out.

    Args:
        name: What is to be compared.
        known: The ratings that it is trained on.
        ids: What their ids mean.
        live: Whose hold-out it is.

    Raises:
        Incomparable: It knows some, or there is no hold-out.
    """
    if not len(live.holdout):
        raise Incomparable("the live version has no hold-out to compare on; use --force to promote")
    leaked = _shared(known, ids, live)
    if leaked:
        raise Incomparable(
            f"{name} knows {leaked:,} ratings of the hold-out that it would be compared on; "
            f"prepare with the same split settings, or use --force"
        )


def _shared(ratings: Ratings, ids: Bundle | Prepared, live: Bundle) -> int:
    """How many ratings of the live version's hold-out are among these."""
    user = ids.user_ids.encode(live.user_ids.raw[live.holdout.user])
    item = ids.item_ids.encode(live.item_ids.raw[live.holdout.item])
    held = _numbered(user, item, ids)[(user >= 0) & (item >= 0)]
    return int(np.isin(held, _numbered(ratings.user, ratings.item, ids)).sum())


def _numbered(user: NDArray[Any], item: NDArray[Any], ids: Bundle | Prepared) -> NDArray[np.int64]:
    """A number for each pair."""
    return user.astype(np.int64) * len(ids.item_ids) + item


def _in_ids_of(bundle: Bundle, other: Bundle, ratings: Ratings) -> Ratings:
    """Ratings of another bundle in this one's ids; what it does not know gets ids past its own."""
    columns = []
    for ids, raw in (
        (bundle.user_ids, other.user_ids.raw[ratings.user]),
        (bundle.item_ids, other.item_ids.raw[ratings.item]),
    ):
        dense = ids.encode(raw)
        _, place = np.unique(raw[dense < 0], return_inverse=True)
        dense[dense < 0] = (len(ids) + place).astype(np.int32)
        columns.append(dense)
    user, item = columns
    return Ratings(user, item, ratings.rating, ratings.timestamp)


def _compare(candidate: Bundle, other: Bundle, live: Bundle, metric: str) -> Comparison:
    """Both bundles on the same people's held-out ratings, lined up by raw user id."""
    settings = live.settings.evaluate.model_copy(update={"k": (10,)})
    # Lines in the ids of either are the same ratings in the same order.
    raw = live.user_ids.raw[live.holdout.user]
    first, second = (
        _table(bundle, _in_ids_of(bundle, live, live.holdout), raw, settings)
        for bundle in (candidate, other)
    )
    return compare(first, second, metric)


def _table(
    bundle: Bundle, targets: Ratings, raw_user: NDArray[np.int64], settings: EvaluateSettings
) -> PerUserMetrics:
    order = np.argsort(targets.user, kind="stable")
    ordered = Ratings(
        *(getattr(targets, n)[order] for n in ("user", "item", "rating", "timestamp"))
    )
    total = max(len(bundle.user_ids), int(ordered.user[-1]) + 1)
    history = History.of(bundle.history, total, bundle.item_ids.known)
    ranker = Ranker(bundle.model, bundle.objective, history, bundle.noise)
    table = PerUserMetrics.join(
        evaluate_block(ranker, ordered, b, settings) for b in blocks_of(ordered)
    )
    _, place = np.unique(ordered.user, return_index=True)
    raw = raw_user[order][place]
    by_raw = np.argsort(raw)
    values = {name: column[by_raw] for name, column in table.values.items()}
    return PerUserMetrics(raw[by_raw], values, table.shown)
