"""Ten thousand rooms, some of them given up: nothing is left of them, in engines or daemon."""

import os
import pathlib
import random
import time

import pytest

pytest.importorskip("sglang", reason="needs sglang (tests/engines/sglang/install.sh)")

from sglang_harness import (  # noqa: E402, F401
    FAILED,
    Model,
    SUCCESS,
    sglang_engines,
    sglang_ready,
)
from test_sglang_abort import nothing_left  # noqa: E402

N_ROOMS = int(os.environ.get("KVX_SGLANG_ROOMS", "10000"))
AT_ONCE = 25


def resident_mib(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def taken(pids, ranks):
    """Of daemon, prefill and decode. Resident memory of ranks grows by itself for a while: they are
    forked, and each page that is touched for the first time becomes their own."""
    return {
        "MiB": [resident_mib(pid) for pid in pids],
        "descriptors": [descriptors(pid) for pid in pids],
        "objects": [rank.objects() for rank in ranks],
    }


def batch(rooms, ids, chance):
    """Rooms side by side; one in ten is aborted by one side at some point."""
    prefill, decode = rooms.prefill.ranks[0], rooms.decode.ranks[0]
    sizes = {room: 1 + room % 60 for room in ids}
    doomed = {room: chance.choice(("prefill", "decode")) for room in ids if chance.random() < 0.1}
    prefill.bulk_open(ids, rooms.address)
    decode.bulk_open(ids, rooms.address)
    decode.bulk_ask(ids, sizes)
    prefill.bulk_wait(ids, 2)
    prefill.bulk_send(ids, sizes)
    for room, side in doomed.items():
        (prefill if side == "prefill" else decode).abort(room)
    ended = prefill.bulk_end(ids), decode.bulk_end(ids)
    for found in ended:
        assert all(
            found[room] == SUCCESS or room in doomed and found[room] == FAILED for room in ids
        )
    return sum(found[room] == FAILED for found in ended for room in ids)


def test_ten_thousand_rooms(node, tmp_path, sglang_engines):
    rooms = sglang_engines(node, tmp_path, Model("mha", tokens=4096, rows=256))
    ranks = [rooms.prefill.ranks[0], rooms.decode.ranks[0]]
    pids = [node.process.pid] + [rank.pid for rank in ranks]
    chance = random.Random(7)
    failed, marks = 0, {}
    start = time.monotonic()
    for first in range(0, N_ROOMS, AT_ONCE):
        if first * 3 // N_ROOMS not in marks:  # at the beginning, and after each third
            marks[first * 3 // N_ROOMS] = taken(pids, ranks)
        failed += batch(rooms, list(range(100000 + first, 100000 + first + AT_ONCE)), chance)
    took = time.monotonic() - start
    nothing_left(rooms)
    rooms.decode.all("intact")
    marks[3] = taken(pids, ranks)
    for third, mark in marks.items():
        print(f"after {third} thirds: {mark}")
    print(f"{N_ROOMS} rooms, {failed} ends failed, {took:.0f} s")
    assert marks[3]["descriptors"] == marks[1]["descriptors"]
    for early, late in zip(marks[1]["objects"], marks[3]["objects"]):
        assert late - early < 0.3 * N_ROOMS  # what is remembered of failed ids is bounded
    daemon = [mark["MiB"][0] for mark in marks.values()]
    assert daemon[3] - daemon[1] < 4
    status = node.client("probe").query("transfers")
    assert not status["live"]
