"""The whole main job, and each of its stages, on a real Ray."""

import json
import urllib.request

import numpy as np
import pytest
from click.testing import CliRunner

from recray.cli import cli
from recray.config import load_settings
from recray.errors import RecrayError
from recray.inference.recommender import Recommender
from recray.schema import TIMINGS
from recray.training import trainer
from recray.training.checkpoint import RunFolder

pytestmark = pytest.mark.usefixtures("ray_session", "free_port")


@pytest.fixture
def free_port():
    """Serve keeps its port for the next app of a shared Ray; the next test wants it free."""
    yield
    from ray import serve

    serve.shutdown()


def recray(*arguments: object) -> dict:
    """Run a command in this process; its one JSON object."""
    done = CliRunner().invoke(cli, [*map(str, arguments), "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def sample_up(ray_session, tmp_path_factory, port):
    from ray import serve

    out = tmp_path_factory.mktemp("up")
    result = recray("up", "sample", "--once", "--out", out, "--port", port)
    serve.shutdown()
    return out, result


def test_up_on_the_sample_beats_popularity_and_verifies(sample_up):
    _, result = sample_up
    report = result["evaluation"]
    model, popular = report["metrics"]["ndcg@10"], report["baselines"]["popularity"]["ndcg@10"]
    assert result["verified"]
    assert model["low"] > popular["high"]
    best = max(report["baselines"], key=lambda n: report["baselines"][n]["ndcg@10"]["value"])
    assert f" {best} (" in report["verdict"]
    assert "worse" not in report["verdict"]
    assert set(result["seconds"]) == {"prepare", "train", "evaluate", "serve"}


def test_up_again_skips_what_is_there(sample_up, port):
    out, before = sample_up
    stamp = (out / "bundle" / "manifest.json").stat().st_mtime_ns
    again = recray("up", "sample", "--once", "--out", out, "--port", port)
    assert (out / "bundle" / "manifest.json").stat().st_mtime_ns == stamp
    assert again["evaluation"] == before["evaluation"]


def test_the_digits_of_an_evaluation_do_not_depend_on_the_workers(sample_up):
    out, before = sample_up
    for workers in (1, 2, 4):
        assert recray("evaluate", out / "bundle", "--workers", workers) == before["evaluation"]


def test_no_protocol_and_no_baseline_makes_the_digits_depend_on_the_workers(sample_up, tmp_path):
    bundle = Recommender.open(str(sample_up[0] / "bundle")).bundle
    users, items = bundle.user_ids.raw[np.unique(bundle.holdout.user)], bundle.item_ids.raw[:40]
    path = tmp_path / "candidates.csv"
    path.write_text("user,item\n" + "".join(f"{u},{i}\n" for u in users for i in items))
    for options in (
        ["--baselines", "item-knn,ease"],
        ["--among", "rated"],
        ["--protocol", "sampled", "--negatives", path],
    ):
        one, two = (
            recray("evaluate", bundle.folder.path, *options, "--workers", n) for n in (1, 2)
        )
        assert one == two


def test_evaluate_keeps_the_bundles_settings_but_for_what_is_given(sample_up):
    out, before = sample_up
    report = recray("evaluate", out / "bundle", "-k", 5, "-k", 10)
    assert report["metrics"]["recall@10"] == before["evaluation"]["metrics"]["recall@10"]
    assert "recall@5" in report["metrics"]


def test_each_stage_alone_gives_the_same_bundle(sample_up, tmp_path):
    _, before = sample_up
    recray("prepare", "sample", "--out", tmp_path / "p")
    recray("train", tmp_path / "p", "--out", tmp_path / "r")
    made = recray("export", tmp_path / "r", "--out", tmp_path / "b")
    assert made["evaluation"]["metrics"] == before["evaluation"]["metrics"]


def test_two_workers_under_ray_train_reach_the_same_model(sample_up, tmp_path):
    out, _ = sample_up
    recray("train", out / "prepared", "--out", tmp_path / "two", "--workers", 2)
    one, two = (RunFolder(str(path)).best().weights for path in (out / "run", tmp_path / "two"))
    for name, tensor in one.items():
        assert np.allclose(two[name], tensor, atol=1e-3), name


def test_validation_metrics_do_not_depend_on_the_workers(tmp_path):
    path = tmp_path / "ratings.csv"
    rows = [f"{u},{i},{1 + (u * i) % 5},{u}\n" for u in range(40) for i in range(u % 7, 60, 7)]
    path.write_text("userId,movieId,rating,timestamp\n" + "".join(rows))
    recray(
        "prepare",
        path,
        "--out",
        tmp_path / "p",
        "--set",
        "split.kind=random",
        "--set",
        "split.valid=0.4",
    )
    histories = []
    for workers in (1, 2):
        out = tmp_path / f"r{workers}"
        changes = ["--set", "train.epochs=2", "--set", "model.dim=4", "--preset", "mf-normalised"]
        recray("train", tmp_path / "p", "--out", out, "--workers", workers, *changes)
        histories.append(json.loads((out / "epochs.json").read_text()))
    for one, two in zip(*histories, strict=True):
        names = set(one) - set(TIMINGS)
        assert {n: one[n] for n in names} == pytest.approx({n: two[n] for n in names}, rel=1e-5)


def test_up_without_a_test_split_serves_all_the_same(tmp_path, port):
    result = recray(
        "up", "sample", "--once", "--out", tmp_path, "--port", port, "--set", "split.test=0"
    )
    assert (result["verified"], result["evaluation"]) == (True, {})


def test_a_finished_run_says_so(sample_up):
    out, _ = sample_up
    summary = recray("train", out / "prepared", "--out", out / "run", "--resume")
    assert summary["already_finished"]


def test_all_users_get_their_list_as_parquet(sample_up, tmp_path):
    out, _ = sample_up
    made = recray("recommend", out / "bundle", "--all", "--out", tmp_path / "lists", "-k", 5)
    assert made["users"] == 600
    import pyarrow.parquet as pq

    lists = pq.read_table(tmp_path / "lists" / "part-00000.parquet").to_pandas()
    one = Recommender.open(str(out / "bundle")).recommend(1, 5)
    assert lists[lists.user == 1]["item"].tolist() == [scored.item for scored in one.items]


def test_the_service_answers_and_refuses(sample_up, port):
    from ray import serve

    from recray.serving.deployment import serving

    out, _ = sample_up
    with serving(str(out / "bundle"), port=port) as url:
        with urllib.request.urlopen(f"{url}/v1/users/1/recommendations?k=3") as reply:
            assert len(json.loads(reply.read())["items"]) == 3
        for path, status in (
            ("/v1/users/999999/recommendations", 404),
            ("/v1/users/1/recommendations?k=0", 422),
        ):
            with pytest.raises(urllib.error.HTTPError) as failure:
                urllib.request.urlopen(url + path)
            assert failure.value.code == status
            assert json.loads(failure.value.read())["error"]["message"]
        second = serving(str(out / "bundle"), port=port, address="auto")
        with pytest.raises(RecrayError, match="serves an app called recray already"), second:
            pass
    serve.start(http_options={"host": "127.0.0.1", "port": port})  # another service
    elsewhere = serving(str(out / "bundle"), port=1, address="auto")
    with pytest.raises(RecrayError, match=rf"listens on 127.0.0.1:{port} already"), elsewhere:
        pass


def test_a_guarded_service_lets_its_keys_in_and_counts_bodies(sample_up, port):
    from recray.serving.auth import new_key, parse_key
    from recray.serving.deployment import serving
    from recray.serving.options import ServiceLimits

    out, _ = sample_up
    secret, line = new_key("shop")
    guarded = ServiceLimits(keys=(parse_key(line, "here"),), max_body=1000)
    many = {"askers": [{"user": user} for user in (1, 2)], "k": 3}
    with serving(str(out / "bundle"), port=port, limits=guarded) as url:
        for key, body, status in (
            (None, many, 401),
            ("x", many, 403),
            (secret, many, 200),
            (secret, {"askers": many["askers"] * 100}, 413),
        ):
            request = urllib.request.Request(
                f"{url}/v1/recommendations:batch",
                json.dumps(body).encode(),
                {"content-type": "application/json", "authorization": f"Bearer {key}"}
                if key
                else {"content-type": "application/json"},
            )
            if status == 200:
                with urllib.request.urlopen(request) as reply:
                    assert len(json.load(reply)["results"]) == 2
                continue
            with pytest.raises(urllib.error.HTTPError) as failure:
                urllib.request.urlopen(request)
            assert failure.value.code == status
            assert json.load(failure.value)["error"]["code"]


def test_more_workers_than_parts_or_cpus_are_refused(sample_up, tmp_path):
    out, _ = sample_up
    with pytest.raises(RecrayError, match="--workers 999"):
        trainer.run(load_settings(), str(out / "prepared"), str(tmp_path / "r"), workers=999)
    assert not (tmp_path / "r").exists()


def test_equal_ratings_are_refused_for_stars_and_ranked_all_the_same(tmp_path):
    path = tmp_path / "ratings.csv"
    rows = [f"{u},{i},4,{u + i}\n" for u in range(30) for i in range(30) if (u + i) % 3]
    path.write_text("userId,movieId,rating,timestamp\n" + "".join(rows))
    recray("prepare", path, "--out", tmp_path / "p")
    with pytest.raises(RecrayError, match="all training ratings are 4"):
        trainer.run(load_settings("dot-mse"), str(tmp_path / "p"), str(tmp_path / "r"))
    recray("train", tmp_path / "p", "--out", tmp_path / "r", "--set", "model.dim=4")


def test_up_on_ml_100k(movielens, tmp_path, port):
    split = ["--set", "split.kind=random", "--set", "split.test=0.2", "--set", "split.valid=0.1"]
    archive = movielens / "ml-100k.zip"
    result = recray("up", archive, "--once", "--out", tmp_path / "o", "--port", port, *split)
    report = result["evaluation"]
    assert result["verified"]
    assert report["metrics"]["recall@10"]["value"] >= 0.225
    assert report["baselines"]["popularity"]["recall@10"]["value"] == pytest.approx(
        0.118, abs=0.005
    )
