"""Names that travel between proxies and engines; needs neither vLLM nor a daemon."""

import pytest

from kvxfer.pd import Endpoint
from kvxfer.vllm import ids

UID = "0123456789abcdef0123456789abcdef"
PREFILL = "host:10.0.0.1,handshake:6301,notify:6105"
DECODE = "host:10.0.0.2,handshake:7301,notify:7501"
ROUTED = f"___prefill_addr_{PREFILL}___decode_addr_{DECODE}_{UID}"


@pytest.mark.parametrize("text, peer", [
    (PREFILL, ids.Peer("10.0.0.1", 6301, 6105)),
    ("host:fe80::1,handshake:1,notify:2", ids.Peer("fe80::1", 1, 2)),
    ("notify:2, host:::1, handshake:1", ids.Peer("::1", 1, 2))])
def test_zmq_address_is_read(text, peer):
    assert ids.parse_zmq(text) == peer


@pytest.mark.parametrize("text", ["", "10.0.0.1:6301", "host:a,handshake:x,notify:1",
                                  "host:a,handshake:1", "host:,handshake:1,notify:1"])
def test_other_addresses_are_refused(text):
    with pytest.raises(ValueError, match="must be 'host:IP|host is empty"):
        ids.parse_zmq(text)


def test_zmq_address_is_written_as_it_is_read():
    assert ids.format_zmq(ids.parse_zmq(PREFILL)) == PREFILL


@pytest.mark.parametrize("wrap", ["{}", "cmpl-{}-0-1a2b3c4d", "chatcmpl-{}-1a2b3c4d",
                                  "1_cmpl-{}-3-1a2b3c4d"])
def test_peers_are_found_in_wrapped_request_ids(wrap):
    request_id = wrap.format(ROUTED)
    assert ids.peer_of_request(request_id, producer=True) == ids.parse_zmq(DECODE)
    assert ids.peer_of_request(request_id, producer=False) == ids.parse_zmq(PREFILL)


def test_plain_request_id_names_no_peer():
    assert ids.peer_of_request("cmpl-abc-0-1a2b3c4d", producer=False) is None


def test_source_is_the_routers_prefill_engine():
    assert ids.source_endpoint(f"cmpl-{ROUTED}-0-1a2b3c4d", {"remote_tp_size": 4}) == Endpoint(
        "10.0.0.1:6301", "10.0.0.1:6105", 0, 4)


def test_source_is_the_sidecars_prefill_engine():
    params = {"remote_host": "10.0.0.9", "remote_handshake_port": "6301",
              "remote_notify_port": 61005, "remote_dp_rank": 2, "tp_size": 8}
    assert ids.source_endpoint("chatcmpl-a-1a2b3c4d", params) == Endpoint(
        "10.0.0.9:6301", "10.0.0.9:61005", 2, 8)


def test_source_of_a_rank_on_the_second_node():
    params = {"remote_host": "a", "remote_handshake_port": 1, "remote_notify_port": 2,
              "remote_dp_rank": 5, "remote_dp_size_local": 4, "remote_hosts": ["a", "b"]}
    assert ids.source_endpoint("x", params)[:3] == ("b:1", "b:2", 5)


def test_source_without_a_port_is_on_this_node():
    params = {"remote_host": "a", "remote_handshake_port": 0, "remote_notify_port": 2}
    assert ids.source_endpoint("x", params).address == ""


def test_source_at_an_ipv6_address_is_bracketed():
    params = {"remote_host": "::1", "remote_handshake_port": 7, "remote_notify_port": 2}
    assert ids.source_endpoint("x", params)[:2] == ("[::1]:7", "::1:2")


@pytest.mark.parametrize("params", [{}, {"remote_host": "a"}, {"remote_host": "a",
                                    "remote_handshake_port": "x", "remote_notify_port": 1}])
def test_source_that_is_not_named_is_an_error_that_says_what_to_do(params):
    with pytest.raises(ValueError, match="remote_notify_port"):
        ids.source_endpoint("cmpl-abc-0-1a2b3c4d", params)


@pytest.mark.parametrize("prefill, decode", [
    ("cmpl-{}-0-11111111", "cmpl-{}-0-22222222"),
    ("chatcmpl-{}-11111111", "chatcmpl-{}-22222222"),
    ("1_cmpl-{}-2-11111111", "1_cmpl-{}-2-22222222")])
@pytest.mark.parametrize("outer", [ROUTED, "5f9e-plain"])
def test_both_sides_find_one_transfer_id(prefill, decode, outer):
    here, there = prefill.format(outer), decode.format(outer)
    assert ids.transfer_id(here, {}) == ids.transfer_id(there, {})


@pytest.mark.parametrize("outer", [ROUTED, "plain"])
def test_prompts_and_samples_of_one_request_have_ids_of_their_own(outer):
    wraps = ["cmpl-{}-0-11111111", "cmpl-{}-1-11111111", "1_cmpl-{}-0-11111111",
             "1_cmpl-{}-1-11111111"]
    found = {ids.transfer_id(wrap.format(outer), {"transfer_id": "tx-1"}) for wrap in wraps}
    assert len(found) == 4 and "tx-1" in found


def test_the_proxys_transfer_id_is_used_as_it_is():
    assert ids.transfer_id(f"cmpl-{ROUTED}-0-11111111", {"transfer_id": "tx-7"}) == "tx-7"


def test_the_answers_transfer_id_leads_to_the_same_id():
    """READ: the prefill's answer names the base; the decode side adds which prompt it is."""
    prefill = "cmpl-abc-1-11111111"
    answer = {"transfer_id": ids.transfer_base(prefill, {}), "remote_request_id": prefill}
    assert ids.transfer_id("cmpl-abc-1-22222222", answer) == ids.transfer_id(prefill, {})


def test_long_ids_are_shortened_equally():
    long = "x" * 500
    assert len(ids.transfer_id("a", {"transfer_id": long})) <= 200
    assert len({ids.transfer_id(request, {"transfer_id": long}) for request in "ab"}) == 1


def test_label_leaves_out_the_addresses():
    assert ids.label(f"cmpl-{ROUTED}-0-1a2b3c4d") == f"cmpl-{UID}-0-1a2b3c4d"


def test_label_is_short_and_printable():
    assert ids.label("é " + "x" * 100) == "x" * 64
