"""What benchmarks compare must be the same thing."""

import numpy as np

from recray.benchmarks import evaluate


def test_the_scorer_and_the_loop_it_is_compared_with_give_the_same_lists():
    scorer = evaluate._scorer(20, 400)
    lists = evaluate.argsort_loop(scorer, 20)
    assert np.array_equal(scorer.rank(np.arange(20), evaluate.K).item, lists)
