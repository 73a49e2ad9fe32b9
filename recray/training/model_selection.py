"""Choose among models on validation: the presets of train.choose_from, as the preset `next` does.

Each is trained as a run of its own in RUN/candidates/NAME, so a finished one is never trained
again. All are measured on the same validation users. The first stands until a later one is better
by the paired interval: of models that cannot be told apart, the simplest is the run. RUN becomes a
copy of the run that was taken, so whatever follows, an export or a refresh, sees one model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import BaseModel

from recray.config import Settings, candidates
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.evaluation.comparison import Comparison, compare, summarise
from recray.evaluation.metrics import PerUserMetrics
from recray.evaluation.report import Interval
from recray.models import build_model
from recray.models.objectives import build_objective
from recray.progress import Log
from recray.runtime.session import LOCAL, workers_at
from recray.runtime.worker_range import WorkerRange
from recray.storage import MANIFEST, Folder, check_store, refuse_taken
from recray.training import trainer
from recray.training.callbacks import Callbacks
from recray.training.checkpoint import CHECKPOINTS, EPOCHS, RUN, RunFolder
from recray.training.own_users import user_weights
from recray.training.run_metadata import ComparedModel, ModelSelection, RunSummary
from recray.training.shard import Workers
from recray.training.worker_rows import WorkerRows

CANDIDATES = "candidates"
SELECTION = "selection.json"
Train = Callable[[Settings, str], RunSummary]
"""Trains settings in a folder, or goes on with what lies there."""


class _Selected(BaseModel):
    """The content of selection.json: what was asked, on which data, and what came of it."""

    settings: Settings
    fingerprint: str
    selection: ModelSelection


def train(
    settings: Settings,
    prepared_path: str,
    out: str,
    workers: int | str | WorkerRange = 1,
    resume: bool = False,
    address: str = LOCAL,
    callbacks: Callbacks | None = None,
    max_failures: int = trainer.MAX_FAILURES,
) -> RunSummary:
    """Train a model, or the best of those in train.choose_from; see trainer.run.

    Raises:
        RecrayError: What the user can fix; none of the models can be trained on these data.
    """
    check_store(prepared_path, to_write=False)
    check_store(out, to_write=True)
    one = partial(trainer.run, workers=workers, address=address, callbacks=callbacks,
                  max_failures=max_failures)  # fmt: skip
    if not settings.train.choose_from:
        return one(settings, prepared_path, out, resume=resume)
    prepared, folder = Prepared.open(prepared_path, verify=True), RunFolder(out)
    recipe = trainer.adapt_to_dataset(settings, prepared)
    before = _selected(folder.folder)
    if resume and folder.finished and before is not None and _same(before, recipe, prepared):
        summary = RunSummary.model_validate(folder.folder.manifest().facts["summary"])
        return summary.model_copy(update={"run": folder.folder.path, "already_finished": True})
    started = folder.folder.child(CANDIDATES).exists()
    refuse_taken(folder.folder, started or folder.folder.exists(RUN), "run", resume)
    if not started and folder.folder.exists(RUN):
        raise RecrayError(f"{folder} is a run of one model; give another folder")
    check = partial(_check, prepared=prepared, workers=workers, address=address)
    again = partial(one, prepared_path=prepared_path, resume=True, verify=False)
    log = callbacks.log if callbacks is not None else _ignore
    selecting = _Selecting(prepared, folder, recipe, lambda s, path: again(s, out=path), log)
    return selecting.run(*_checked(recipe, prepared, check))


def _ignore(_line: str) -> None:
    pass


def _check(
    settings: Settings, prepared: Prepared, workers: int | str | WorkerRange, address: str
) -> Settings:
    allowed = workers_at(workers, address)
    settings = trainer.with_sizes_and_device(settings, prepared, allowed.start, address)
    trainer.check_trainable(settings, prepared, allowed, address)
    return settings


def _checked(
    recipe: Settings, prepared: Prepared, check: Callable[[Settings], Settings]
) -> tuple[dict[str, Settings], dict[str, str]]:
    """Settle what can be trained, by name, and why the others cannot, before anything is.

    Raises:
        RecrayError: Nothing can, validation has no ratings, or they have no metric in common.
    """
    if not prepared.manifest["splits"]["valid"]["rows"]:
        raise RecrayError(
            f"{prepared.folder} has no validation ratings to choose a model by: prepare it with "
            f"some, or take one of {', '.join(recipe.train.choose_from)}"
        )
    fit: dict[str, Settings] = {}
    refused: dict[str, str] = {}
    for name, settings in candidates(recipe).items():
        try:
            fit[name] = check(settings)
        except RecrayError as error:
            refused[name] = str(error)
    if not fit:
        raise RecrayError("; ".join(f"{name}: {why}" for name, why in refused.items()))
    metrics = {settings.metric: name for name, settings in fit.items()}
    if len(metrics) > 1:
        words = ", ".join(f"{name} has {metric}" for metric, name in metrics.items())
        raise RecrayError(f"train.choose_from compares by one metric: {words}; set train.metric")
    return fit, refused


@dataclass
class _Selecting:
    """Models that are trained and compared, one after another.

    Args:
        prepared: The data set.
        folder: The run.
        recipe: The settings that name the candidates, completed for the data set.
        train: Trains one, or goes on with it.
        log: Receives what happens, one line at a time.
    """

    prepared: Prepared
    folder: RunFolder
    recipe: Settings
    train: Train
    log: Log

    def run(self, fit: dict[str, Settings], refused: dict[str, str]) -> RunSummary:
        """Train and compare all that fit, and make the best of them the run."""
        texts = dict(zip(candidates(self.recipe), self.recipe.train.choose_from, strict=True))
        found: list[ComparedModel] = []
        best: tuple[str, PerUserMetrics, RunSummary] | None = None
        for name, text in texts.items():
            if name in refused:
                self.log(f"train: {name} is left out: {refused[name]}")
                found.append(ComparedModel(name=name, settings=text, left_out=refused[name]))
                continue
            self.log(f"train: {name}, {len(found) + 1} of {len(texts)} to choose from")
            summary = self.train(fit[name], self._folder(name).path)
            table = self._measure(fit[name], self._folder(name))
            candidate, taken = self._compare(name, text, table, best)
            found.append(candidate)
            best = (name, table, summary) if taken or best is None else best
        if best is None:
            raise ValueError("nothing was trained: see _checked")
        name, table, summary = best
        metric = fit[name].metric
        self.log(f"train: {name} is taken, by {metric} of {len(table.user):,} validation users")
        selection = ModelSelection(metric=metric, users=len(table.user), taken=name, models=found)
        return self._take(name, summary, selection)

    def _folder(self, name: str) -> Folder:
        return self.folder.folder.child(CANDIDATES).child(name)

    def _measure(self, settings: Settings, folder: Folder) -> PerUserMetrics:
        """The metrics of each validation user under the best epoch of a run."""
        torch.set_num_threads(1)  # so that sums are added in one order everywhere
        fit = self.prepared.fit("train")
        objective = build_objective(settings, *fit.rating_range)
        rows = WorkerRows(settings, self.prepared, Workers())
        measure, model = rows.per_user(objective), build_model(settings, len(rows.users), fit.items)
        best = RunFolder(folder.path).best()
        model.load_state_dict(rows.users.own_rows(best.weights, user_weights(model)))
        table = None if measure is None else measure(model)
        if table is None:
            raise ValueError("there are no validation users: see _checked")
        return table

    def _compare(
        self,
        name: str,
        text: str,
        table: PerUserMetrics,
        best: tuple[str, PerUserMetrics, RunSummary] | None,
    ) -> tuple[ComparedModel, bool]:
        """Say what a candidate gained over the best before it, and whether that is sure."""
        run = RunFolder(self._folder(name).path)
        metric = run.metadata().settings.metric
        value = summarise(table, [metric])[metric]
        words = f"train: {name}: {metric} {value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
        seconds = round(sum(float(entry["seconds"]) for entry in run.history()), 3)
        candidate = ComparedModel(name=name, settings=text, value=value, seconds=seconds)
        if best is None:
            self.log(f"{words} on validation")
            return candidate, True
        gain = compare(table, best[1], metric)
        self.log(f"{words} on validation; {gain.words(best[0])}")
        update = {"against": best[0], "gain": _interval(gain)}
        return candidate.model_copy(update=update), gain.sign > 0

    def _take(self, name: str, summary: RunSummary, selection: ModelSelection) -> RunSummary:
        """Make the run a copy of the one that was chosen."""
        out, chosen = self.folder.folder, RunFolder(self._folder(name).path)
        for entry in (MANIFEST, *(n for n in out.folders() if n != CANDIDATES), RUN, SELECTION):
            out.delete(entry)
        for file in chosen.folder.files():
            if file == EPOCHS or file.startswith(f"{CHECKPOINTS}/"):
                out.write_bytes(file, chosen.folder.read_bytes(file))
        out.write_json(RUN, chosen.metadata().stored(out.path))
        selected = _Selected(
            settings=self.recipe, fingerprint=self.prepared.fingerprint, selection=selection
        )
        out.write_json(SELECTION, selected.model_dump(mode="json"))
        summary = summary.model_copy(
            update={"run": out.path, "already_finished": False, "selection": selection}
        )
        self.folder.finish(summary)
        return summary


def _interval(comparison: Comparison) -> Interval:
    return Interval(value=comparison.difference, low=comparison.low, high=comparison.high)


# --------------------------------------------------------------------- what lies there already


def _selected(folder: Folder) -> _Selected | None:
    return (
        _Selected.model_validate(folder.read_json(SELECTION)) if folder.exists(SELECTION) else None
    )


def _same(before: _Selected, recipe: Settings, prepared: Prepared) -> bool:
    return before.settings == recipe and before.fingerprint == prepared.fingerprint


def clear_outdated(
    folder: Folder,
    settings: Settings,
    prepared: Prepared,
    workers: int | WorkerRange,
    address: str,
) -> None:
    """Delete what lies in the folder of a run but is of other settings or data.

    A candidate that matches stays; so nothing is trained again because another one has changed.

    Raises:
        RecrayError: The settings cannot be trained: then everything stays.
    """
    check = partial(_check, prepared=prepared, workers=workers, address=address)
    fewest = workers_at(workers, address).start
    settings = trainer.with_sizes_and_device(settings, prepared, fewest, address)
    if not settings.train.choose_from:
        if folder.exists(RUN) and not _holds(folder, settings, prepared):
            check(settings)
            folder.delete()
        return
    before = _selected(folder)
    if folder.exists(RUN) and before is not None and _same(before, settings, prepared):
        return
    fit, _ = _checked(settings, prepared, check)
    if folder.exists(RUN) and before is None:  # a run of one model
        folder.delete()
    folder.delete(MANIFEST)
    runs = folder.child(CANDIDATES)
    for name in runs.folders():
        if name not in fit or not _holds(runs.child(name), fit[name], prepared):
            runs.delete(name)


def _holds(folder: Folder, settings: Settings, prepared: Prepared) -> bool:
    """Whether a folder holds a run of these settings on these data."""
    if not folder.exists(RUN):
        return False
    run = RunFolder(folder.path).metadata()
    return run.settings == settings and run.fingerprint == prepared.fingerprint
