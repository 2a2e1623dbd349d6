"""The OpenAPI document against the running server, with schemathesis: every operation, with every kind of credential, with data that fits
the document and data that does not. No answer is a 5xx, and every answer is one that the document describes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from daemon_data import FILES, GRANTS, LARGE, Plane, control_plane, filled
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from serving_client import TIMEOUT_S

from leptonstore.daemon.access import AccessSettings
from leptonstore.daemon.http.openapi import document
from leptonstore.daemon.http.sending import ARROW_STREAM
from leptonstore.daemon.http.table import DESCRIBED, route_of
from leptonstore.daemon.operations import OPERATIONS, Of
from leptonstore.daemon.rates import RateLimits
from leptonstore.digest import digest_of

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode  # noqa: E402
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.specs.openapi.checks import (  # noqa: E402
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 6  # of each operation, each sent with every kind of credential: the document has some forty operations
KINDS = [None, "nonsense", *GRANTS]
schemathesis.serializer(ARROW_STREAM)(
    lambda context, value: {"data": value if isinstance(value, bytes) else repr(value).encode()}
)
MANY = AccessSettings(rates=RateLimits(failures=None))  # no credential at all, more often than anybody is let
SCHEMA = schemathesis.openapi.from_dict(document("data"))


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plane]:
    with filled(tmp_path_factory.mktemp("http") / "data") as store, control_plane(store, settings=MANY) as running:
        yield running


def operations() -> list[Any]:
    return [found.ok() for found in SCHEMA.get_all_operations()]


def likely(operation: Any) -> dict[str, st.SearchStrategy[Any]]:
    """Values of a path that lead somewhere."""
    known: dict[str, list[Any]] = {
        "kind": ["dataset"],
        "version": ["samples@main", "samples", "files@main", "samples@main~1"],
        "row": [0, 1, 39, 40],
        "column": ["id", "photo", "image", "words", "a/b, c%d", "path", "data"],
        "path": [*FILES, "data", "deep"],
        "digest": [digest_of(LARGE).hex(), "0" * 64],
    }
    names = [parameter.name for parameter in operation.path_parameters]
    return {name: st.sampled_from(known[name]) for name in names}


@pytest.mark.parametrize("operation", operations(), ids=lambda operation: operation.definition.raw["operationId"])
def test_every_answer_is_one_that_the_document_describes(plane: Plane, operation: Any) -> None:
    open_to_all = OPERATIONS[operation.definition.raw["operationId"]].of is Of.NOTHING
    paths = likely(operation)
    strategies = [operation.as_strategy(GenerationMode.POSITIVE)]
    if operation.query or operation.body or paths:
        strategies.append(operation.as_strategy(GenerationMode.NEGATIVE))

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=st.one_of(strategies), path=st.none() | st.fixed_dictionaries(paths))
    def check(case: Any, path: dict[str, Any] | None) -> None:
        if path:
            case.path_parameters = path
        for token in KINDS:
            headers = {} if token is None else {"authorization": f"Bearer {plane.tokens.get(token, token)}"}
            answer = case.call(base_url=plane.url, headers=headers, timeout=TIMEOUT_S)
            case.validate_response(answer, checks=CHECKS)
            if token in (None, "nonsense") and not open_to_all:
                assert answer.status_code in (401, 404, 405, 431), answer.text

    check()


def test_every_operation_is_in_the_document() -> None:
    paths = document("data")["paths"]
    for operation in OPERATIONS.values():
        method, path = route_of(operation)
        told = paths[path][method.lower()]
        assert told["operationId"] == operation.name
        assert (told["security"] == []) == (operation.of is Of.NOTHING)
    assert set(DESCRIBED) == {name for name, operation in OPERATIONS.items() if " " in operation.call}


def test_the_document_is_served_as_it_is(plane: Plane) -> None:
    assert plane.ask("/openapi.json", "samples").json() == document("data")
    assert plane.ask("/openapi.json", None).status == 401
