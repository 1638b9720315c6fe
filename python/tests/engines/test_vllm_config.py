"""Keys of kv_connector_extra_config; needs neither vLLM nor a daemon."""

import logging

import pytest

from kvxfer.vllm import config

GUIDE = {"proxy_ip": "127.0.0.1", "proxy_ping_port": "36367", "http_port": "20005",
         "handshake_port": "6301", "notify_port": "6105"}


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, "vllm.kvxfer")
    return caplog


def test_the_keys_of_moriios_guide_are_read():
    read = config.read(GUIDE)
    assert (read.proxy_ip, read.proxy_ping_port, read.http_port) == ("127.0.0.1", 36367, 20005)


def test_what_a_daemon_makes_pointless_is_told_in_one_line(log):
    config.read({**GUIDE, "qp_per_transfer": 4, "post_batch_size": -1, "num_workers": 2,
                 "backend": "xgmi"})
    assert [r.getMessage() for r in log.records] == [
        "kvxfer: ignored, the node's daemon does this: handshake_port, backend, qp_per_transfer, "
        "post_batch_size, num_workers"]


def test_a_quiet_read_says_nothing(log):
    config.read(GUIDE, quiet=True)
    assert not log.records


def test_unknown_keys_are_warned_of(log):
    config.read({"proxy_prot": 1})
    assert "proxy_prot" in log.records[0].getMessage()


def test_the_old_variable_for_read_mode_is_warned_of(log, monkeypatch):
    monkeypatch.setenv("VLLM_MORIIO_CONNECTOR_READ_MODE", "1")
    assert not config.read({}).read_mode
    assert "read_mode" in log.records[0].getMessage()


@pytest.mark.parametrize("value, read", [(True, True), ("true", True), ("1", True),
                                         (" True ", True), (False, False), ("false", False), ("0", False)])
def test_flags_are_words_or_booleans(value, read):
    assert config.read({"read_mode": value}).read_mode is read


@pytest.mark.parametrize("key, value", [("read_mode", "maybe"), ("http_port", "abc"),
                                        ("http_port", 70000), ("proxy_ping_port", -1),
                                        ("defer_timeout", 0), ("transfer_timeout", "inf"),
                                        ("recv_abort_timeout", "soon")])
def test_bad_values_name_the_key(key, value):
    with pytest.raises(ValueError, match=key):
        config.read({key: value})


def test_timeouts_default_to_moriios():
    read = config.read({})
    assert (read.transfer_timeout, read.defer_timeout, read.recv_abort_timeout) == (30, 60, 120)


@pytest.mark.parametrize("extra, number", [(GUIDE, 6105), ({"http_port": 8100}, 8100)])
def test_an_engines_number_is_its_notify_port_or_its_servers(extra, number):
    assert config.read(extra).number == number


def test_an_engine_without_ports_has_a_number_that_its_processes_agree_on():
    ranks = {config.read({}, f"b0c1_dp{dp}").number for dp in range(3)}
    assert len(ranks) == 1 and ranks != {config.read({}, "other").number}


@pytest.mark.parametrize("value, layers", [(True, -1), ("true", -1), (False, 0), (0, 0), (1, 1),
                                           ("4", 4), (4, 4)])
def test_layers_are_streamed_by_number(value, layers):
    assert config.read({"stream_layers": value}).stream_layers == layers


@pytest.mark.parametrize("value", ["10.0.0.1, 10.0.0.2:7717", ["10.0.0.1", "10.0.0.2:7717"]])
def test_allowed_peers_are_a_list_or_words(value):
    assert config.read({"allowed_peers": value}).allowed_peers == {"10.0.0.1", "10.0.0.2:7717"}
