"""The bundle of a finished run: `recray export`."""

from datetime import UTC, datetime

from recray.config import build_settings, translated
from recray.data.dataset import Prepared
from recray.errors import RecrayError
from recray.evaluation.evaluator import evaluate
from recray.evaluation.fold_in import choose_fold_in
from recray.inference.bundle import KIND, Bundle, write_bundle
from recray.storage import Folder
from recray.training.checkpoint import RunFolder


def export(run_path: str, out: str, replace: bool = False) -> Bundle:
    """Write the best checkpoint of a run as a bundle, measured on the test split.

    Raises:
        RecrayError: There is no run, the prepared data have changed since, or the folder is taken.
    """
    run = RunFolder(run_path)
    metadata = run.metadata()
    prepared = Prepared.open(metadata.prepared, verify=True)
    if prepared.fingerprint != metadata.fingerprint:
        raise RecrayError(
            f"{prepared.folder} has changed since {run_path} was trained; train again"
        )
    return write_bundle(
        out,
        prepared,
        choose_fold_in(prepared, run.trained_model(), metadata.settings),
        metadata.settings,
        datetime.now(UTC).isoformat(timespec="seconds"),
        lambda bundle: evaluate(bundle).plain() if len(bundle.holdout) else {},
        replace,
    )


def same_bundle(folder: Folder, run_path: str, prepared: Prepared) -> bool:
    """Whether the folder holds the bundle of that run on that data set already."""
    if not folder.published() or folder.manifest().kind != KIND:
        return False
    config = folder.read_json("config.json")
    settings = build_settings(translated(config["settings"]))
    same = settings == RunFolder(run_path).metadata().settings
    return same and config["fingerprints"] == prepared.manifest["fingerprints"]
