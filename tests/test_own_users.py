"""The users of a worker: local ids, and first rows that do not depend on who has a part."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.utils._python_dispatch import TorchDispatchMode

from recray.config import load_settings
from recray.config.settings import RATING_OBJECTIVES
from recray.data.dataset import Ratings
from recray.models.base import build_model
from recray.models.objectives import build_objective
from recray.schema import TIMINGS
from recray.training.loop import build_run
from recray.training.own_users import OwnUsers, first_model, moments_of, user_weights
from recray.training.shard import Workers
from recray.training.worker_rows import WorkerRows
from recray.tuning.trial import NoCheckpoints, TrialDataset

PARTS = [[7, 2], [], [0, 5, 9], [4]]
"""Dense ids of each part, in no order over parts; 1, 3, 6 and 8 are in none."""
KINDS = ("dot-mse", "neumf", "softmax-dnn", "gmf")


def users_of(parts: list[int], total: int = 10) -> OwnUsers:
    return OwnUsers.of(parts, [np.array(sorted(PARTS[part]), np.int64) for part in parts], total)


def test_local_ids_are_places_in_the_list_of_the_parts():
    own = users_of([0, 1, 2])
    assert (own.ids.tolist(), own.begins, len(own)) == ([2, 7, 0, 5, 9], (0, 2, 2, 5), 5)
    assert own.local(torch.tensor([9, 2, 2, 0])).tolist() == [4, 0, 0, 2]
    assert own.places(np.array([4, 7, 10])).tolist() == [-1, 1, -1]
    with pytest.raises(ValueError, match="another worker"):
        own.local(torch.tensor([4]))
    assert users_of([1]).places(np.array([0, 1])).tolist() == [-1, -1]


@pytest.mark.parametrize("preset", KINDS)
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_first_rows_are_those_of_one_worker(preset, workers):
    sizes = {"dim": 3, "mlp_dim": 2, "layers": [4, 3], "levels": [1, 5]}
    build = partial(build_model, load_settings(preset).changed(model=sizes))
    one = users_of([0, 1, 2, 3])
    whole = first_model(build, one, 6, 5).state_dict()
    tables = user_weights(build(1, 1))
    for rank in range(workers):
        own = users_of(list(range(rank, 4, workers)))
        mine = first_model(build, own, 6, 5).state_dict()
        for name, value in mine.items():
            expected = whole[name][one.local(own.ids)] if name in tables else whole[name]
            assert torch.equal(value, expected), name
    assert tables
    rows = whole[tables[0]]
    assert len(rows.unique(dim=0)) == len(one), "every user begins elsewhere"


def test_moments_are_those_of_the_users_of_all_workers():
    build = partial(build_model, load_settings("dot-mse").changed(model={"dim": 3}))
    whole = first_model(build, users_of([0, 1, 2, 3]), 6, 5)
    parts = [first_model(build, users_of(own), 6, 5) for own in ([0, 1], [2, 3])]
    heard: list[list[torch.Tensor]] = []
    for model in parts:  # what each worker gives, first with its own mean and then with that of all
        given: list[torch.Tensor] = []
        moments_of(model, lambda value, given=given: given.append(value.clone()) or value)
        heard.append(given)
    counts, sums = ([part[n] for part in heard] for n in (0, 1))
    answers = [sum(counts), sum(sums)]
    squares = torch.zeros(3, dtype=torch.float64)
    for model in parts:
        replies = iter([*answers, None])

        def add(value: torch.Tensor, replies=replies) -> torch.Tensor:
            reply = next(replies)
            if reply is None:
                squares.add_(value)
            return value if reply is None else reply.clone()

        mean = moments_of(model, add).mean
    expected = whole.user_moments()
    assert torch.allclose(mean, expected.mean)
    assert torch.allclose(squares / len(users_of([0, 1, 2, 3])), expected.variance)


# ------------------------------------------------------------- whole runs on a data set in parts

EVERYONE, HELD_OUT, FILMS = 37, 6, 11
RUNS = {
    "ranking": ("ranking", ["train.epochs=3"]),
    "gradients": ("dot-mse", ["train.batch_size=all", "train.epochs=3", "train.optimizer=adam"]),
    "touched rows": (
        "dot-mse",
        ["train.batch_size=all", "train.epochs=3", "train.optimizer=adagrad"],
    ),
    "pretrained": (
        "neumf-ranking",
        [
            "train.batch_size=all",
            "train.epochs=2",
            "train.als_pretrain_epochs=2",
            "model.dropout=0",
        ],
    ),
    "next item": (
        "sequence",
        [
            "train.batch_size=all",
            "train.epochs=2",
            "train.optimizer=sgd",
            "model.dropout=0",
            "model.time=false",
        ],
    ),
}


def planted() -> TrialDataset:
    """Stars of likes by parity in five parts, one without users. The users with the highest dense
    ids are held out; dense ids are in no order over parts.
    """
    rng = np.random.default_rng(3)
    user, item = (ids.ravel() for ids in np.mgrid[: EVERYONE + HELD_OUT, :FILMS])
    stars = np.where((user + item) % 2 == 0, 5.0, 1.0).astype(np.float32)
    split = rng.choice(4, size=len(user), p=[0.5, 0.2, 0.2, 0.1])  # 2 is for nobody
    first = np.searchsorted(user, np.arange(EVERYONE))
    split[first] = 0  # every trained user has a rating to train on
    known, held = split == 0, user >= EVERYONE
    part = np.array([0, 1, 3, 4])[rng.integers(0, 4, EVERYONE + HELD_OUT)][user]
    columns = [c.astype(np.int32) for c in (user, item)]
    whole = Ratings(*columns, stars, np.arange(len(user), dtype=np.int64))
    masks = {"train": known & ~held, "fold_in": known & held, "valid": split == 1}
    splits = {
        name: [whole.where(mask & (part == number)) for number in range(5)]
        for name, mask in masks.items()
    }
    manifest = {
        "counts": {"users": EVERYONE, "items": FILMS, "unseen_users": 0, "unseen_items": 0},
        "buckets": 5,
        "splits": {name: {"rows": int(mask.sum())} for name, mask in masks.items()},
        "ratings": {"range": [1.0, 5.0]},
    }

    return TrialDataset(None, manifest, splits)


class Shapes(TorchDispatchMode):
    """Notes the lengths of the first axes of all tensors that are made."""

    def __init__(self) -> None:
        super().__init__()
        self.lengths: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor) and value.dim():
                self.lengths.add(value.shape[0])
        return made


def _run(rank: int, size: int, folder: str, recipe: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}-{size}", rank=rank, world_size=size)
    preset, changes = RUNS[recipe]
    small = {"dim": 4, "mlp_dim": 2, "layers": [4, 3]}
    settings = load_settings(preset, None, ["evaluate.k=3", "train.patience=null", *changes])
    settings = settings.sized(EVERYONE, FILMS).changed(model=small)
    if settings.objective.kind not in RATING_OBJECTIVES:
        settings = settings.changed(objective={"preference": "binary"})
    entries: list[dict] = []
    with Shapes() as shapes:
        run = build_run(settings, planted(), NoCheckpoints(), Workers(rank, size), entries.append)
        run.fit()
    if size == 2:
        assert EVERYONE not in shapes.lengths, "no tensor has a row for everybody"
        assert len(run.shard.users) in shapes.lengths
    tables = user_weights(run.model)
    weights = run.model.state_dict()
    found = {"ids": run.shard.users.ids, "entries": entries, "shared": weights}
    found["rows"] = {name: weights.pop(name) for name in tables}
    torch.save(found, f"{folder}-{size}-{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize("recipe", RUNS)
def test_runs_of_several_workers_are_those_of_one(tmp_path, recipe):
    """From files to metrics: first rows, first weights, epochs, validation, who is folded in."""
    folder, found = str(tmp_path / "run"), {}
    sizes = (2, 3) if recipe == "ranking" else (2,)  # of three workers one has no users
    for size in (1, *sizes):
        mp.start_processes(_run, (size, folder, recipe), nprocs=size, start_method="fork")
        found[size] = [torch.load(f"{folder}-{size}-{rank}") for rank in range(size)]
    (one,) = found[1]
    assert sorted(one["ids"].tolist()) == list(range(EVERYONE))
    names = [n for n in one["entries"][-1] if n not in TIMINGS]
    assert any("@3" in name for name in names)
    for size in sizes:
        for worker in found[size]:
            for mine, whole in zip(worker["entries"], one["entries"], strict=True):
                for name in names:
                    assert mine[name] == pytest.approx(whole[name], rel=1e-4), f"{name}, {size}"
            place = [one["ids"].tolist().index(user) for user in worker["ids"].tolist()]
            for name, rows in worker["rows"].items():
                assert torch.allclose(rows, one["rows"][name][place], atol=1e-4), name
            for name, value in worker["shared"].items():
                assert torch.allclose(value, one["shared"][name], atol=1e-4), name


def test_metrics_of_users_are_by_dense_id_however_the_data_are_divided():
    """Users in five parts, with local ids in another order than dense ones, or all in one part."""
    data = planted()
    whole = {name: [Ratings.concatenate(parts)] for name, parts in data.splits.items()}
    settings = load_settings("ranking", None, ["evaluate.k=3"]).sized(EVERYONE, FILMS)
    settings = settings.changed(model={"dim": 4}, objective={"preference": "binary"})
    torch.manual_seed(1)
    weights = build_model(settings, EVERYONE, FILMS).state_dict()
    tables = []
    for given in (data, TrialDataset(None, data.manifest | {"buckets": 1}, whole)):
        rows = WorkerRows(settings, given, Workers())
        model = build_model(settings, EVERYONE, FILMS)
        model.load_state_dict(rows.users.own_rows(weights, user_weights(model)))
        tables.append(rows.per_user(build_objective(settings, 1.0, 5.0))(model))
    parted, joined = tables
    everyone = np.unique(whole["valid"][0].user)
    assert parted.user.tolist() == joined.user.tolist() == everyone.tolist()
    assert everyone.max() >= EVERYONE, "some were held out"
    for name, values in joined.values.items():
        np.testing.assert_allclose(parted.values[name], values)
