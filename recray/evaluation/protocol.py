"""Among which items the held-out ones are ranked, and which baselines stand beside the model.

Only one way is honest: every item that a user has not rated is a candidate. The others exist for
comparison with papers, and say so. Baselines are fitted on the same history as the model.
"""

import hashlib
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import torch
from numpy.typing import NDArray
from torch import Tensor

from recray.data.formats.layout import COLUMN_NAMES, IDS
from recray.data.ids import IdMap
from recray.errors import RecrayError, unknown_name
from recray.evaluation.metrics import rows_of_users
from recray.evaluation.report import ProtocolReport
from recray.inference.bundle import Bundle
from recray.inference.history import in_memory
from recray.inference.interactions import Histories
from recray.inference.scorer import Scorer
from recray.models.base import Model
from recray.models.baselines import Ease, ItemKnn, LastItemKnn, Popularity
from recray.models.history import (
    ITEM_LIMIT,
    ClosedForm,
    HistoryModel,
    refuse_large_catalogue,
)
from recray.models.markov import Markov
from recray.models.objectives import ByHistory
from recray.models.recent_popular import RecentPopular
from recray.storage import open_input

Kind = Literal["full", "rated", "sampled"]
NextKind = Literal["last", "successive", "all"]
HistoriesOf = Callable[[Model], Histories]
"""From a model to what it reads of the users."""
SAMPLED = ("ndcg", "hitrate")
"""The metrics that papers report for sampled candidates."""
BASELINES = (
    "popularity",
    "bias-only",
    "item-knn",
    "ease",
    "markov",
    "recent-popular",
    "last-item-knn",
)
MEANING: dict[Kind, str] = {
    "full": "every item that the user has not rated is a candidate",
    "rated": "NOT THE HONEST PROTOCOL: only films that the user has rated are ranked, and those of "
    "training count as found, too; a random order finds a fifth of ml-100k's",
    "sampled": "NOT THE HONEST PROTOCOL: held-out items are ranked among sampled candidates, as "
    "papers do; it need not order models as the full catalogue does",
}
NEXT: dict[NextKind, str] = {
    "last": "the last test rating of each user, from everything before it",
    "successive": "every test rating in turn, from everything before it",
    "all": "every test rating, from what was known before the first of its user",
}
"""Which test ratings are looked for one by one, and from what."""


@dataclass(frozen=True)
class OtherBundle:
    """A bundle that is measured beside the model, on the same targets.

    Args:
        path: Its folder.
        version: Its version.
        name: What reports call it.
    """

    path: str
    version: str
    name: str


@dataclass(frozen=True, eq=False)
class Candidates:
    """The items that each user's held-out ones are ranked among.

    Args:
        file: Where they come from.
        user: (N,) int64 dense ids, ascending.
        item: (N,) int64 dense ids; those that training does not know cannot be ranked.
    """

    file: str
    user: NDArray[np.int64]
    item: NDArray[np.int64]

    @cached_property
    def digest(self) -> str:
        """sha256 of the content."""
        return hashlib.sha256(self.user.tobytes() + self.item.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        """By content: a worker's cache of evaluators has to recognise an unpickled copy."""
        return isinstance(other, Candidates) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def read(cls, path: str, users: IdMap, items: IdMap) -> Self:
        """Read a csv file of users and items in raw ids, under a header as ratings files have it.

        Raises:
            RecrayError: It cannot be read, or names somebody or something unknown.
        """
        table = _read_csv(path)
        columns = []
        for name, ids in (("user", users), ("item", items)):
            coded = table[name].combine_chunks().dictionary_encode()
            dense = np.array([_dense(ids, text) for text in coded.dictionary.to_pylist()], np.int64)
            columns.append(dense[coded.indices.to_numpy()])
        user, item = columns
        bad = np.flatnonzero((user < 0) | (item < 0))
        if len(bad):
            row = int(bad[0])
            name = "user" if user[row] < 0 else "item"
            raise RecrayError(
                f"{path} names an unknown {name} {table[name][row].as_py()!r} in row {row + 1}; "
                f"{name}s of the data set are allowed"
            )
        order = np.argsort(user, kind="stable")
        return cls(path, user[order], item[order])

    def cells(self, users: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Rows (in `users`) and items of these users' candidates."""
        rows, row = rows_of_users(self.user, users)
        return torch.from_numpy(row), torch.from_numpy(self.item[rows])


def _read_csv(path: str) -> pa.Table:
    """The columns user and item of a csv file as text, whatever its header calls them."""
    # With the header read as a row like the others, no column holds numbers alone: all stay text.
    options = pacsv.ReadOptions(autogenerate_column_names=True)
    try:
        with closing(open_input(path)) as stream:
            table = pacsv.read_csv(stream, read_options=options)
    except pa.ArrowInvalid as error:
        raise RecrayError(f"{path} is no csv file with columns user,item: {error}") from error
    header = [str(column[0].as_py()) for column in table.columns]
    lower = [name.strip().lower() for name in header]
    places = [
        next((place for place, name in enumerate(lower) if name in COLUMN_NAMES[role]), None)
        for role in IDS
    ]
    if None in places or len(table) < 2:
        raise RecrayError(
            f"{path} has {len(table) - 1:,} rows of columns {', '.join(header)[:200]}; rows of "
            f"user,item are needed, under a line that names them as a ratings file may: "
            f"{'; '.join(', '.join(COLUMN_NAMES[role]) for role in IDS)}"
        )
    columns = [table.column(place).slice(1) for place in places if place is not None]
    return pa.table(columns, names=["user", "item"])


def _dense(ids: IdMap, text: str) -> int:
    try:
        return ids.encode_one(ids.parse(text))
    except KeyError:
        return -1


@dataclass(frozen=True)
class Protocol:
    """Which candidates are ranked, and which baselines are measured beside the model.

    Args:
        baselines: Names of the baselines; None: see choose_baselines.
        kind: full: all that a user has not rated is ranked; rated: all that they have rated, in
            training or held out, all of which count as relevant; sampled: the held-out items
            among candidates from a file.
        negatives: sampled: the path of the file of candidates.
        candidates: sampled: the content of that file.
        next: Which test ratings are looked for one by one; None: all of a user's together.
        others: Bundles that are measured beside the model.
    """

    baselines: tuple[str, ...] | None = None
    kind: Kind = "full"
    negatives: str | None = None
    candidates: Candidates | None = None
    next: NextKind | None = None
    others: tuple[OtherBundle, ...] = ()

    def resolved(self, bundle: Bundle) -> "Protocol":
        """The same protocol with its file of candidates read.

        Raises:
            RecrayError: The file of candidates is missing or unusable, or given for nothing.
        """
        if self.next is not None and self.kind != "full":
            raise RecrayError(
                f"--next {self.next} ranks the whole catalogue without what was seen: leave "
                "--among and --protocol out"
            )
        if (self.kind == "sampled") != (self.negatives is not None):
            raise RecrayError("--protocol sampled and --negatives FILE go together: give both")
        if self.negatives is None:
            return self
        read = Candidates.read(self.negatives, bundle.user_ids, bundle.item_ids)
        return replace(self, candidates=read)

    def check(self, bundle: Bundle, users: NDArray[np.int64]) -> None:
        """Refuse to rank for somebody without candidates, who would always be a hit.

        Raises:
            RecrayError: One of the users with held-out ratings has none.
        """
        if self.candidates is None:
            return
        without = users[~np.isin(users, self.candidates.user)]
        if len(without):
            raw = bundle.user_ids.raw[without[:1]].tolist()[0]
            raise RecrayError(
                f"{self.candidates.file} has no candidates for {len(without):,} of {len(users):,} "
                f"users with held-out ratings, the first is {raw!r}; each needs some"
            )

    def candidate_cells(
        self, scorer: Scorer, users: NDArray[np.int64]
    ) -> tuple[Tensor, Tensor] | None:
        """Rows (in `users`) and items that are ranked beside the held-out ones.

        None stands for every item that the user has not seen.
        """
        if self.kind == "rated":
            row, item = scorer.seen.of_users(users).coo_indices()
            return torch.from_numpy(row), torch.from_numpy(item.astype(np.int64))
        return None if self.candidates is None else self.candidates.cells(users)

    def report(self, seen_ahead: int = 0) -> ProtocolReport:
        """Name the protocol, and say what it means.

        Args:
            seen_ahead: Users of whom the model has learned ratings that came after a target.
        """
        words, honest = MEANING[self.kind], self.kind == "full" and not seen_ahead
        if self.next is not None:
            words = f"one target at a time: {NEXT[self.next]}"
        if seen_ahead:
            words = (
                f"NOT THE HONEST PROTOCOL: the training holds later ratings of {seen_ahead:,} of "
                f"these users; use split.kind=next or temporal; {words}"
            )
        return ProtocolReport(
            kind=self.kind, honest=honest, words=words, negatives=self.negatives, next=self.next
        )


FULL_RANKING = Protocol()


def choose_baselines(asked: Iterable[str] | None, items: int) -> tuple[str, ...]:
    """The baselines to measure, in the order of BASELINES.

    Args:
        asked: Names; None takes popularity, bias-only and, in a catalogue that is not too large,
            item-knn.
        items: Size of the catalogue.

    Raises:
        RecrayError: A name is unknown, none is given, or EASE is asked for where its memory grows
            too large.
    """
    if asked is None:
        return BASELINES[:3] if items <= ITEM_LIMIT else BASELINES[:2]
    names = set(asked)
    for name in sorted(names - set(BASELINES)):
        raise unknown_name("baseline", name, BASELINES)
    if not names:
        raise RecrayError(f"--baselines needs at least one of {', '.join(BASELINES)}")
    if "ease" in names:
        refuse_large_catalogue("ease", items)
    return tuple(name for name in BASELINES if name in names)


def build_baselines(
    names: Iterable[str], beside: Scorer, histories: HistoriesOf | None = None
) -> dict[str, Scorer]:
    """Fit baselines on the rows that the model beside them learned from.

    Popularity alone counts the ratings of users whom training does not know as well.

    Args:
        names: As choose_baselines returns them.
        beside: The model's scorer: what it learned from is fitted, its seen items are left out.
        histories: What a baseline reads, in order and with times where it reads them; by default
            the histories of the model beside it as they are.
    """
    learned, seen = in_memory(beside.learned), beside.seen
    users, items = beside.model.users, beside.model.items
    popularity = Popularity(users, items)
    popularity.init_from_statistics(learned.statistics(items))
    popular = Scorer(popularity, None, learned, seen=seen, rating_range=beside.rating_range)

    def fitted(kind: type[ClosedForm]) -> Scorer:
        model, counts = kind(users, items), popular.popularity
        read = histories(model) if histories else Histories(beside.history, seen, learned)
        rated, rows = read.rated, in_memory(read.learned)
        if not isinstance(beside.model, HistoryModel):
            rated = rows  # a trained row follows from these alone, so nor does a baseline see more
        model.fit(rows.rows(0, users).as_csr())
        return Scorer(model, ByHistory(), rated, popularity=counts, seen=seen, learned=rows)

    made: dict[str, Callable[[], Scorer]] = {
        "popularity": lambda: popular,
        "bias-only": lambda: Scorer(
            popular.bias_only, None, learned, seen=seen, rating_range=beside.rating_range
        ),
        "item-knn": lambda: fitted(ItemKnn),
        "ease": lambda: fitted(Ease),
        "markov": lambda: fitted(Markov),
        "recent-popular": lambda: fitted(RecentPopular),
        "last-item-knn": lambda: fitted(LastItemKnn),
    }
    return {name: made[name]() for name in names}
