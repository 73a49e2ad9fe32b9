"""Ray as its own documentation shows it: what recray's ways are compared with."""

import tempfile
from collections.abc import Callable
from typing import Any

import ray.data
from ray.data.preprocessors import OrdinalEncoder


def read_encode(path: str) -> int:
    """Read a csv or parquet file with Ray Data and encode its ids; returns the rows."""
    read = ray.data.read_csv if path.endswith(".csv") else ray.data.read_parquet
    encoder = OrdinalEncoder(columns=["userId", "movieId"])
    rows: int = encoder.fit_transform(read(path)).materialize().count()
    return rows


def tune_defaults(trial: Callable[[int], float], trials: int) -> None:
    """Run the trials by a Tuner as it comes: a grid over a function that reports once.

    Raises:
        RuntimeError: A trial failed.
    """
    from ray import tune

    def train(config: dict[str, int]) -> None:
        tune.report({"value": trial(config["trial"])})

    with tempfile.TemporaryDirectory(prefix="recray-tuner-") as folder:
        tuner = tune.Tuner(
            tune.with_resources(train, {"CPU": 1}),
            param_space={"trial": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(metric="value", mode="max", max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        _refuse_errors(tuner.fit())


def tune_train(trial: Callable[[int], float], trials: int) -> None:
    """Run the trials by a Tuner, each of them a TorchTrainer with one worker.

    Raises:
        RuntimeError: A trial failed.
    """
    import ray.train
    import ray.train.torch
    from ray import tune
    from ray.tune.integration.ray_train import TuneReportCallback

    def work(config: dict[str, int]) -> None:
        ray.train.report({"value": trial(config["trial"])})

    with tempfile.TemporaryDirectory(prefix="recray-tuner-") as folder:

        def drive(config: dict[str, int]) -> None:
            ray.train.torch.TorchTrainer(
                work,
                train_loop_config=config,
                scaling_config=ray.train.ScalingConfig(num_workers=1),
                run_config=ray.train.RunConfig(
                    name=f"trial-{tune.get_context().get_trial_id()}",
                    storage_path=folder,
                    callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # typed as V1's
                ),
            ).fit()

        tuner = tune.Tuner(
            tune.with_resources(drive, {"CPU": 0.01}),
            param_space={"trial": tune.grid_search(list(range(trials)))},
            tune_config=tune.TuneConfig(metric="value", mode="max", max_concurrent_trials=1),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        _refuse_errors(tuner.fit())


def _refuse_errors(grid: Any) -> None:
    if grid.errors:
        raise RuntimeError(f"the comparison failed: {grid.errors[0]}")
