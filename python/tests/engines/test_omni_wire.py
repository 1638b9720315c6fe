"""kvxfer.vllm_omni: messages and configuration. Needs no daemon and no vLLM-Omni."""

import pytest

import kvxfer
from kvxfer.vllm_omni import config, wire

MESSAGES = [
    wire.Claim(7, -1, "k@0_1", "omni/pool/1-a", ""),
    wire.Claim(2**64 - 1, 3300, "ключ@0_1", "omni/pool/1-a", "10.0.0.1:7717"),
    wire.Grant(7, 1, 5, 4096, True, None),
    wire.Grant(7, 1, 3, 0, False, b"\x00ab"),
    wire.Grant(7, 1, 0, 0, False, b""),
    wire.Wait(7, True),
    wire.Refuse(7, "has 3 bytes here, the getter was told 4"),
    wire.Done(7, 1, False),
    wire.Abandon(7),
]


@pytest.mark.parametrize("message", MESSAGES)
def test_message_comes_back_as_it_was(message):
    assert wire.unpack(message.pack()) == message


@pytest.mark.parametrize("message", MESSAGES)
def test_cut_message_is_refused_or_shorter_text(message):
    data = message.pack()
    for n in range(len(data)):
        try:
            got = wire.unpack(data[:n])
        except wire.WireError:
            continue
        assert isinstance(got, (wire.Grant, wire.Refuse)) and got != message


def test_message_of_another_version_says_what_to_do():
    data = bytes([9]) + wire.Abandon(7).pack()[1:]
    with pytest.raises(wire.WireError, match="same kvxfer in every stage"):
        wire.unpack(data)


def test_largest_inline_grant_fits_a_message():
    data = wire.Grant(1, 1, wire.INLINE_MAX, 0, True, bytes(wire.INLINE_MAX)).pack()
    assert len(data) == kvxfer.PAYLOAD_MAX


def test_longest_claim_fits_a_message():
    claim = wire.Claim(1, 1, "k" * wire.KEY_MAX, "n" * 128, "a" * 255)
    assert len(claim.pack()) <= kvxfer.PAYLOAD_MAX


def test_key_that_is_too_long_is_refused():
    with pytest.raises(wire.WireError, match="at most"):
        wire.Claim(1, 1, "k" * (wire.KEY_MAX + 1), "n", "").pack()


def test_payload_of_a_read_comes_back():
    assert wire.unpack_read(wire.pack_read(2**63, 12)) == (2**63, 12)


def test_foreign_arrival_is_refused():
    with pytest.raises(wire.WireError):
        wire.unpack_read(b"something else")


def test_mori_configuration_is_taken_as_it_is():
    conf = config.Config.of({"host": "auto", "zmq_port": 50051, "backend_type": "rdma",
                             "memory_pool_size": 536870912, "memory_pool_device": "cpu",
                             "qp_per_transfer": 1, "num_worker_threads": 1, "role": "sender"})
    assert (conf.number, conf.pool_bytes, conf.pool_device, conf.host) == \
        (50051, 536870912, "cpu", "")


def test_keys_without_meaning_are_named():
    extra = {"backend_type": "xgmi", "qp_per_transfer": 4, "device_name": "", "role": "sender"}
    assert config.Config.ignored(extra) == ["backend_type='xgmi'", "qp_per_transfer=4"]


@pytest.mark.parametrize("extra, text", [
    ({"role": "both"}, "role 'both'"),
    ({"zmq_port": "x"}, "zmq_port 'x': must be a whole number"),
    ({"memory_pool_size": 12}, "memory_pool_size 12: must be at least"),
    ({"buffer_ttl_seconds": -1}, "buffer_ttl_seconds -1"),
])
def test_wrong_value_is_named_with_its_key(extra, text):
    with pytest.raises(ValueError, match=text):
        config.Config.of(extra)


def test_environment_is_expanded(monkeypatch):
    monkeypatch.setenv("OMNI_PORT", "50077")
    assert config.Config.of({"zmq_port": "${OMNI_PORT}"}).number == 50077


@pytest.mark.parametrize("extra, number", [
    ({"role": "sender", "zmq_port": 50052}, 50052),
    # The middle of a pipeline: 0 -> 1 is 50051 - 1 + 0; what stage 1 puts is asked for at 50052.
    ({"role": "receiver", "sender_zmq_port": 50051, "from_stage": 0, "stage_id": 1}, 50052),
    ({"role": "receiver", "sender_zmq_port": 50051, "put_zmq_port": 60000}, 60000),
    ({"role": "receiver"}, None),
])
def test_number_for_put(extra, number):
    assert config.Config.of(extra).number_for_put() == number


@pytest.mark.parametrize("host, parts", [
    ("10.0.0.1", ("10.0.0.1", None)), ("10.0.0.1:7717", ("10.0.0.1", 7717)),
    ("node7", ("node7", None)), ("::1", ("::1", None)), ("[::1]:7717", ("::1", 7717))])
def test_split_host(host, parts):
    assert config.split_host(host) == parts
    if parts[1] is not None:
        assert config.join_host(*parts) == host


def test_this_machine_is_recognised():
    assert config.is_here("127.0.0.1") and config.is_here("localhost")
    assert not config.is_here("192.0.2.1")  # reserved for documentation
