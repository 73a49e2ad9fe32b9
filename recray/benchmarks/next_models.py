"""What the benchmark of what comes next prepares, searches and trains, each once."""

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from recray.benchmarks.experiments import Lab, archive, tables_of
from recray.config import load_settings
from recray.data import ingest
from recray.data.source import detect_source
from recray.errors import RecrayError
from recray.evaluation.metrics import PerUserMetrics
from recray.inference.bundle import Bundle
from recray.training import model_selection
from recray.training.checkpoint import RunFolder
from recray.training.export import export
from recray.training.run_metadata import ComparedModel, EpochEntry
from recray.tuning import request, tuner
from recray.tuning.request import TuneRequest
from recray.tuning.space import load_space

PROTOCOL = ("data.core=5", "split.kind=next")
CUT = (*PROTOCOL, "split.cut=0.9")
BESIDE = ("popularity", "recent-popular", "item-knn", "last-item-knn", "markov")
"""Baselines; markov has fixed settings there, which are not the preset's."""
RELEASES = {"1m_part": "ml-1m-users-1-2999", "100k": "ml-100k", "small": "ml-latest-small"}
PART = 2999
"""The users of ml-1m up to whom `1m_part` goes."""


@dataclass(frozen=True)
class Trained:
    """A model that has learned from the training rows alone, measured.

    Args:
        bundle: It.
        tables: The metrics of each user, of `model` and of each baseline.
        epochs: Its history.
        chosen: The settings that validation chose, in words.
        gains: What each of several models gained over those before it, in words.
    """

    bundle: Bundle
    tables: dict[str, PerUserMetrics]
    epochs: list[EpochEntry]
    chosen: str
    gains: list[str]

    @property
    def model(self) -> PerUserMetrics:
        """The metrics of the model."""
        return self.tables["model"]

    @property
    def minutes(self) -> float:
        """How long it trained, validation included."""
        return sum(float(entry["seconds"]) for entry in self.epochs) / 60


@dataclass
class Models:
    """Trains models, and keeps them.

    Args:
        lab: Where archives lie, and where everything is written.
        trials: Settings of a closed form that are compared on validation.
    """

    lab: Lab
    trials: int

    def __post_init__(self) -> None:
        self._made: dict[tuple[object, ...], Trained] = {}
        self._best: dict[tuple[object, ...], tuple[str, ...]] = {}
        self._data: dict[tuple[object, ...], str] = {}
        self._folders = 0

    def tuned(self, preset: str, data: str, protocol: tuple[str, ...]) -> Trained:
        """A closed form with the settings that validate best."""
        key = (preset, data, protocol)
        if key not in self._best:
            self._best[key] = self._search(preset, data, protocol)
        return self.trained(preset, data, protocol, self._best[key], 1)

    def trained(
        self,
        preset: str,
        data: str,
        protocol: tuple[str, ...],
        changes: tuple[str, ...],
        workers: int,
    ) -> Trained:
        """A preset with changed settings."""
        key = (preset, data, protocol, changes, workers)
        if key not in self._made:
            self._made[key] = self._train(preset, data, protocol, changes, workers)
        return self._made[key]

    def weights(
        self, preset: str, data: str, protocol: tuple[str, ...], workers: int
    ) -> dict[str, Tensor]:
        """What a preset has learned with so many workers."""
        out = self._folder()
        settings = load_settings(preset, None, protocol)
        model_selection.train(settings, self._prepared(data, protocol), out, workers)
        return RunFolder(out).best().weights

    # ------------------------------------------------------------------------------ the steps

    def _folder(self) -> str:
        """A folder that nothing has been written to."""
        self._folders += 1
        return f"{self.lab.out}/{self._folders}"

    def _prepared(self, data: str, protocol: tuple[str, ...]) -> str:
        """The folder of a data set, which is prepared once."""
        key = (data, protocol)
        if key not in self._data:
            settings, self._data[key] = load_settings("markov", None, protocol), self._folder()
            source = detect_source(_source(self.lab, data), settings)
            ingest.prepare(source, self._data[key], settings)
        return self._data[key]

    def _search(self, preset: str, data: str, protocol: tuple[str, ...]) -> tuple[str, ...]:
        """The best of several settings on validation, the preset's own among them."""
        settings = load_settings(preset, None, protocol)
        prepared, sweep = self._prepared(data, protocol), self._folder()
        asked = TuneRequest(prepared, sweep, self.trials, scheduler="none")
        search = request.check(asked, settings, load_space(settings))
        winner = search.metric.winner(tuner.run(search))
        if winner is None:
            raise ValueError("no trial came to a value")
        return tuple(f"{name}={json.dumps(value)}" for name, value in winner.point.items())

    def _train(
        self,
        preset: str,
        data: str,
        protocol: tuple[str, ...],
        changes: tuple[str, ...],
        workers: int,
    ) -> Trained:
        """Train on the training rows, and rank every user's test rating once."""
        settings = load_settings(preset, None, (*protocol, *changes))
        run, out = self._folder(), self._folder()
        summary = model_selection.train(settings, self._prepared(data, protocol), run, workers)
        bundle = export(run, out, fits="none")
        gains = [_gain(model) for model in (summary.selection.models if summary.selection else ())]
        chosen = ", ".join(change.partition(".")[2] for change in changes)
        tables = tables_of(bundle, baselines=BESIDE, order="last")
        return Trained(bundle, tables, RunFolder(run).history(), chosen, gains)


def _gain(model: ComparedModel) -> str:
    """What a model gained over those before it, in words."""
    if model.gain is None:
        return model.left_out or f"{model.name} is the first"
    value, low, high = model.gain.value, model.gain.low, model.gain.high
    return f"{model.name} {value:+.4f} ({low:+.4f} to {high:+.4f}) over {model.against}"


def _source(lab: Lab, data: str) -> str:
    """The source of a data set: `sample`, an archive, or the part of ml-1m, made of the whole."""
    if data not in RELEASES:
        return data
    try:
        return archive(RELEASES[data], lab.data)
    except RecrayError:
        if data != "1m_part":
            raise
    whole = Path(archive("ml-1m", lab.data))
    folder = Path(lab.out) / "part" / "ml-1m"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(whole) as packed:
        packed.extractall(folder.parent)
    lines = (folder / "ratings.dat").read_text(encoding="latin-1").splitlines(keepends=True)
    kept = [line for line in lines if int(line.split("::", 1)[0]) <= PART]
    (folder / "ratings.dat").write_text("".join(kept), encoding="latin-1")
    return str(folder)
