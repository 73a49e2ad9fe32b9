"""The exported model: one folder that holds all that answering needs. No pickled code in it.

weights.safetensors  items.parquet  users.json  users/part-*.safetensors
index.json  index.safetensors (of a large catalogue)
config.json  metrics.json  training.json (the epochs, for people)  manifest.json
users.parquet (age and gender, where the data set has them)
measured/config.json  measured/weights.safetensors  run/config.json  run/weights.safetensors

What lies at the top has been fitted on all ratings, and answers. Its twin in `measured` was fitted
without those of test; metrics.json is what was measured of it. `run` is the training that chose the
epoch on validation rows, which later ones may start from. All other files are of all three.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Self

import pyarrow as pa

from recray import storage
from recray.config import Settings, build_settings, translated
from recray.data.dataset import Ratings
from recray.data.ids import FIT_SPLITS, IdMap
from recray.errors import RecrayError
from recray.inference import checked_tables
from recray.inference.bundle_checks import (
    check_facts,
    check_results,
    refuse_links,
)
from recray.inference.bundle_users import FILE as USERS
from recray.inference.bundle_users import Everybody
from recray.inference.fits import BundleConfig, read_config, read_fit
from recray.inference.held_folder import HeldFolder
from recray.inference.interactions import Interactions
from recray.inference.item_index import FILE as INDEX
from recray.inference.item_index import ItemIndex, open_index
from recray.inference.stored_users import PartitionFiles, StoredUsers
from recray.inference.user_features import FILE as USER_FEATURES
from recray.inference.user_features import UserFeatures
from recray.inference.user_parts import FOLDER as PARTS
from recray.models.base import Model
from recray.models.objectives import FoldInConfig, Objective
from recray.storage import Folder, Manifest, ManifestEntry, in_parallel

KIND = "bundle"
TRAINING = "training.json"
WEIGHTS = "weights.safetensors"
RUN_TRAIN = ("fit_on", "epochs", "patience")
"""Settings of the group train in which a fit differs from the run that it repeats."""
RUN = "run"
"""Folder of the run that chose the epoch, where the measured fit is another one."""
TWIN = "measured"
"""Folder of the twin that was measured, where there is a final fit."""
UNVERSIONED = ("metrics.json", TRAINING, USER_FEATURES)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Args:
        folder: Where it lies.
        manifest: manifest.json.
        config: config.json.
        metrics: metrics.json.
        settings: The resolved settings it was trained with.
        model: The trained model.
        objective: What it was trained for; folds in.
        user_ids: Raw and dense user ids.
        item_ids: Raw and dense item ids.
        item_table: schema.ITEMS.
        interactions: All that is known of the users, and what a measurement withholds.
        training: One entry an epoch: epoch, loss, validation metrics, seconds.
        stored: The users, where they are looked up one by one: then user_ids and interactions are
            empty.
    """

    folder: Folder
    manifest: Manifest
    config: BundleConfig
    metrics: dict[str, Any]
    settings: Settings
    model: Model
    objective: Objective
    user_ids: IdMap
    item_ids: IdMap
    item_table: pa.Table
    interactions: Interactions
    training: list[dict[str, Any]]
    stored: StoredUsers | None = None

    @property
    def version(self) -> str:
        """12 hex digits that follow from weights, ids, interactions and settings."""
        return str(self.manifest.facts["version"])

    @property
    def created(self) -> str | None:
        """When it was written, as ISO 8601."""
        created = self.manifest.facts.get("created")
        return None if created is None else str(created)

    @property
    def rating_range(self) -> tuple[float, float]:
        """Lowest and highest training rating."""
        low, high = self.config["rating_range"]
        return float(low), float(high)

    @property
    def holdout(self) -> Ratings:
        """The test ratings, which a measurement withholds."""
        return self.interactions.withheld

    @property
    def fold_in(self) -> FoldInConfig:
        """Noise and prior of folding in; bundles of before have no strength, and their ridge pulls
        to zero.
        """
        return FoldInConfig(**self.config["fold_in"])

    @classmethod
    def open(cls, path: str | Folder) -> Self:
        """Open a bundle, comparing every file with its sha256 first.

        Each file is read once, a few at the same time; those of the other fits are read again
        when they are asked for.

        Args:
            path: Local path or URI; the folder that `current_bundle` gave, for that very version.

        Raises:
            RecrayError: It is missing, damaged, or not a bundle.
        """
        given = Folder(path) if isinstance(path, str) else path
        folder, manifest = current_bundle(given)
        contents = dict(in_parallel(partial(_verified, folder), manifest.files))
        held = HeldFolder(folder.path, folder.generation, contents)
        return replace(cls.read(held, manifest), folder=folder)

    @classmethod
    def open_to_answer(cls, path: str) -> Self:
        """Open a bundle for answers alone: users are looked up when they are asked for.

        Files of users are compared with their sha256 when they are first used, and those of other
        fits are not read. The weights of a bundle with an index are mapped.

        Raises:
            RecrayError: It is missing, damaged, or not a bundle.
        """
        folder, manifest = current_bundle(Folder(path))
        if not folder.exists(USERS):
            return cls.open(path)  # an earlier version wrote it
        elsewhere = (f"{TWIN}/", f"{RUN}/", f"{PARTS}/", INDEX)
        here = [entry for entry in manifest.files if not entry.name.startswith(elsewhere)]
        files, mapped = PartitionFiles(folder, manifest.files), folder.exists(INDEX)

        def content(entry: ManifestEntry) -> tuple[str, pa.Buffer]:
            if mapped and entry.name == WEIGHTS:
                return entry.name, files.map(entry.name)
            return entry.name, folder.read_verified(entry)

        contents = dict(in_parallel(content, here))
        held = HeldFolder(folder.path, folder.generation, contents)
        return replace(cls.read(held, manifest, folder), folder=folder)

    @property
    def has_index(self) -> bool:
        """Whether it has an index of its items, be it usable here or not."""
        return any(entry.name == INDEX for entry in self.manifest.files)

    @cached_property
    def index(self) -> ItemIndex | None:
        """The index of the items; None where there is none, or faiss is missing. See open_index."""
        return open_index(self.folder, self.manifest.files, self.model) if self.has_index else None

    @property
    def is_final(self) -> bool:
        """Whether it was fitted on all ratings, so that it knows those of test."""
        return self.settings.train.fit_on == "all"

    @cached_property
    def user_features(self) -> UserFeatures | None:
        """Age and gender of users; None where the data set says nothing of them."""
        return UserFeatures.read(self._again(USER_FEATURES))

    @property
    def run_settings(self) -> Settings:
        """Settings of the run that chose the epoch, which this fit repeats for so many epochs."""
        return self.settings.changed(train=self.config.get("run", {}))

    @cached_property
    def measured(self) -> "Bundle":
        """The fit whose metrics these are: the twin of a final fit, otherwise this very bundle.

        Raises:
            ValueError: It was opened to answer, and has no test rows in memory.
        """
        if self.stored is not None:
            raise ValueError("a bundle that was opened to answer cannot be measured")
        return self._fit(TWIN) if self.is_final else self

    @cached_property
    def chosen(self) -> "Bundle":
        """The run that chose the epoch, which has learned no validation row: where a warm start
        begins, since later ones validate on those rows. Without it, the measured fit.
        """
        found = self._fit(RUN)
        return self.measured if found is self else found

    def _fit(self, name: str) -> "Bundle":
        """The fit in that folder; this very bundle where there is none."""
        folder = self._again(f"{name}/")
        if not folder.exists(f"{name}/config.json"):
            return self
        config, settings = read_config(folder, f"{name}/")
        model, objective = read_fit(folder, config, settings, f"{name}/")
        return replace(
            self,
            config=config,
            settings=settings,
            model=model,
            objective=objective,
            user_ids=replace(self.user_ids, known=config["users"]),
            item_ids=replace(self.item_ids, known=config["items"]),
            interactions=replace(
                self.interactions,
                fit_on=settings.train.fit_on,
                users=config["users"],
                items=config["items"],
            ),
        )

    def _again(self, start: str) -> Folder:
        """The folder with the files whose names begin so, which are compared with the manifest:
        on a disk another bundle may lie there by now.
        """
        if not self.manifest.files:  # it is being written
            return self.folder
        entries = (entry for entry in self.manifest.files if entry.name.startswith(start))
        contents = {entry.name: self.folder.read_verified(entry) for entry in entries}
        return HeldFolder(self.folder.path, self.folder.generation, contents)

    @classmethod
    def read(cls, folder: Folder, manifest: Manifest, users_in: Folder | None = None) -> Self:
        """Read a folder whose files are known to be whole.

        Args:
            folder: The bundle.
            manifest: Its manifest.
            users_in: Where users are to be looked up; None reads all of them.
        """
        items = checked_tables.read_items(folder)
        config, settings = read_config(folder)
        known, stored = (config["users"], config["items"]), None
        if users_in is None:
            everybody = Everybody.read(folder, items)
            there = len(everybody.user_ids), len(items)
        else:
            stored = StoredUsers.open(folder, users_in, manifest.files, known, len(items))
            everybody, there = Everybody.empty(items), (len(stored.store), len(items))
        checked_tables.check_known(known, there, str(folder))
        model, objective = read_fit(folder, config, settings, "", everybody.tables, stored)
        metrics, training = _results(folder)
        rows = everybody.rows, everybody.part, settings.train.fit_on
        return cls(
            folder,
            manifest,
            config,
            metrics,
            settings,
            model,
            objective,
            replace(everybody.user_ids, known=known[0]),
            replace(everybody.item_ids, known=known[1]),
            items,
            Interactions(*rows, *known, len(everybody.user_ids)),
            training,
            stored,
        )


def _results(folder: Folder) -> tuple[Any, Any]:
    """metrics.json and training.json."""
    metrics = folder.read_json("metrics.json")
    training = folder.read_json(TRAINING) if folder.exists(TRAINING) else []
    check_results(metrics, training, str(folder))
    return metrics, training


def has_learned_all(folder: Folder) -> bool:
    """Whether what answers was trained on every rating of the splits."""
    config: BundleConfig = folder.read_json("config.json")
    fit_on = build_settings(translated(config["settings"])).train.fit_on
    rest = [name for name in config["splits"] if name not in FIT_SPLITS[fit_on]]
    return not any(config["splits"][name]["rows"] for name in rest)


def _verified(folder: Folder, entry: ManifestEntry) -> tuple[str, pa.Buffer | None]:
    """The name of a file, and its content unless it is an index or of another fit than the top."""
    content = folder.read_verified(entry)
    return entry.name, None if entry.name.startswith((f"{TWIN}/", f"{RUN}/", INDEX)) else content


def current_bundle(path: Folder) -> tuple[Folder, Manifest]:
    """A bundle as it is now, whose version is compared with the digests of all its files.

    Raises:
        RecrayError: It is missing, not a bundle, or bears another's version.
    """
    refuse_links(path)
    folder, manifest = storage.current_of(path, KIND, "recray export")
    check_facts(manifest, folder.at(storage.MANIFEST))
    digests = {file.name: file.sha256 for file in manifest.files}
    found = folder.content()
    unlisted = {*found} - {*digests}
    if unlisted:
        raise RecrayError(f"{folder} holds {min(unlisted)}, which its manifest does not list")
    version = version_of_digests({name: digests[name] for name in found})
    if manifest.facts.get("version") != version:
        raise RecrayError(
            f"{folder} says version {manifest.facts.get('version')!r}, its content is {version}"
        )
    return folder, manifest


def version_of(folder: Folder, known: Mapping[str, str]) -> str:
    """Twelve hex digits from everything that answers depend on.

    Args:
        folder: The bundle.
        known: The sha256, in hex digits, of files that need not be read.
    """
    names = [name for name in folder.content() if name not in UNVERSIONED]

    def digest(name: str) -> str:
        return known.get(name) or hashlib.sha256(folder.read_buffer(name)).hexdigest()

    return version_of_digests({name: digest(name) for name in names})


def version_of_digests(digests: Mapping[str, str]) -> str:
    """Twelve hex digits from the names and digests of files."""
    digest = hashlib.sha256()
    for name in sorted({*digests} - {*UNVERSIONED}):
        digest.update(name.encode() + bytes.fromhex(digests[name]))
    return digest.hexdigest()[:12]
