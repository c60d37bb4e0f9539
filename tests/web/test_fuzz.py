"""The service against its own description: whatever is sent, the answer is one that it announces."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, given, settings

schemathesis = pytest.importorskip("schemathesis")


EXAMPLES = int(os.environ.get("EARMARK_FUZZ_EXAMPLES", "15"))
ROUTES = (
    ("GET", "/api/log"),
    ("GET", "/api/proof"),
    ("GET", "/checkpoint"),
    ("GET", "/tile/{path}"),
    ("GET", "/api/community"),
    ("GET", "/api/status"),
    ("GET", "/api/resolution"),
    ("POST", "/api/records"),
    ("POST", "/add-checkpoint"),
    ("GET", "/api/blobs/{digest}"),
    ("POST", "/api/blobs"),
)


@pytest.fixture(scope="module")
def description(node):
    return schemathesis.openapi.from_url(node.card.url + "/openapi.json")


def test_the_description_lists_every_route(description):
    found = {
        (item.ok().method.upper(), item.ok().path) for item in description.get_all_operations()
    }
    assert found == set(ROUTES)


def cases():
    """Well-formed requests for every route, malformed ones for those that take something."""
    for method, path in ROUTES:
        for mode in schemathesis.GenerationMode:
            takes = method == "POST" or path in ("/api/log", "/api/proof", "/api/blobs/{digest}")
            if mode.is_positive or takes:
                yield pytest.param(method, path, mode, id=f"{method}-{path}-{mode.name}")


@pytest.mark.parametrize(("method", "path", "mode"), list(cases()))
def test_every_answer_is_as_described(description, method, path, mode):
    """Status, content type and schema are checked, and that no answer is a server's error."""
    operation = description[path][method]

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def fuzz(case):
        # a schema cannot say that a signature verifies, or that an entry is there
        beyond = schemathesis.checks.CHECKS.get_one("positive_data_acceptance")
        case.call_and_validate(timeout=20, excluded_checks=[beyond])

    fuzz()
