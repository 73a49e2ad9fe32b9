"""The OpenAPI document keeps its word: schemathesis asks every operation in process, all checks."""

import collections

import pytest
import schemathesis
import schemathesis.checks
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.options import ServiceLimits
from recray.serving.service import UNANSWERABLE

FEW, MANY = 20, 500
NO_PARAMETERS = {
    "GET /v1/model",
    "GET /v1/models",
    "GET /v1/ratings",
    "GET /healthz",
    "GET /readyz",
}


def ask_everything(bundle, examples: int) -> collections.Counter:
    """Each operation with so many examples that fit the document, and as many that do not."""
    schemathesis.checks.load_all_checks()
    app = build_app(Recommender(bundle), ServiceLimits(hosts=("testserver",)))
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    chosen = settings(
        max_examples=examples // 2,  # of those that fit, and of those that do not
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    statuses: collections.Counter = collections.Counter()

    def ask(case):
        reply = case.call()
        statuses[case.operation.label, reply.status_code] += 1
        # What a document cannot say: which items, genres and ratings the data set of the day has.
        unfit = reply.status_code == 422 and reply.json()["error"]["code"] == UNANSWERABLE
        case.validate_response(reply, excluded_checks=[positive_data_acceptance] if unfit else [])

    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and operation.label in NO_PARAMETERS:
                continue  # whatever is sent fits
            chosen(given(case=operation.as_strategy(mode))(ask))()
    return statuses


def check(statuses, examples):
    assert not [status for _, status in statuses if status >= 500]
    for label in {label for label, _ in statuses} - NO_PARAMETERS:
        asked = sum(count for (own, _), count in statuses.items() if own == label)
        assert asked >= examples, label


def test_each_operation_keeps_its_word(make_bundle):
    check(ask_everything(make_bundle(), FEW), FEW)


@pytest.mark.slow
def test_each_operation_keeps_its_word_many_times(make_bundle):
    check(ask_everything(make_bundle(), MANY), MANY)
