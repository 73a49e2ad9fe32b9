"""Slices against cases worked out by hand."""

import numpy as np
import pytest
import torch

from recray.config import EvaluateSettings
from recray.data.dataset import Ratings
from recray.evaluation import evaluator
from recray.evaluation.per_user import PerUserMetrics, compute_metrics, rank_block
from recray.evaluation.report import parse_report
from recray.evaluation.segments import add_columns, report
from recray.inference.history import History
from recray.inference.scorer import Scorer
from recray.models.factorization import Dot
from recray.reporting import terminal


def evaluate(bundle, *args, **kwargs):
    """The JSON of an evaluation."""
    return evaluator.evaluate(bundle, *args, **kwargs).plain()


ITEMS = 200
SETTINGS = EvaluateSettings(k=(2,))


def columns(user, item) -> Ratings:
    user, item = np.array(user, np.int32), np.array(item, np.int32)
    return Ratings(user, item, np.ones(len(user), np.float32), np.zeros(len(user), np.int64))


def planted() -> dict[str, PerUserMetrics]:
    """Everybody is shown items 0 and 1: users 0..4 know 0, 1, 19, 20 and 100 others."""
    known = [0, 1, 19, 20, 100]
    user = np.repeat(np.arange(5), known)
    item = np.concatenate([np.arange(ITEMS - n, ITEMS) for n in known])
    model = Dot(5, ITEMS, 1, "logit")
    with torch.no_grad():
        model.user_vectors.weight.fill_(1.0)
        model.item_vectors.weight[:, 0] = -torch.arange(ITEMS).float()
    scorer = Scorer(model, None, History.of(columns(user, item), 5, ITEMS))
    scorer.popularity = torch.full((ITEMS,), 4.0)
    scorer.popularity[0], scorer.popularity[1] = 50.0, 49.0
    scorer.popularity[2], scorer.popularity[3] = 5.0, 4.0
    # Held out: 0 for all; 1 for user 0; 2 and 3 for user 1; an unknown item for user 2.
    held_out = columns([0, 0, 1, 1, 1, 2, 2, 3, 4], [0, 1, 0, 2, 3, 0, ITEMS + 5, 0, 150])
    lists = rank_block(scorer, held_out, np.arange(5), SETTINGS)
    return {"model": add_columns(compute_metrics(scorer, lists, SETTINGS), lists, scorer, SETTINGS)}


def test_users_are_grouped_by_what_is_known_of_them():
    users = report(planted(), SETTINGS).users
    assert {name: group.users for name, group in users.items()} == {
        "0": 1,
        "1-19": 2,
        "20-49": 1,
        "100+": 1,
    }
    recall = {name: group.systems["model"]["recall@2"] for name, group in users.items()}
    assert recall == pytest.approx({"0": 1.0, "1-19": (1 / 3 + 1 / 2) / 2, "20-49": 1, "100+": 0})


def test_held_out_items_are_grouped_by_how_often_they_are_rated():
    items = report(planted(), SETTINGS).items
    assert {name: group.ratings for name, group in items.items()} == {
        "head": 4,  # item 0
        "middle": 2,  # items 1 and 2
        "tail": 3,  # items 3, 150 and the unknown one
    }
    recall = {name: group.systems["model"]["recall@2"] for name, group in items.items()}
    assert recall == {"head": 1.0, "middle": 0.5, "tail": 0.0}


def test_a_report_has_every_slice_and_the_terminal_shows_them_when_asked(make_bundle):
    whole = evaluate(make_bundle(preset="dot-mse"), SETTINGS)
    groups = whole["slices"]
    assert sum(g["users"] for g in groups["users"].values()) == whole["users"]
    assert {"users", "model", *whole["baselines"]} == set(groups["users"]["1-19"])
    report = parse_report(whole)
    assert "users by known ratings" in terminal.evaluation(report, slices=True)
    assert "users by known ratings" not in terminal.evaluation(report)
