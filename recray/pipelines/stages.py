"""The stages in a row, each skipped when its output is there and matches: what `recray up` runs."""

import contextlib
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recray.config import Settings, build_settings
from recray.data import ingest
from recray.data.dataset import Prepared
from recray.data.source import Source
from recray.errors import CheckFailed, RecrayError
from recray.evaluation import distributed, evaluator
from recray.evaluation.protocol import FULL_RANKING, Protocol
from recray.evaluation.report import EvaluationReport
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.progress import Log
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session
from recray.schema import TIMINGS
from recray.serving import deployment, verify
from recray.serving.auth import load_keys, new_key, parse_key, require_keys
from recray.serving.guard import ServiceLimits
from recray.serving.options import ServiceOptions
from recray.serving.registry import Registry
from recray.storage import Folder
from recray.training import checks, trainer
from recray.training.callbacks import OnEpoch, Watch
from recray.training.checkpoint import EPOCHS, RunFolder
from recray.training.export import export, same_bundle
from recray.training.loggers import TensorBoard


def evaluate(
    bundle_path: str,
    changes: dict[str, Any] | None = None,
    prepared_path: str | None = None,
    workers: int = 1,
    address: str = LOCAL,
    protocol: Protocol = FULL_RANKING,
) -> EvaluationReport:
    """Measure a bundle on its hold-out with the given number of workers.

    Args:
        bundle_path: The bundle.
        changes: Evaluate settings that differ from the bundle's own.
        prepared_path: If given, must be the very data set the bundle was trained on.
        workers: Ray Data tasks; the digits do not depend on them.
        address: Ray cluster.
        protocol: What is measured, and beside what.

    Raises:
        RecrayError: The prepared data set is another one, or has changed since; the file of
            candidates cannot be used.
    """
    bundle = Bundle.open(bundle_path)
    protocol = protocol.resolved(bundle)
    if prepared_path is not None:
        prepared = Prepared.open(prepared_path, verify=True)
        if prepared.manifest["fingerprints"] != bundle.config["fingerprints"]:
            raise RecrayError(
                f"{prepared.folder} ({prepared.manifest['dataset']}) is not what {bundle_path} was "
                f"trained on ({bundle.config['dataset']}), or it has changed since"
            )
    settings = bundle.settings.changed(evaluate=changes or {}).evaluate
    if workers == 1 and address == LOCAL:  # no need to start Ray: the digits are the same
        return evaluator.evaluate(bundle, settings, protocol)
    return distributed.evaluate(bundle, settings, workers, address, protocol)


def reproduce(run_path: str, address: str = LOCAL) -> dict[str, Any]:
    """Train a run again, elsewhere, and compare every epoch's digits and the best weights.

    Args:
        run_path: A finished run.
        address: Ray cluster.

    Returns:
        {"run", "agrees", "epochs", "differences": [...]}

    Raises:
        RecrayError: There is no finished run, or its data set is gone or has changed.
    """
    run = RunFolder(run_path)
    facts = run.facts()
    if not run.finished:
        raise RecrayError(f"{run_path} is not finished; continue it with `recray train --resume`")
    if facts.get("changes"):
        words = ", ".join(f"{c['workers']} from epoch {c['epoch'] + 1}" for c in facts["changes"])
        raise RecrayError(
            f"{run_path} was continued with another number of workers ({words}); "
            "its digits cannot be had again"
        )
    prepared = Prepared.open(facts["prepared"], verify=True)
    if prepared.fingerprint != facts["fingerprint"]:
        raise RecrayError(f"{prepared.folder} has changed since {run_path} was trained")
    with tempfile.TemporaryDirectory(prefix="recray-reproduce-") as folder:
        again = RunFolder(f"{folder}/run")
        settings = build_settings(facts["settings"])
        trainer.run(
            settings, prepared.folder.path, again.folder.path, facts["workers"], False, address
        )
        differences = _differences(run, again)
    return {
        "run": run.folder.path,
        "agrees": not differences,
        "epochs": run.progress().epoch,
        "differences": differences[:20],
    }


def _differences(before: RunFolder, after: RunFolder) -> list[str]:
    """What two runs do not have in common, digit by digit."""
    histories = [folder.folder.read_json(EPOCHS) for folder in (before, after)]
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


@dataclass
class Stages:
    """The folders of `recray up` and what each stage took.

    Args:
        out: Folder that holds prepared, run and bundle.
        settings: The resolved settings.
        workers: Training processes.
        address: Ray cluster.
        log: Receives what happens, one line at a time.
    """

    out: Folder
    settings: Settings
    workers: int
    address: str
    log: Log
    on_epoch: OnEpoch | None = None

    def __post_init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Keep how long the block took, as that of a stage."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - begin, 3)

    def prepare(self, given: Source) -> Prepared:
        """The prepared data set of the source."""
        with self.timed("prepare"):
            folder = self.out.child("prepared")
            if folder.published():
                there = Prepared.open(folder.path)
                if ingest.same_settings(there, given, self.settings):
                    self.log(f"prepare: {folder} is there and matches")
                    return there
            self.log(f"prepare: {given.name} into {folder}")
            return ingest.prepare(given, folder.path, self.settings, self.address, replace=True)

    def train(self, prepared: Prepared) -> str:
        """The finished run on the data set."""
        return self._train(prepared, self.settings, "run")

    def refit(self, prepared: Prepared, epochs: int) -> str:
        """The finished run of so many epochs on training and validation rows together."""
        settings = self.settings.changed(
            train={"fit_on": "train+valid", "epochs": epochs, "patience": None}
        )
        return self._train(prepared, settings, "refit")

    def _train(self, prepared: Prepared, settings: Settings, name: str) -> str:
        with self.timed("train"):
            folder = self.out.child(name)
            wanted = checks.for_data(settings, prepared)
            if folder.exists("run.json"):
                facts = RunFolder(folder.path).facts()
                same = facts["settings"] == wanted.plain()
                if not same or facts["fingerprint"] != prepared.fingerprint:
                    checks.check(wanted, prepared, self.workers, self.address)
                    folder.delete()
            words = "is there and matches" if folder.published() else f"{settings.preset}"
            self.log(f"train: {folder} {words}")
            trainer.run(
                wanted,
                prepared.folder.path,
                folder.path,
                self.workers,
                True,
                self.address,
                Watch(self.log, self.on_epoch, (TensorBoard,) if self.on_epoch else ()),
            )
            return folder.path

    def export(self, run: str, prepared: Prepared) -> Bundle:
        """The measured bundle of the run."""
        with self.timed("evaluate"):
            folder = self.out.child("bundle")
            if same_bundle(folder, run, prepared):
                self.log(f"evaluate: {folder} is there and matches")
                return Bundle.open(folder.path)
            self.log("evaluate: on the test split")
            return export(run, folder.path, replace=True)


def release(
    given: Source,
    out: str,
    settings: Settings,
    registry: str | None = None,
    force: bool = False,
    workers: int = 1,
    address: str = LOCAL,
    log: Log = print,
    on_epoch: OnEpoch | None = None,
) -> dict[str, Any]:
    """Prepare, train, evaluate, and make the bundle current in a registry if it is not worse.

    Args:
        given: The ratings: a source, or a source with what has come in since.
        out: Folder of all outputs; a job that is run again goes on with what it finds there.
        settings: The resolved settings.
        registry: Folder of the versions; by default the one in `out`.
        force: Promote it even if it is worse.
        workers: Training processes.
        address: Ray cluster.
        log: Receives what happens, one line at a time.
        on_epoch: Told each epoch's metrics.

    Returns:
        {"bundle", "registry", "version", "before", "promoted", "verdict", "evaluation",
        "seconds": {"prepare", "train", "evaluate", "promote"}}

    Raises:
        RecrayError: What the user can fix, of any stage.
    """
    if address == LOCAL:
        require_local(workers)
    stages = Stages(Folder(out), settings, workers, address, log, on_epoch)
    with session(address):
        wait_for_capacity(workers)
        prepared = stages.prepare(given)
        bundle = stages.export(stages.train(prepared), prepared)
    versions = Registry(registry or stages.out.child("registry").path)
    with stages.timed("promote"):
        version = versions.add(bundle.folder.path)
        try:
            gate = versions.promote(version, force).model_dump() | {"promoted": True}
        except CheckFailed as error:
            gate = {"version": version, "promoted": False, "verdict": str(error)}
        log(f"promote: {gate['verdict']}")
    return {
        "bundle": bundle.folder.path,
        "registry": versions.folder.path,
        **gate,
        "evaluation": bundle.metrics,
        "seconds": stages.seconds,
    }


@contextlib.contextmanager
def up(
    given: Source,
    out: str,
    settings: Settings,
    workers: int = 1,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str = LOCAL,
    log: Log = print,
    on_epoch: OnEpoch | None = None,
) -> Iterator[dict[str, Any]]:
    """Run every stage, serve, check the service against the bundle, and serve while the block runs.

    Yields:
        {"prepared", "bundle", "url", "verified", "evaluation", "seconds": {"prepare", "train",
        "evaluate", "serve"}}

    Raises:
        RecrayError: What the user can fix, of any stage.
    """
    if address == LOCAL:
        require_local(workers)
        deployment.refuse_taken_port(host, port)
    # Before the work, where the user sees it; a key of our own checks the service at the end.
    keys = load_keys(None)
    require_keys(host, keys)
    own, line = new_key("recray-up")
    if keys:
        keys = (*keys, parse_key(line, "recray up"))
    stages = Stages(Folder(out), settings, workers, address, log, on_epoch)
    with session(address):
        wait_for_capacity(workers)
        prepared = stages.prepare(given)
        run = stages.train(prepared)
        bundle = stages.export(run, prepared)
        begin = time.perf_counter()
        log(f"serve: http://{host}:{port}")
        # Named by the data set: the folder may be used for another one later.
        ratings = stages.out.child("ratings").child(bundle.config["dataset"])
        guarded = deployment.serving(
            bundle.folder.path,
            host,
            port,
            address=address,
            limits=ServiceLimits(keys=keys),
            options=ServiceOptions(ratings_log=ratings.path),
        )
        with guarded as url:
            checked = verify.verify(url, Recommender(bundle), key=own)
            stages.seconds["serve"] = round(time.perf_counter() - begin, 3)
            yield {
                "prepared": prepared.folder.path,
                "bundle": bundle.folder.path,
                "url": url,
                "verified": checked.verified,
                "verification": checked.model_dump(),
                "evaluation": bundle.metrics,
                "seconds": stages.seconds,
                "example_user": bundle.user_ids.raw[:1].tolist()[0],
            }
