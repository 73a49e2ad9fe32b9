"""Starting from finished runs: the weights are theirs, and what does not fit is refused."""

from types import SimpleNamespace

import pytest
import torch

from recray.config import load_settings
from recray.data.dataset import Fit
from recray.errors import RecrayError
from recray.models.factorization import Dot, Hybrid
from recray.models.neural import Gmf, Mlp, NeuMf, SoftmaxDnn
from recray.models.objectives import ImplicitALS, Preference
from recray.training.als import ALSEpochs
from recray.training.checkpoint import Checkpoint, RunFolder, TrainState
from recray.training.own_users import OwnUsers, first_model
from recray.training.run_metadata import RunMetadata
from recray.training.shard import Shard, Workers
from recray.training.warm_start import (
    SHARPNESS,
    SPREAD,
    StartWeights,
    check_pretraining,
    pretrain,
    read_runs,
    start_from,
)

USERS, ITEMS = 4, 5
USER, ITEM = torch.arange(4), torch.tensor([0, 4, 2, 1])


def trained(model, kind):
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return StartWeights(f"runs/{kind}", kind, model.state_dict())


def test_a_neumf_is_the_weighted_sum_of_its_parts():
    gmf, mlp = Gmf(USERS, ITEMS, 3, "logit"), Mlp(USERS, ITEMS, 2, (4, 3), 0.0, "logit")
    runs = [trained(mlp, "mlp"), trained(gmf, "gmf")]
    model = NeuMf(USERS, ITEMS, 3, 2, (4, 3), 0.0, "logit")
    start_from(model, runs, alpha=0.25)
    expected = 0.25 * gmf(USER, ITEM) + 0.75 * mlp(USER, ITEM)
    assert torch.allclose(model(USER, ITEM), expected, atol=1e-6)


def test_a_dot_starts_a_gmf_with_the_same_scores():
    dot, model = Dot(USERS, ITEMS, 3, "logit"), Gmf(USERS, ITEMS, 3, "logit")
    start_from(model, [trained(dot, "dot")], alpha=0.5)
    assert torch.allclose(model(USER, ITEM), dot(USER, ITEM))


def test_a_model_starts_from_one_of_its_own_kind():
    before, model = Dot(USERS, ITEMS, 3), Dot(USERS, ITEMS, 3)
    start_from(model, [trained(before, "dot")], alpha=0.5)
    assert torch.equal(model(USER, ITEM), before(USER, ITEM))


@pytest.mark.parametrize(
    "runs",
    [
        [trained(Dot(USERS, ITEMS, 4), "dot")],
        [trained(Dot(USERS, ITEMS + 1, 3), "dot")],
        [trained(Dot(USERS, ITEMS, 3), "dot")] * 2,
        [trained(Mlp(USERS, ITEMS, 2, (4, 3)), "mlp")],
    ],
    ids=["dim", "items", "two", "kind"],
)
def test_runs_that_do_not_fit_are_refused(runs):
    with pytest.raises(RecrayError, match=r"train.init_from: a dot model cannot start from runs"):
        start_from(Dot(USERS, ITEMS, 3), runs, alpha=0.5)


def test_two_runs_that_are_no_gmf_and_mlp_are_refused():
    model = NeuMf(USERS, ITEMS, 3, 2, (4, 3))
    runs = [trained(Gmf(USERS, ITEMS, 3), "gmf")] * 2
    with pytest.raises(RecrayError, match="a neumf model cannot start from"):
        start_from(model, runs, alpha=0.5)


def test_a_run_of_other_data_is_refused(tmp_path):
    run = RunFolder(str(tmp_path / "run"))
    settings = load_settings("ranking").sized(1000, 1500)
    run.reserve(
        RunMetadata(dataset="tiny", prepared="p", fingerprint="a", settings=settings, workers=1)
    )
    weights = Dot(USERS, ITEMS, 3).state_dict()
    run.save(Checkpoint(weights, {}, TrainState(epoch=1, best_epoch=1)), Workers())
    fit = Fit(USERS, ITEMS, (1.0, 5.0), ("train",))
    prepared = SimpleNamespace(fingerprint="a", fit=lambda _fit_on: fit)
    (found,) = read_runs([str(tmp_path / "run")], prepared, "train")
    assert (found.kind, {*found.weights, *found.user_rows}) == ("dot", set(weights))
    with pytest.raises(RecrayError, match="was trained on tiny as it is prepared elsewhere"):
        read_runs([str(tmp_path / "run")], SimpleNamespace(fingerprint="b"), "train")
    with pytest.raises(RecrayError, match="holds no run"):
        read_runs([str(tmp_path / "none")], prepared, "train")


def test_pretrained_vectors_know_who_is_alike():
    user, item = (
        x.reshape(-1) for x in torch.meshgrid(torch.arange(8), torch.arange(10), indexing="ij")
    )
    liked = (user + item) % 2 == 0
    shard = Shard(user[liked], item[liked], torch.ones(int(liked.sum())), OwnUsers.everyone(8))
    model = SoftmaxDnn(8, 10, 2, (4,), (1.0,), 0.0, "logit")
    settings = load_settings("softmax-dnn-ranking", None, ["train.als_pretrain_epochs=3"])
    pretrain(model, shard, settings, Workers(), (1.0, 1.0))
    users = torch.nn.functional.normalize(model.user_vectors.weight, dim=1)
    alike = users @ users.T
    same = (torch.arange(8)[:, None] + torch.arange(8)) % 2 == 0
    assert alike[same].min() > 0.99 > 0.5 > alike[~same].max()
    assert model.item_vectors.weight.std().item() == pytest.approx(SPREAD, rel=1e-3)


def test_a_pretrained_neumf_starts_with_the_scores_of_the_solves():
    user, item = torch.tensor([0, 0, 1, 2, 2, 3]), torch.tensor([0, 1, 1, 2, 3, 3])
    stars = torch.tensor([5.0, 1.0, 4.0, 2.0, 5.0, 3.0])
    shard = Shard(user, item, stars, OwnUsers.everyone(4))
    model = NeuMf(4, 4, 2, 3, (4, 3), 0.0, "logit")
    settings = load_settings("neumf-ranking", None, ["train.als_pretrain_epochs=3"])
    pretrain(model, shard, settings, Workers(), (1.0, 5.0))
    dot = first_model(lambda *sizes: Dot(*sizes, 2, "logit"), shard.users, 4, settings.train.seed)
    weight, l2 = settings.objective.unobserved_weight, settings.train.als_pretrain_l2
    objective = ImplicitALS(weight, l2, Preference("stars"))
    epochs = ALSEpochs(dot, objective, shard, Workers())
    for epoch in range(3):
        epochs.run(epoch)
    everybody = torch.arange(4)
    torch.testing.assert_close(
        model.logits_block(model.user_state(everybody), 0, 4),
        SHARPNESS * dot.logits_block(dot.user_state(everybody), 0, 4),
    )


def test_models_without_products_or_towers_are_not_pretrained():
    check_pretraining(Mlp(USERS, ITEMS, 2, (4, 3)))
    with pytest.raises(
        RecrayError, match=r"train.als_pretrain_epochs goes with model.kind=gmf, mlp, neumf"
    ):
        check_pretraining(Dot(USERS, ITEMS, 3))


def test_a_hybrid_keeps_the_description_of_its_own_items():
    before, model = (Hybrid(USERS, ITEMS, 3, ["genre:Drama"]) for _ in range(2))
    before.describe_items(torch.ones(ITEMS, 1))
    model.describe_items(torch.tensor([[0.0], [1.0], [0.0], [1.0], [0.0]]))
    start_from(model, [trained(before, "hybrid")], alpha=0.5)
    assert model.features[:, 0].tolist() == [0, 1, 0, 1, 0]
    assert torch.equal(model.feature_vectors, before.feature_vectors)
