"""The results of commands, where they have no type of their own elsewhere; docs/results.md."""

from dataclasses import dataclass

from pydantic import BaseModel, JsonValue

from recray.data.accounting import RowCounts, TimesRead
from recray.data.lists.rows import ListReport
from recray.data.movielens import Release
from recray.progress import StageFacts
from recray.runtime.jobs import Job

SettingsByGroup = dict[str, dict[str, JsonValue]]


class Result(BaseModel, defer_build=True):
    """A result, whose checks are built when it is first made: `recray --help` makes none."""


class Rejected(Result):
    """Rows that could not be read.

    Args:
        rows: How many.
        reasons: How many by reason.
    """

    rows: int
    reasons: dict[str, int]


class RejectedExample(Result):
    """A rejected row: its file, its line from 1 (of parquet: row of a chunk), text and reason."""

    file: str
    line: int
    text: str
    reason: str


class RejectedRows(Rejected):
    """Rows that could not be read, and what would help.

    Args:
        rows: How many.
        reasons: How many by reason.
        first: The first three of each reason.
        advice: What would help.
    """

    first: list[RejectedExample] = []
    advice: list[str] = []


class SplitCounts(Result):
    """What is in a split.

    Args:
        rows: Ratings.
        users: Users with a rating in it.
        items: Items with a rating in it.
        unseen: Ratings whose user or item is not in the training split.
        unseen_percent: The same in percent of the rows.
    """

    rows: int
    users: int
    items: int
    unseen: int
    unseen_percent: float


class RatingScale(Result):
    """The ratings that occur.

    Args:
        range: The lowest and the highest.
        levels: Each rating, and how often it occurs in training.
    """

    range: tuple[float, float]
    levels: list[tuple[float, int]]


class PreparedFacts(Result):
    """A prepared data set.

    Args:
        prepared: Its folder.
        kind: What the folder is.
        dataset: Name of the data set.
        source: sha256 of the source's files, or of their names, sizes and times.
        settings: The settings of data and split.
        timestamps: Whether ratings have times.
        implicit: Whether the source has no ratings, so that each row counts as the same one.
        times: How times were read.
        unused: Files that are neither ratings nor lists, and why.
        lists: What was read of the lists beside the ratings.
        rejected: Rows that could not be read.
        rows_read: Rows of the source that could be read.
        rows: What became of every row.
        buckets: Files of each split.
        core_rounds: Rounds until data.core held.
        counts: Users, items, ratings, duplicates, ids that training lacks, and short_users: those
            with too few ratings for a target of split.kind=next.
        splits: By split.
        ratings: The ratings that occur.
        fingerprints: sha256 of ids, items and each split.
        ray_data: The tasks of each stage, in order.
    """

    prepared: str
    kind: str
    dataset: str
    source: str
    settings: SettingsByGroup
    timestamps: bool
    implicit: bool
    times: TimesRead
    unused: dict[str, str]
    lists: list[ListReport]
    rejected: Rejected
    rows_read: int
    rows: RowCounts
    buckets: int
    core_rounds: int
    counts: dict[str, int]
    splits: dict[str, SplitCounts]
    ratings: RatingScale
    fingerprints: dict[str, str]
    ray_data: list[StageFacts]


class Description(Result):
    """What is in a source or a prepared data set.

    Args:
        dataset: Name of the data set.
        ratings: Number of ratings.
        users: Users who rated.
        items: Items that were rated.
        films: Of a source: items that it describes.
        rejected: Rows that could not be read.
        times: How times were read.
        lists: What was read of the lists beside the ratings.
        unused: Of a source: files that are neither ratings nor lists, and why.
        levels: Each rating, and how often it occurs.
        years: Each calendar year, and how many ratings are of it.
        per_user: Ratings per user: minimum, quartiles and maximum.
        per_item: The same per item.
        splits: Of a prepared data set: by split.
        settings: Of a prepared data set: the settings of data and split.
    """

    dataset: str
    ratings: int
    users: int
    items: int
    films: int | None = None
    times: TimesRead | None = None
    rejected: RejectedRows
    lists: list[ListReport] = []
    unused: dict[str, str] = {}
    levels: list[tuple[float, int]]
    years: list[tuple[int, int]]
    per_user: list[float]
    per_item: list[float]
    splits: dict[str, SplitCounts] | None = None
    settings: SettingsByGroup | None = None


@dataclass(frozen=True)
class KnownRelease(Release):
    """A MovieLens release, and whether it is in the cache."""

    cached: bool


class ReleaseList(Result):
    """The releases that are known by name, and the licence of their use."""

    releases: list[KnownRelease]
    licence: str


class FetchedRelease(Result):
    """A release in the cache; sha256 is None where the official one is not known."""

    name: str
    path: str
    sha256: str | None


class ExportedBundle(Result):
    """A bundle.

    Args:
        bundle: Its folder.
        version: 12 hex digits that follow from its content.
        evaluation: An EvaluationReport; {} where there is no test split.
    """

    bundle: str
    version: str
    evaluation: dict[str, JsonValue]


class PresetList(Result):
    """The names of the recipes."""

    presets: list[str]


class WrittenReport(Result):
    """The HTML file, and the pictures beside it."""

    report: str
    pictures: list[str]


class ShellCompletion(Result):
    """The script that completes commands in a shell, and how it is installed."""

    shell: str
    script: str
    install: str


class Submitted(Result):
    """A job that was sent to the cluster at an address."""

    job: str
    address: str
    status: str


class JobLog(Result):
    """What a job has printed."""

    job: str
    log: str


class JobList(Result):
    """The jobs of a cluster."""

    jobs: list[Job]


class JobState(Result):
    """A job, as the cluster reports it.

    Args:
        job: Its submission id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        command: The command that runs.
        message: What the cluster says about its state.
        started: When it started, as ISO 8601; None before.
        seconds: How long it has run.
        exit_code: The exit code of its process; None before its end.
    """

    job: str
    status: str
    command: str
    message: str
    started: str | None
    seconds: float | None
    exit_code: int | None


class StartedService(Result):
    """A service; it follows a registry whose current version may change."""

    url: str
    bundle: str
    follows: bool


class NewKey(Result):
    """An API key, and the line of a file of keys that lets it in."""

    key: str
    line: str


class AddedVersion(Result):
    """A version that was added to a registry; before and verdict are there with --promote."""

    registry: str
    version: str
    before: str | None = None
    verdict: str | None = None
