"""What the functions of recray return: a data set, a run, a sweep, a service."""

import contextlib
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd

from recray.api import arguments
from recray.api.caller import left_as_found
from recray.api.model import Loaded
from recray.data.dataset import Prepared, Ratings
from recray.errors import RecrayError
from recray.progress import Console
from recray.reporting import frames
from recray.runtime.loopback import open_url
from recray.storage import Folder
from recray.training.checkpoint import RunFolder
from recray.training.run_metadata import RunSummary
from recray.tuning.results import Point, TuneResult
from recray.tuning.store import SweepFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@contextlib.contextmanager
def telling(words: str) -> Iterator[Console]:
    """Tell what is done while the block runs, and leave the caller's process as it was."""
    ui = Console(False, words)
    try:
        with left_as_found, ui.during(words):
            yield ui
    finally:
        ui.close()


class Data:
    """A prepared data set; made by `recray.prepare`.

    Args:
        prepared: The opened folder.

    Example:
        >>> data = recray.prepare("sample", folder + "/prepared")
        >>> data.ratings.columns.tolist()
        ['user', 'item', 'title', 'rating', 'time', 'split']
    """

    def __init__(self, prepared: Prepared) -> None:
        self.prepared = prepared

    def __repr__(self) -> str:
        facts = self.prepared.manifest
        splits = ", ".join(f"{name} {s['rows']:,}" for name, s in facts["splits"].items())
        sizes = f"{self.prepared.users:,} users, {self.prepared.items:,} items"
        return f"<recray data {facts['dataset']}: {sizes}; {splits}>"

    @property
    def path(self) -> str:
        """Its folder."""
        return self.prepared.folder.path

    @cached_property
    def ratings(self) -> pd.DataFrame:
        """All ratings: user, item, title, rating, time (UTC), split (train, valid, test,
        fold_in).
        """
        titles = self.prepared.item_table["title"]
        ids = self.prepared.user_ids, self.prepared.item_ids
        parts = [
            frames.ratings(self.prepared.load(name), *ids, titles).assign(split=name)
            for name in self.prepared.manifest["splits"]
        ]
        return pd.concat(parts, ignore_index=True)

    @cached_property
    def items(self) -> pd.DataFrame:
        """Items by raw id: title, year, genres (a list), ratings."""
        return frames.items(self.prepared.item_table)

    @property
    def rejected(self) -> pd.DataFrame:
        """The first rows that could not be read: file, line, byte, text, reason."""
        return frames.plain(self.prepared.folder.read_table("rejected.parquet"))

    @property
    def splits(self) -> pd.DataFrame:
        """By split: rows, users, items, and how many rows have ids that training lacks."""
        return pd.DataFrame.from_dict(self.prepared.manifest["splits"], orient="index")

    @cached_property
    def plots(self) -> "dict[str, Figure]":
        """Pictures of the data by name, as in the report."""
        from recray.reporting import report

        loaded = [self.prepared.load(name) for name in self.prepared.manifest["splits"]]
        every = Ratings.concatenate(loaded)
        return report.data_plots(every, self.prepared.item_table)


class Run:
    """A training run; made by `recray.train`.

    Args:
        path: Its folder.
        summary: What training returned: epochs, best_epoch, best, stopped_early.
    """

    def __init__(self, path: str, summary: RunSummary) -> None:
        self.path, self.summary = path, summary

    def __repr__(self) -> str:
        epochs, best = self.summary.epochs, self.summary.best_epoch
        return f"<recray run {self.path}: {epochs} epochs, the best is {best}>"

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch, by epoch: loss, validation metrics, seconds."""
        return frames.history(RunFolder(self.path).history())

    @property
    def selection(self) -> pd.DataFrame | None:
        """The models of train.choose_from by name: their metric on validation, what each gained
        over those before it; None where there was nothing to choose.
        """
        chosen = self.summary.selection
        return None if chosen is None else frames.selection(chosen)

    def export(self, out: str | os.PathLike[str], *, final_fit: bool = True) -> Loaded:
        """Write the best epoch as a bundle, measured on the test split; see `recray export`.

        Args:
            out: Folder of the bundle; the bundle of this very run may be there already.
            final_fit: Whether what is served is fitted again on all ratings.

        Raises:
            RecrayError: The folder is taken, or the data set has changed since.
        """
        from recray.training.export import Fits, export, prepared_of, same_bundle

        fits: Fits = "final" if final_fit else "none"
        folder = arguments.path_of("out", out)
        prepared = prepared_of(self.path)
        with left_as_found:
            same = same_bundle(Folder(folder), self.path, prepared, fits)
        if not same:
            with telling(f"measure {self.path} on the test split"):
                export(self.path, folder, fits=fits)
        return Loaded.open(folder)


class Sweep:
    """A finished search; made by `recray.tune`.

    Args:
        path: Its folder.
        result: Its trials, its winner and the final test.

    Example:
        >>> sweep = recray.tune(
        ...     folder + "/prepared", folder + "/sweep", trials=2, seeds=0,
        ...     settings={"train.epochs": 1},
        ... )
        >>> sweep.trials["status"].tolist()
        ['finished', 'finished']
    """

    def __init__(self, path: str, result: TuneResult) -> None:
        self.path, self.result = path, result

    def __repr__(self) -> str:
        count, metric = len(self.result.trials), self.result.metric
        return f"<recray sweep {self.path}: {count} trials by {metric}; {self.result.best} won>"

    @cached_property
    def trials(self) -> pd.DataFrame:
        """The trials by number, the winner first: value, status, epochs, and what was searched."""
        return frames.trials(self.result)

    @cached_property
    def reports(self) -> pd.DataFrame:
        """A row a report: trial, epoch, metrics, the best so far, and what was searched."""
        return frames.plain(SweepFolder(self.path).folder.read_table("results.parquet"))

    @cached_property
    def plots(self) -> "dict[str, Figure]":
        """Pictures of the search by name: history, and parallel and importance of enough trials."""
        from recray.reporting.plots import search

        return search.figures(self.result)

    @property
    def best(self) -> Point:
        """The winner's values of the searched settings."""
        return self.result.winner.settings

    @property
    def config(self) -> str:
        """The winner's settings as a file, for `recray.train(..., config=...)`."""
        return self.result.best_config

    @property
    def verdict(self) -> str:
        """What the search was worth on test, in words."""
        test = self.result.test
        return test.verdict if test else "the test split was not opened"


class Service:
    """A running service; made by `recray.serve`.

    Args:
        url: Its address.
        model: What it serves.
        running: Ends the service when it is closed.
        key: API key that it lets in; None if it asks for none.
    """

    def __init__(
        self, url: str, model: Loaded, running: contextlib.ExitStack, key: str | None = None
    ) -> None:
        self.url, self.model, self._running, self._key = url, model, running, key

    def __repr__(self) -> str:
        return f"<recray service {self.url}: {self.model.version}>"

    def get(self, path: str, **parameters: Any) -> Any:
        """What the service answers, from JSON.

        Args:
            path: Such as /v1/users/4/recommendations.
            parameters: Of the query, such as k=5.

        Raises:
            urllib.error.HTTPError: It refuses.
            RecrayError: Nothing answers there.
        """
        given = {name: arguments.plain(name, value) for name, value in parameters.items()}
        query = f"?{urllib.parse.urlencode(given, doseq=True)}" if given else ""
        request = urllib.request.Request(f"{self.url}{path}{query}")
        if self._key is not None:
            request.add_header("authorization", f"Bearer {self._key}")
        try:
            with open_url(request, timeout_s=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError:
            raise
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            raise RecrayError(f"{self.url} does not answer: {reason}") from error

    def verify(self, users: int = 500) -> dict[str, Any]:
        """Compare its answers with those of the bundle, for at most so many test users.

        Returns:
            {"verified", "users", "differences"} and more; see serving.verify.
        """
        from recray.serving import verify

        most = arguments.whole("users", users)
        return verify.verify(self.url, self.model.recommender, most, key=self._key).model_dump()

    def close(self) -> None:
        """Stop it."""
        self._running.close()

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
