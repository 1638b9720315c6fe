"""A transfer id that is used again before the end of its first use was read."""

from collections import deque

import pytest

sending = pytest.importorskip("kvxfer.vllm.sending", reason="vLLM is not installed",
                              exc_type=ImportError)


def test_ends_go_to_the_requests_in_the_order_of_their_beginnings():
    requests = {"tx-1": deque(["first", "", "second"])}
    assert sending.next_request(requests, "tx-1") == "first"
    assert sending.next_request(requests, "tx-1") is None
    assert sending.next_request(requests, "tx-1") == "second"
    assert requests == {}
    assert sending.next_request(requests, "tx-1") is None
