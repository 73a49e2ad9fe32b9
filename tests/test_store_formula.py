"""What prepare asks of a store, told apart by what it grows with."""

from recray.benchmarks.counting_proxy import Request, Traffic
from recray.benchmarks.store_formula import Scale, of_a_billion

OUT = "data/csv/prepared"
SPILL = f"{OUT}/.unfinished-spill"
REQUESTS = [
    Request("GET", "data/raw/ratings.csv", 206, 0, 2_400_000),
    Request("PUT", f"{SPILL}/rows-00000-00000.arrow", 200, 700_000, 0),
    *[Request("GET", f"{SPILL}/rows-00000-00000.arrow", 206, 0, 87_500)] * 8,
    *[Request("PUT", f"{SPILL}/partition-{n}-0.arrow", 200, 100_000, 0) for n in range(8)],
    *[Request("PUT", f"{OUT}/train/part-0000{n}.parquet", 200, 10_000, 0) for n in range(8)],
    Request("PUT", f"{OUT}/items.parquet", 200, 5_000, 0),
    Request("LIST", f"{OUT}/", 200, 0, 1_000),
]


def test_each_part_grows_with_its_own_number():
    rows = of_a_billion("csv", Traffic(REQUESTS), Scale(100_000, 1, 8))
    found = {row.part: row for row in rows}
    assert {part: row.requests for part, row in found.items()} == {
        "source": 1,
        "spill written": 1,
        "spill read": 8,
        "partitions between tasks": 8,
        "part files": 8,
        "all else": 2,
        "sum": 28,
    }
    assert found["source"].requests_1b == found["spill written"].requests_1b == 10_000
    assert found["spill read"].requests_1b == 10_000 * 256
    assert found["part files"].requests_1b == 256
    assert found["all else"].requests_1b == 2
    assert found["source"].down_b_a_rating == 24
    assert found["source"].down_gb_1b == 24
    assert found["spill read"].down_gb_1b == found["spill written"].up_gb_1b == 7
    assert found["all else"].up_gb_1b == 0
    assert found["sum"].down_gb_1b == 31
