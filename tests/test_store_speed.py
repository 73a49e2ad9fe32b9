"""The doctor measures a store, leaves no file there, and shows the store's own reason."""

import pytest

from recray.benchmarks.counting_proxy import Refusal
from recray.pipelines import doctor
from recray.pipelines.store_speed import LARGE_BYTES, measure_store
from recray.storage import Folder


def test_a_store_is_measured_and_left_empty(proxy):
    with proxy.watch() as traffic:
        speed = measure_store("s3://data/speed")
    assert speed.ranges
    assert speed.region == "us-east-1"
    assert traffic.up() >= LARGE_BYTES + 3
    assert Folder("s3://data/speed").files() == []
    findings, refused = doctor._measured("s3://data/x")
    assert ([finding.level for finding in findings], refused) == (["ok"], "")


def test_a_delay_is_seen(proxy):
    proxy.delay_s = 0.05
    speed = measure_store("s3://data/speed")
    assert min(speed.put_ms, speed.get_ms, speed.head_ms) >= 50


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (Refusal(404, "NoSuchBucket", "The specified bucket does not exist"), "NO_SUCH_BUCKET"),
        (Refusal(403, "AccessDenied", "Access Denied"), "ACCESS_DENIED: Access Denied"),
        (Refusal(400, "ExpiredToken", "The token has expired"), "ExpiredToken"),
    ],
)
def test_the_reason_of_the_store_is_shown(proxy, refusal, reason):
    proxy.refusal = refusal
    findings, refused = doctor._measured("s3://data/x")
    assert findings == []
    assert reason in refused
    assert doctor._storage("s3://data/x", True, [], refused).level == "problem"


def test_a_disk_is_not_measured(tmp_path):
    assert doctor._measured(str(tmp_path)) == ([], "")
