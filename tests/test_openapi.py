"""The OpenAPI document keeps its word: schemathesis asks every operation in process, all checks."""

import collections
from typing import NamedTuple

import pytest
import schemathesis
import schemathesis.checks
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from recray.inference.recommender import Recommender
from recray.serving.app import build_app
from recray.serving.links import LINKS
from recray.serving.options import ServiceLimits, ServiceOptions
from recray.serving.service import UNANSWERABLE

FEW, MANY = 20, 250
FEW_WALKS, MANY_WALKS, STEPS = 10, 400, 12
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
        check_reply(case, reply)

    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            if mode == schemathesis.GenerationMode.NEGATIVE and operation.label in NO_PARAMETERS:
                continue  # whatever is sent fits
            chosen(given(case=operation.as_strategy(mode))(ask))()
    return statuses


def check_reply(case, reply) -> None:
    """All checks but for what a document cannot say: which items, genres and ratings there are."""
    unfit = reply.status_code == 422 and reply.json()["error"]["code"] == UNANSWERABLE
    case.validate_response(reply, excluded_checks=[positive_data_acceptance] if unfit else [])


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


# ------------------------------------------------------------------------------- along links


class Walks(NamedTuple):
    """How often each operation had which status, and how often which link led to which status."""

    statuses: collections.Counter
    links: collections.Counter


def follow_links(bundle, folder, walks: int) -> Walks:
    """Walk along the document's links, each step with what the reply before it had."""
    schemathesis.checks.load_all_checks()
    recommender = Recommender(bundle)
    feedback = ServiceOptions(str(folder / "ratings")).open_feedback("", recommender)
    feedback.start()
    app = build_app(recommender, ServiceLimits(hosts=("testserver",)), feedback=feedback)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    found = Walks(collections.Counter(), collections.Counter())

    class Walk(schema.as_state_machine()):
        def step(self, input):
            output = super().step(input)
            if input.transition is not None and input.is_applied:
                found.links[input.transition.id, output.response.status_code] += 1
            return output

        def validate_response(self, response, case, **_):
            found.statuses[case.operation.label, response.status_code] += 1
            check_reply(case, response)

    chosen = settings(
        max_examples=walks,
        stateful_step_count=STEPS,
        database=None,
        derandomize=True,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    Walk.run(settings=chosen)
    return found


def check_walks(found: Walks) -> None:
    assert not [label for label, status in found.statuses if status >= 500]
    rated = "GET /v1/users/{user} -> [200] rate -> POST /v1/ratings"
    assert found.links[rated, 202], "a link leads to what the service can take"


def test_links_lead_on(make_bundle, tmp_path):
    check_walks(follow_links(make_bundle(), tmp_path, FEW_WALKS))


@pytest.mark.slow
def test_links_lead_on_many_times(make_bundle, tmp_path):
    found = follow_links(make_bundle(), tmp_path, MANY_WALKS)
    check_walks(found)
    assert found.statuses.total() >= 2000
    names = {label.split("] ")[1].split(" ->")[0] for label, _ in found.links}
    assert names >= {link.name for link in LINKS}
    for removal in ("/v1/ratings/{user}/{item}", "/v1/users/{user}/ratings"):
        assert found.statuses[f"DELETE {removal}", 200], removal
