"""The stages in a row, each skipped when its output is there and matches: what `recray up` runs."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recray.config import Settings
from recray.data import ingest
from recray.data.dataset import Prepared
from recray.data.ids import RawId
from recray.data.source import Source
from recray.errors import CheckFailed, RecrayError
from recray.evaluation import evaluator
from recray.evaluation.protocol import FULL_RANKING, Protocol
from recray.evaluation.report import EvaluationReport, Measured, parse_report
from recray.inference.bundle import Bundle
from recray.inference.recommender import Recommender
from recray.progress import Log
from recray.runtime.nodes import wait_for_capacity
from recray.runtime.session import LOCAL, require_local, session
from recray.serving import deployment, verify
from recray.serving.auth import load_keys, new_key, parse_key, require_keys
from recray.serving.options import ServiceLimits, ServiceOptions
from recray.serving.registry import Registry
from recray.serving.verify import Verification
from recray.storage import Folder
from recray.training import trainer
from recray.training.callbacks import Callbacks, OnEpoch, TensorBoard
from recray.training.checkpoint import RunFolder


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
    return evaluator.evaluate_on_ray(bundle, settings, workers, address, protocol)


@dataclass
class Stages:
    """The stages from a source to a bundle, in one folder; each is skipped where it is done.

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
        """Note how many seconds the block takes, under the name of its stage."""
        begin = time.perf_counter()
        yield
        self.seconds[stage] = round(time.perf_counter() - begin, 3)

    def prepare(self, source: Source) -> Prepared:
        """Prepare the source, unless the folder holds just that."""
        with self.timed("prepare"):
            folder = self.out.child("prepared")
            if folder.published():
                before = Prepared.open(folder.path)
                if ingest.same_settings(before, source, self.settings):
                    self.log(f"prepare: {folder} is there and matches")
                    return before
            self.log(f"prepare: {source.name} into {folder}")
            return ingest.prepare(source, folder.path, self.settings, self.address, replace=True)

    def train(self, prepared: Prepared) -> str:
        """Train on the data set, and return the folder of the run."""
        return self._train(prepared, self.settings, "run")

    def refit(self, prepared: Prepared, epochs: int) -> str:
        """Train on training and validation rows together, for a fixed number of epochs."""
        settings = self.settings.changed(
            train={"fit_on": "train+valid", "epochs": epochs, "patience": None}
        )
        return self._train(prepared, settings, "refit")

    def _train(self, prepared: Prepared, settings: Settings, name: str) -> str:
        with self.timed("train"):
            folder = self.out.child(name)
            resolved = trainer.adapt_to_dataset(settings, prepared)
            if folder.exists("run.json"):
                before = RunFolder(folder.path).metadata()
                same = before.settings == resolved
                if not same or before.fingerprint != prepared.fingerprint:
                    trainer.check_trainable(resolved, prepared, self.workers, self.address)
                    folder.delete()
            words = "is there and matches" if folder.published() else f"{settings.preset}"
            self.log(f"train: {folder} {words}")
            trainer.run(
                resolved,
                prepared.folder.path,
                folder.path,
                self.workers,
                True,
                self.address,
                Callbacks(self.log, self.on_epoch, (TensorBoard,) if self.on_epoch else ()),
            )
            return folder.path

    def export(self, run: str, prepared: Prepared) -> Bundle:
        """Export the run and measure it, unless the folder holds just that."""
        with self.timed("evaluate"):
            folder = self.out.child("bundle")
            if trainer.same_bundle(folder, run, prepared):
                self.log(f"evaluate: {folder} is there and matches")
                return Bundle.open(folder.path)
            self.log("evaluate: on the test split")
            return trainer.export(run, folder.path, replace=True)


class Release(Measured):
    """A bundle that was trained, measured, and promoted unless it was worse than the live one.

    `before` is the version that was live; None where nothing was promoted, or nothing was live.
    """

    bundle: str
    registry: str
    version: str
    before: str | None = None
    promoted: bool
    verdict: str
    seconds: dict[str, float]


class Running(Measured):
    """A bundle that answers at a URL, and the comparison of its answers with offline ones."""

    prepared: str
    bundle: str
    url: str
    verified: bool
    verification: Verification
    seconds: dict[str, float]
    example_user: RawId


def release(
    source: Source,
    out: str,
    settings: Settings,
    registry: str | None = None,
    force: bool = False,
    workers: int = 1,
    address: str = LOCAL,
    log: Log = print,
    on_epoch: OnEpoch | None = None,
) -> Release:
    """Prepare, train, evaluate, and make the bundle current in a registry if it is not worse.

    Args:
        source: The ratings, with or without those of a ratings log.
        out: Folder of all outputs; a job that is run again goes on with what it finds there.
        settings: The resolved settings.
        registry: Folder of the versions; by default the one in `out`.
        force: Promote it even if it is worse.
        workers: Training processes.
        address: Ray cluster.
        log: Receives what happens, one line at a time.
        on_epoch: Receives each epoch's metrics.

    Raises:
        RecrayError: What the user can fix, of any stage.
    """
    if address == LOCAL:
        require_local(workers)
    stages = Stages(Folder(out), settings, workers, address, log, on_epoch)
    with session(address):
        wait_for_capacity(workers)
        prepared = stages.prepare(source)
        bundle = stages.export(stages.train(prepared), prepared)
    versions = Registry(registry or stages.out.child("registry").path)
    with stages.timed("promote"):
        version = versions.add(bundle.folder.path)
        before: str | None = None
        try:
            promotion = versions.promote(version, force)
            before, verdict, promoted = promotion.before, promotion.verdict, True
        except CheckFailed as error:
            verdict, promoted = str(error), False
        log(f"promote: {verdict}")
    return Release(
        bundle=bundle.folder.path,
        registry=versions.folder.path,
        version=version,
        promoted=promoted,
        verdict=verdict,
        evaluation=parse_report(bundle.metrics),
        seconds=stages.seconds,
        before=before,
    )


@contextlib.contextmanager
def up(
    source: Source,
    out: str,
    settings: Settings,
    workers: int = 1,
    host: str = "127.0.0.1",
    port: int = 8000,
    address: str = LOCAL,
    log: Log = print,
    on_epoch: OnEpoch | None = None,
) -> Iterator[Running]:
    """Run every stage, serve, check the service against the bundle, and serve while the block runs.

    Raises:
        RecrayError: What the user can fix, of any stage.
    """
    if address == LOCAL:
        require_local(workers)
        deployment.refuse_taken_port(host, port)
    # Keys are checked before the long work; a key of our own opens the service to the check.
    keys = load_keys(None)
    require_keys(host, keys)
    own, line = new_key("recray-up")
    if keys:
        keys = (*keys, parse_key(line, "recray up"))
    stages = Stages(Folder(out), settings, workers, address, log, on_epoch)
    with session(address):
        wait_for_capacity(workers)
        prepared = stages.prepare(source)
        run = stages.train(prepared)
        bundle = stages.export(run, prepared)
        begin = time.perf_counter()
        log(f"serve: http://{host}:{port}")
        # The log is named by the data set, since the folder may be used for another one later.
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
            yield Running(
                prepared=prepared.folder.path,
                bundle=bundle.folder.path,
                url=url,
                verified=checked.verified,
                verification=checked,
                evaluation=parse_report(bundle.metrics),
                seconds=stages.seconds,
                example_user=bundle.user_ids.raw[:1].tolist()[0],
            )
