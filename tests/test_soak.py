"""What a soak says of memory, on series of known growth."""

import pytest

from recray.benchmarks.soak import Sample, growth


def test_a_flat_memory_has_no_slope_whatever_its_spikes():
    flat = [Sample(float(second), 300.0 + 40 * (second % 60 == 0)) for second in range(901)]
    begin, end, slope = growth(flat)
    assert (begin, end) == (300.0, 300.0)
    assert abs(slope) < 1.0


def test_growth_is_told_in_mb_an_hour():
    begin, end, slope = growth([Sample(float(second), 300 + second / 60) for second in range(600)])
    assert slope == pytest.approx(60.0)
    assert end - begin == pytest.approx(8.0, abs=0.1)


def test_one_sample_has_no_slope():
    with pytest.raises(ValueError, match="two samples, got 1"):
        growth([Sample(0.0, 300.0)])
