"""Ten thousand bad requests at the guard's checks: `pytest tests/unit/test_bad_requests.py`."""

from __future__ import annotations

from collections import Counter

import pytest
from google.protobuf.message import DecodeError
from tritonclient.grpc import service_pb2

from attune_client.protocol.errors import MAX_MESSAGE, InvalidRequest, from_wire
from attune_client.protocol.models import MODELS
from attune_client.protocol.profiles import EMBEDDED
from attune_ensemble.chaos.requests import ASKED, BadRequest, bad_requests, whole_request
from attune_ensemble.serving.guard.checks import check_request
from attune_ensemble.serving.guard.requests import Request
from attune_ensemble.serving.guard.signatures import signature_of
from attune_export.repository_config import model_config

SEED = 14
COUNT = 10_000

SIGNATURES = {name: signature_of(model_config(name, EMBEDDED)) for name in MODELS}

# Of which the service has to say something before it knows what the model takes.
BEFORE_THE_CHECKS = ("model", "version", "nothing", "garbage")


def fault_of(request: BadRequest) -> str:
    return request.fault.partition(":")[0]


def refusal(request: BadRequest) -> str | None:
    """The message with which a request is refused; None where the model may have it."""
    try:
        message = Request.of(request.message)
        check_request(message, SIGNATURES[message.head.model_name])
    except InvalidRequest as error:
        return str(error)
    return None


@pytest.mark.parametrize("raw", [True, False])
@pytest.mark.parametrize("model", ASKED.values(), ids=ASKED)
def test_a_request_with_nothing_wrong_is_let_through(model, raw):
    """Without which the refusals below would prove nothing."""
    request = Request.of(whole_request(model, raw=raw).SerializeToString())
    check_request(request, SIGNATURES[model.name])


def test_the_same_seed_makes_the_same_requests():
    assert list(bad_requests(300, SEED)) == list(bad_requests(300, SEED))
    assert not {each.message for each in bad_requests(300, SEED)} >= {each.message for each in bad_requests(300, 15)}


def test_ten_thousand_bad_requests_are_refused_for_their_form_or_left_to_their_model():
    seen, messages = Counter[str](), set()
    for request in bad_requests(COUNT, SEED):
        fault = fault_of(request)
        seen[fault] += 1
        messages.add(request.message)
        if fault in BEFORE_THE_CHECKS:
            continue
        told = refusal(request)
        if request.of_form:
            assert told is not None, f"{request.model}: {request.fault}"
            assert_clear(told)
        else:
            assert told is None, f"{request.model}: {request.fault}: {told}"
    assert sum(seen.values()) == len(messages) == COUNT
    assert len(seen) == 27
    assert min(count for fault, count in seen.items() if fault != "nothing") >= 20


def assert_clear(told: str) -> None:
    """One short line that comes through as it is, and shows nothing of what the server is made of."""
    assert 20 < len(told) < MAX_MESSAGE
    assert told.isprintable()
    assert not any(word in told for word in ("Traceback", "Error", "/usr", ".py", "None", "protobuf"))
    returned = from_wire(InvalidRequest(told).to_wire())
    assert (type(returned), str(returned)) == (InvalidRequest, told)


def test_garbage_is_no_message():
    """Without which nothing would try how the guard takes it."""
    garbage = [request for request in bad_requests(2_000, SEED) if fault_of(request) == "garbage"]
    assert sum(not is_message(request.message) for request in garbage) > 0.9 * len(garbage) > 10


def is_message(encoded: bytes) -> bool:
    try:
        service_pb2.ModelInferRequest.FromString(encoded)
    except DecodeError:
        return False
    return True
