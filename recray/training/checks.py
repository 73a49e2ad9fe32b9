"""What is settled before a training starts: settings that the data decide, and what is refused."""

from recray.config import Settings, build_settings
from recray.data.dataset import Prepared, refuse_equal_ratings
from recray.data.item_features import feature_names
from recray.data.negatives import NegativeSampler
from recray.errors import RecrayError
from recray.evaluation.per_user import check_metric
from recray.models import build_model
from recray.models.objectives import SampledLoss, UnobservedClass, build_objective
from recray.runtime.session import LOCAL, require_local
from recray.training.optimizer_choice import EXACT, device_of, pairs_of
from recray.training.pretrain import check_pretraining, start_from
from recray.training.streaming import check_streaming
from recray.training.warm_start import read_starts
from recray.training.worker_data import rows_of_workers


def for_data(settings: Settings, prepared: Prepared) -> Settings:
    """The settings with what the data set decides: its own groups, and the rating levels.

    Raises:
        RecrayError: The model needs rating levels, and the data have too many.
    """
    values = settings.plain() | prepared.manifest["settings"]
    if settings.model.kind == "softmax-dnn" and settings.model.levels is None:
        levels = [level for level, _ in prepared.manifest["ratings"]["levels"]]
        if not levels:
            raise RecrayError(
                f"{prepared.folder} has more than 100 different ratings: "
                "model.kind=softmax-dnn needs model.levels"
            )
        values["model"]["levels"] = levels
    if settings.model.kind == "hybrid" and settings.model.item_features is None:
        values["model"]["item_features"] = feature_names(prepared.item_table[: prepared.items])
    return build_settings(values)


def check(settings: Settings, prepared: Prepared, workers: int, address: str) -> None:
    """Refuse what cannot be trained, before anything starts or is written.

    Raises:
        RecrayError: Too many workers, or settings that do not fit each other or the data.
    """
    if workers > prepared.buckets:
        raise RecrayError(
            f"--workers {workers}: the data set has {prepared.buckets} parts, "
            "one is needed per worker"
        )
    if address == LOCAL:
        require_local(workers)
    if not settings.ranks:
        refuse_equal_ratings(prepared)
    if max(settings.evaluate.k) > prepared.items:
        raise RecrayError(
            f"evaluate.k={max(settings.evaluate.k)} is larger than the catalogue "
            f"of {prepared.items} items"
        )
    low, high = prepared.rating_range
    bar = settings.evaluate.relevant_from
    if bar is not None and bar > high:
        raise RecrayError(
            f"evaluate.relevant_from={bar:g}: no rating is above {high:g}, "
            "nothing would be relevant"
        )
    if address == LOCAL:
        device_of(settings.train)
    if settings.train.optimizer not in EXACT:
        _refuse_large_batch(settings, prepared)
    objective = build_objective(settings, low, high)
    objective.check(build_model(settings, 1, 1))
    if streams(settings, prepared, workers):
        check_streaming(settings, objective, max(prepared.rows_of_parts("train")), workers)
    trained = read_starts(settings.train.init_from, prepared)
    if trained:
        model = build_model(settings, prepared.users, prepared.items)
        start_from(model, trained, settings.train.neumf_alpha)
    if settings.train.als_pretrain_epochs:
        check_pretraining(build_model(settings, 1, 1))
    negatives = settings.objective.negatives
    if isinstance(objective, SampledLoss | UnobservedClass) and negatives != "all":
        NegativeSampler(prepared.items, negatives)  # refuses more than the catalogue can give
    check_metric(settings.metric, settings.evaluate, rates=not settings.ranks)


def streams(settings: Settings, prepared: Prepared, workers: int) -> bool:
    """Whether some worker has more ratings than it may hold in memory."""
    limit = settings.train.max_rows_in_memory
    return limit is not None and max(rows_of_workers(prepared, workers)) > limit


def _refuse_large_batch(settings: Settings, prepared: Prepared) -> None:
    batch, of = settings.train.batch_size, "ratings"
    most = prepared.manifest["splits"]["train"]["rows"]
    if pairs_of(settings) is None:
        most, of = prepared.users, "users"
    if batch != "all" and batch > most:
        raise RecrayError(
            f"train.batch_size={batch}: the data set has {most} {of} to train on; "
            "give no more, or all for one step an epoch"
        )
