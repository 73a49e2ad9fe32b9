"""Train a finished run again, and compare it with the first time digit by digit."""

import tempfile

from pydantic import BaseModel

from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.runtime.session import LOCAL
from recray.schema import TIMINGS
from recray.training import trainer
from recray.training.checkpoint import RunFolder

MAX_DIFFERENCES = 20
"""Differences that a result names; the rest is left out."""


class Reproduction(BaseModel):
    """Whether a run gave the same digits again, and the first differences."""

    run: str
    agrees: bool
    epochs: int
    differences: list[str]


def reproduce(run_path: str, address: str = LOCAL) -> Reproduction:
    """Train a run again, elsewhere, and compare every epoch's digits and the best weights.

    Args:
        run_path: A finished run.
        address: Ray cluster.

    Raises:
        RecrayError: There is no finished run, or its data set is gone or has changed.
    """
    run = RunFolder(run_path)
    metadata = run.metadata()
    if not run.finished:
        raise RecrayError(f"{run_path} is not finished; continue it with `recray train --resume`")
    if metadata.changes:
        words = ", ".join(f"{c.workers} from epoch {c.epoch + 1}" for c in metadata.changes)
        raise RecrayError(
            f"{run_path} was continued with another number of workers ({words}); "
            "its digits cannot be had again"
        )
    prepared = Prepared.open(metadata.prepared, verify=True)
    if prepared.fingerprint != metadata.fingerprint:
        raise RecrayError(f"{prepared.folder} has changed since {run_path} was trained")
    with tempfile.TemporaryDirectory(prefix="recray-reproduce-") as folder:
        again = RunFolder(f"{folder}/run")
        trainer.run(
            metadata.settings,
            metadata.prepared,
            again.folder.path,
            metadata.workers,
            address=address,
        )
        differences = _differences(run, again)
    return Reproduction(
        run=run.folder.path,
        agrees=not differences,
        epochs=run.train_state().epoch,
        differences=differences[:MAX_DIFFERENCES],
    )


def _differences(before: RunFolder, after: RunFolder) -> list[str]:
    """Name every digit that two runs do not have in common."""
    histories = [folder.history() for folder in (before, after)]
    if len(histories[0]) != len(histories[1]):
        return [f"{len(histories[0])} epochs before, {len(histories[1])} now"]
    found = [
        f"epoch {old['epoch']}: {name} {old[name]!r} before, {new.get(name)!r} now"
        for old, new in zip(*histories, strict=True)
        for name in old
        if name not in TIMINGS and old[name] != new.get(name)
    ]
    old, new = before.best().weights, after.best().weights
    return found + [f"weights of {name} differ" for name in old if not old[name].equal(new[name])]
