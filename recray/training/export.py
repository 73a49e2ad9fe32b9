"""`recray export`: the bundle of a finished run, with its final fit.

A run chooses the settings and the epoch on validation rows. Then it is fitted again, with as many
epochs: on all rows but those of test, which is measured, and on all rows, which is served. Both
fits are runs of their own inside the folder of the run, so they resume and can be reproduced.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal

from pydantic import JsonValue

from recray.config import Settings, build_settings, translated
from recray.data.dataset import Prepared
from recray.data.ids import FitOn
from recray.errors import RecrayError
from recray.evaluation.evaluator import evaluate
from recray.evaluation.fold_in import choose_fold_in
from recray.inference.bundle import KIND, TWIN, Bundle
from recray.inference.bundle_writer import TrainedModel, write_bundle
from recray.inference.index_build import LACKING, wants_index
from recray.progress import Log
from recray.runtime.session import LOCAL
from recray.storage import Folder, check_store
from recray.training import trainer
from recray.training.callbacks import Callbacks
from recray.training.checkpoint import RunFolder

Fits = Literal["none", "measured", "final"]
"""How often a run is fitted again: not at all, for its measurement, or for its release too."""
FOLDERS: dict[FitOn, str] = {"train+valid": "measured", "all": "final"}
"""Folders of these fits inside the folder of the run."""


def export(
    run_path: str,
    out: str,
    replace_old: bool = False,
    fits: Fits = "final",
    address: str = LOCAL,
    log: Log | None = None,
) -> Bundle:
    """Write the best epoch of a run as a bundle, measured on the test split.

    Args:
        run_path: A finished run.
        out: Folder of the bundle.
        replace_old: Whether a bundle under that name may be replaced.
        fits: Which fits follow on the run; without any, what is measured and served is the run.
        address: Ray cluster.
        log: Receives what happens, one line at a time.

    Raises:
        RecrayError: There is no run, the prepared data have changed since, or the folder is taken.
    """
    check_store(run_path, to_write=False)
    run, prepared = RunFolder(run_path), prepared_of(run_path)
    recipe, workers = run.metadata().settings, run.metadata().workers
    chosen = choose_fold_in(prepared, run.trained_model(), recipe)
    measured, final = _planned(recipe, chosen.best_epoch, prepared, fits)

    def fitted(settings: Settings) -> TrainedModel:
        if settings == recipe:
            return chosen
        path = run.folder.child(FOLDERS[settings.train.fit_on]).path
        fit_again(settings, prepared, path, workers, address, log)
        return replace(chosen, weights=RunFolder(path).best().weights, run=(chosen, recipe))

    twin, created = fitted(measured), datetime.now(UTC).isoformat(timespec="seconds")
    more = None if final is None else (fitted(final), final)
    made = write_bundle(out, prepared, twin, measured, created, _measure, replace_old, more)
    if log is not None and wants_index(made.model) and not made.has_index:
        log(f"export: {made.model.items:,} items without an index; {LACKING}")
    return made


def _measure(bundle: Bundle) -> Mapping[str, JsonValue]:
    """Measure what has not learned from the test split; nothing of a bundle that has."""
    measurable = len(bundle.holdout) and not bundle.measured.is_final
    return evaluate(bundle).plain() if measurable else {}


def prepared_of(run_path: str) -> Prepared:
    """Open the data set of a run.

    Raises:
        RecrayError: There is no run, or its data set has changed since.
    """
    metadata = RunFolder(run_path).metadata()
    if not Folder(metadata.prepared).exists():
        raise RecrayError(
            f"the data set of {run_path} is not at {metadata.prepared}: move it there, or prepare "
            "the same ratings with the same settings there again"
        )
    prepared = Prepared.open(metadata.prepared, verify=True)
    if prepared.fingerprint_of(metadata.settings.train.fit_on) != metadata.fingerprint:
        raise RecrayError(
            f"{prepared.folder} has changed since {run_path} was trained; train again"
        )
    return prepared


def _planned(
    chosen: Settings, best_epoch: int, prepared: Prepared, fits: Fits
) -> tuple[Settings, Settings | None]:
    """Settings of what is measured, and of the final fit; None where that learns nothing more."""
    rows = {name: split["rows"] for name, split in prepared.manifest["splits"].items()}
    train = {"epochs": best_epoch, "patience": None}
    measured, final = chosen, None
    # After a cut in time the validation rows may be later than a test row of somebody else.
    ends_before = chosen.split.cut is None
    if fits != "none" and chosen.train.fit_on == "train" and rows["valid"] and ends_before:
        measured = chosen.changed(train={**train, "fit_on": "train+valid"})
    if fits == "final" and chosen.train.fit_on != "all" and rows["test"]:
        final = chosen.changed(train={**train, "fit_on": "all"})
    return measured, final


def fit_again(
    settings: Settings,
    prepared: Prepared,
    path: str,
    workers: int,
    address: str,
    log: Log | None = None,
) -> None:
    """Fit with chosen settings in a folder of its own, unless it holds just that.

    The files of the data set have been compared with their sha256 when `prepared` was opened.
    """
    folder = Folder(path)
    if folder.exists("run.json"):
        before = RunFolder(path).metadata()
        fingerprint = prepared.fingerprint_of(settings.train.fit_on)
        if before.settings != settings or before.fingerprint != fingerprint:
            folder.delete()
    epochs = settings.train.epochs
    if log is not None and not folder.published():
        many = f"{epochs} epoch{'s' * (epochs > 1)}"
        log(f"fit: on {settings.train.fit_on}, {many} as the run's best")
    callbacks = Callbacks(log) if log is not None else None
    trainer.run(
        settings, prepared.folder.path, path, workers, True, address, callbacks, verify=False
    )


def same_bundle(folder: Folder, run_path: str, prepared: Prepared, fits: Fits) -> bool:
    """Whether the folder holds the bundle of that run on that data set already."""
    if not folder.published() or folder.manifest().kind != KIND:
        return False
    run = RunFolder(run_path)
    chosen, epoch = run.metadata().settings, run.train_state().best_epoch
    measured, final = _planned(chosen, epoch, prepared, fits)
    wanted = {"config.json": measured}
    if final is not None:
        wanted = {"config.json": final, f"{TWIN}/config.json": measured}
    for name, settings in wanted.items():
        if not folder.exists(name):
            return False
        config = folder.read_json(name)
        same = build_settings(translated(config["settings"])) == settings
        if not same or config["fingerprints"] != prepared.manifest["fingerprints"]:
            return False
    return folder.exists(f"{TWIN}/config.json") == (final is not None)
