"""The users of a bundle that answers: looked up in its partitions, and never all in memory."""

# Shape letter: B = pairs.

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor

from recray import schema
from recray.data.ids import FIT_SPLITS, FitOn
from recray.errors import DamagedFile
from recray.inference.bundle_users import UsersFile, open_partition
from recray.inference.history import UserHistories
from recray.inference.interactions import FILTERED, Histories
from recray.inference.service_facts import ServiceFacts
from recray.inference.stored_history import Keep, StoredHistory
from recray.inference.top_k import Ids, Scores
from recray.inference.user_parts import part_file
from recray.inference.user_store import UserStore
from recray.models.base import Model, is_user_table
from recray.models.baselines import BiasOnly
from recray.models.history import HistoryModel
from recray.storage import Folder, ManifestEntry, is_uri

HASHED_BYTES = 1 << 22
"""Bytes of a file that are hashed at once."""


class PartitionFiles:
    """The files of partitions on this machine's disk, each compared with its digest once.

    Those of a store are fetched when they are first asked for, into the folder for temporary files.

    Args:
        folder: Of the bundle.
        entries: Its files.
    """

    def __init__(self, folder: Folder, entries: list[ManifestEntry]) -> None:
        self._folder, self._entries = folder, {entry.name: entry for entry in entries}

    def map(self, name: str) -> pa.Buffer:
        """The content of a file, of which the system reads what is looked at; see file."""
        with self.file(name) as path, pa.memory_map(str(path)) as mapped:
            return mapped.read_buffer()

    @contextmanager
    def file(self, name: str) -> Iterator[Path]:
        """Where a file lies on this machine's disk, to be mapped inside the block.

        Raises:
            DamagedFile: The file is missing, or its bytes are not those of the manifest.
            StorageError: The store does not answer.
        """
        if name not in self._entries:
            raise DamagedFile(f"{self._folder} lacks {name}")
        entry = self._entries[name]
        if is_uri(self._folder.path):
            with tempfile.NamedTemporaryFile(prefix="recray-bundle-") as file:
                file.write(self._folder.read_verified(entry))
                file.flush()
                # Its name is taken away; its bytes stay as long as something looks at them, and no
                # kill leaves them behind.
                yield Path(file.name)
            return
        path = Path(self._folder.at(name))
        self._compare(path, entry)
        yield path

    def _compare(self, path: Path, entry: ManifestEntry) -> None:
        digest = hashlib.sha256()
        try:
            with path.open("rb") as file:  # not by the map: what is hashed need not stay
                while piece := file.read(HASHED_BYTES):
                    digest.update(piece)
        except FileNotFoundError as error:
            raise DamagedFile(f"{self._folder} lacks {entry.name}") from error
        if digest.hexdigest() != entry.sha256:
            raise DamagedFile(f"{path} is damaged: its sha256 is not that of the manifest")


@dataclass(frozen=True)
class StoredUsers:
    """The users of a bundle, looked up when they are asked for.

    Args:
        store: Where they are.
        facts: What follows from all of them.
        items: Items that the model knows.
        tables: Names of the model's tables of users, and the size of their rows.
    """

    store: UserStore
    facts: ServiceFacts
    items: int
    tables: dict[str, int]

    @classmethod
    def open(
        cls,
        folder: Folder,
        users_in: Folder,
        entries: list[ManifestEntry],
        known: tuple[int, int],
        items: int,
    ) -> Self:
        """Open those of a bundle; no partition is read.

        Args:
            folder: Of the bundle.
            users_in: The same, where partitions are read later.
            entries: Its files.
            known: Users and items that the model knows, the first ones.
            items: Items that have an id.

        Raises:
            DamagedFile: What it says of its users is damaged.
        """
        facts, files = UsersFile.read(folder), PartitionFiles(users_in, entries)

        def tensors(partition: int) -> dict[str, Tensor]:
            content = files.map(part_file(partition))
            return open_partition(folder, content, facts, partition)

        store = UserStore(facts.numbering, known[0], items, facts.text, tensors)
        return cls(store, ServiceFacts.read(folder, known[1]), known[1], facts.tables)

    def histories(self, model: Model, fit_on: FitOn) -> Histories:
        """What answers follow from, and what lists leave out; as Interactions.for_service."""
        fitted = np.zeros(len(schema.INTERACTION_PARTS), bool)
        fitted[[schema.PARTS.index(name) for name in FIT_SPLITS[fit_on]]] = True

        def kept(part: NDArray[np.int8], _known: NDArray[np.bool_]) -> NDArray[np.bool_]:
            return np.asarray(part != FILTERED)

        def learned(part: NDArray[np.int8], known: NDArray[np.bool_]) -> NDArray[np.bool_]:
            return np.asarray((part != FILTERED) & (fitted[part] | ~known))

        by_history = isinstance(model, HistoryModel)
        seen, of_model = self._history(model, _every), self._history(model, learned)
        return Histories(self._history(model, kept) if by_history else of_model, seen, of_model)

    def _history(self, model: Model, keep: Keep) -> StoredHistory:
        order = isinstance(model, HistoryModel) and model.reads_order
        times = isinstance(model, HistoryModel) and model.reads_times
        return StoredHistory(self.store, self.items, keep, order, order or times)

    def look_up_rows_of(self, model: Model) -> None:
        """Put what looks rows up in the place of the tables of users.

        Raises:
            ValueError: The model has other tables.
        """
        tables = model.embeddings().items()
        own = {name: table.embedding_dim for name, table in tables if is_user_table(name)}
        if own != self.tables:
            raise ValueError(f"it has tables of users {own}, those here are {self.tables}")
        for name, size in own.items():
            model.set_submodule(name, self.store.table(name, size))
        model.moments = self.facts.user_moments

    @cached_property
    def filtered(self) -> StoredHistory:
        """What filters kept from training."""
        return StoredHistory(self.store, self.items, _only_filtered, False, False)

    def biases(self, learned: UserHistories) -> BiasOnly:
        """The baseline that predicts a pair with a side that training does not know."""
        return _StoredBiases(self, learned)


def _every(part: NDArray[np.int8], _known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.ones(len(part), bool)


def _only_filtered(part: NDArray[np.int8], _known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.asarray(part == FILTERED)


class _StoredBiases(BiasOnly):
    """BiasOnly whose biases of users follow from their histories when they are asked for."""

    def __init__(self, users: StoredUsers, learned: UserHistories) -> None:
        super().__init__(0, users.items)
        self.mean, self.item_bias = users.facts.mean, users.facts.item_bias
        self._known, self._learned = users.store.known, learned

    def predict(self, user: Ids, item: Ids) -> Scores:
        """Mean and known biases of pairs: (B,) and (B,) ids, unknown ones too, to (B,) ratings."""
        unique = np.unique(user)
        own = unique[unique < self._known]
        rated = self._learned.of_users(own).as_csr()
        asked = BiasOnly(len(own), self.items)
        asked.mean, asked.item_bias = self.mean, self.item_bias
        asked.fit_users(rated.row, rated.item, rated.rating)
        place = np.searchsorted(own, user)
        return asked.predict(np.where(user < self._known, place, len(own)), item)
