"""What cannot work is refused with a text that says what to do, when it is known: at the start or
per request."""

import itertools

import pytest

pytest.importorskip("sglang", reason="needs sglang (tests/engines/sglang/install.sh)")

from sglang_harness import (  # noqa: E402, F401
    FAILED,
    Model,
    RemoteError,
    WAITING,
    sglang_engines,
    sglang_ready,
)

rooms_of = itertools.count(9000)


def refused(rooms, room):
    """The decode side's text, and that nothing of it is left."""
    rooms.decode.all("open", room, rooms.address)
    rooms.decode.wait(room, FAILED)
    return rooms.decode.all("failure", room)


@pytest.mark.parametrize("tp", [(1, 2), (2, 1)])
def test_convolution_of_unknown_parts_with_other_tp(shared_node, tmp_path, sglang_engines, tp):
    rooms = sglang_engines(
        shared_node, tmp_path, Model("mamba", layers=4), prefill={"tp": tp[0]}, decode={"tp": tp[1]}
    )
    room = next(rooms_of)
    rooms.prefill.all("open", room, rooms.address)
    for text in refused(rooms, room):
        assert f"prefill has attention TP size {tp[0]}, decode {tp[1]}" in text
        assert "mamba" in text and "same TP size" in text
    rooms.prefill.wait(room, FAILED)  # told, too


def test_draft_heads_that_cannot_be_shared_out(shared_node, tmp_path, sglang_engines):
    model = Model("mha", draft_layers=1)
    rooms = sglang_engines(shared_node, tmp_path, model, decode={"tp": 2})
    assert "draft" in refused(rooms, next(rooms_of))[0]


def test_prefill_with_another_backend(shared_node, tmp_path, sglang_engines):
    """Its bootstrap server does not say where its ranks' daemons are."""
    rooms = sglang_engines(shared_node, tmp_path, Model("mha"))
    rooms.prefill.all("forget_contacts")
    assert "--disaggregation-transfer-backend kvxfer" in refused(rooms, next(rooms_of))[0]


def test_models_that_differ(shared_node, tmp_path, sglang_engines):
    rooms = sglang_engines(
        shared_node, tmp_path, Model("mha", dim=8), decode_model=Model("mha", dim=16)
    )
    room = next(rooms_of)
    rooms.decode.all("open", room, rooms.address)
    rooms.decode.wait(room, WAITING)
    rooms.decode.all("ask", room, 20)
    rooms.decode.wait(room, FAILED)
    text = rooms.decode.all("failure", room)[0]
    assert "LAYOUT" in text and "k32x4" in text and "k64x4" in text


def test_fewer_pages_than_decode_wants(shared_node, tmp_path, sglang_engines):
    rooms = sglang_engines(shared_node, tmp_path, Model("mha"))
    room = next(rooms_of)
    rooms.open(room, 37)
    rooms.prefill.all("begin", room, 20)
    rooms.prefill.all("chunk", room, 0, 1)
    for engine in (rooms.prefill, rooms.decode):
        engine.wait(room, FAILED)
        assert "wants its blocks 0..9" in engine.all("failure", room)[0]


def test_buffers_in_private_memory(shared_node, tmp_path, sglang_engines):
    with pytest.raises(RemoteError, match=r"kv_data_ptrs\[0\].*is private memory of this process"):
        sglang_engines(shared_node, tmp_path, Model("mha", private=True))


@pytest.mark.parametrize(
    "env, text",
    [
        ({"SGLANG_RUST_SERVER": "1"}, "SGLANG_RUST_SERVER"),
        ({"KVXFER_SGLANG_PATIENCE": "soon"}, "KVXFER_SGLANG_PATIENCE='soon': must be seconds"),
    ],
)
def test_environment(shared_node, tmp_path, sglang_engines, env, text):
    with pytest.raises(RemoteError, match=text):
        sglang_engines(shared_node, tmp_path, Model("mha"), prefill={"env": env})


def test_host_destinations(shared_node, tmp_path, sglang_engines):
    rooms = sglang_engines(shared_node, tmp_path, Model("mha"))
    room = next(rooms_of)
    rooms.decode.all("open", room, rooms.address)
    with pytest.raises(RemoteError, match="no host receive"):
        rooms.decode.all("ask_host", room)
