"""Who gives what to whom (kvxfer.pd.plan): every byte of a destination comes from the right place,
once. No daemon: what the plan says is done here with numpy."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from kvxfer import errors
from kvxfer.pd import geometry, messages, plan
from kvxfer.pd.geometry import Geometry, Group, Part
from kvxfer.pd.joiner import Joiner

UNIT = 3  # bytes of a head of a token
SETTINGS = hypothesis.settings(max_examples=300, deadline=None)


class Rank:
    """A rank's memory: bytes that say what they are, or zeros."""

    def __init__(self, place, rng):
        self.geometry = place
        self.planes = {}
        for (g, layer, p) in geometry.plane_keys(place.groups):
            group = place.groups[g]
            shape = (group.n_blocks, geometry.block_bytes(group, group.parts[p]))
            self.planes[place.planes[g, layer, p]] = np.zeros(shape, np.uint8)
        self.ids = rng.permutation(place.groups[0].n_blocks).astype(np.uint32)

    def cells(self, g, layer, p):
        """Of a plane [blocks][copies][tokens][units][UNIT], whatever the order in memory."""
        group = self.geometry.groups[g]
        part = group.parts[p]
        plane = self.planes[self.geometry.planes[g, layer, p]]
        tokens = max(group.block_tokens, 1)
        if part.order == "HND":
            return plane.reshape(len(plane), part.copies, part.units, tokens, -1).swapaxes(2, 3)
        return plane.reshape(len(plane), part.copies, tokens, part.units, -1)


def truth(layer, kind, copies, tokens, units, n_bytes):
    """The bytes of the model: [copies][tokens][units][bytes]."""
    rng = np.random.default_rng(abs(hash((layer, kind))) % 2**32)
    return rng.integers(1, 256, (copies, tokens, units, n_bytes), dtype=np.uint8)


def fill(rank, n_tokens):
    g = rank.geometry
    for i, group in enumerate(g.groups):
        size = max(group.block_tokens, 1)
        for layer, name in enumerate(group.layers):
            for p, part in enumerate(group.parts):
                cells = rank.cells(i, layer, p)
                n_bytes = cells.shape[-1]
                whole = truth(name, part.kind, part.copies, n_tokens, part.total_units, n_bytes)
                for at in range(-(-n_tokens // size)):
                    some = whole[:, at * size:(at + 1) * size,
                                 part.first_unit:part.first_unit + part.units]
                    cells[rank.ids[at], :, :some.shape[1]] = some


def move(src, dst, take, first, n, tokens, only=None):
    """What a transfer does with the runs of a take, from the source's side. Bytes must not be
    written twice."""
    a, b = src.geometry.groups[take.src_group], dst.geometry.groups[take.dst_group]
    n_src, n_dst = plan.atoms(a, b), plan.atoms(b, a)
    start, end = plan.wanted_atoms(first, n, a, b, tokens)
    here = plan.Span(0, messages.copy_ids(src.ids[:-(-end // n_src)], "ids"))
    there = plan.Span(first, messages.copy_ids(dst.ids[first:first + n], "ids"))
    for run in plan.runs(src.geometry, dst.geometry, take, only, True):
        ids = plan.pairs(run, here, n_src, there, n_dst, start, end)
        for i in range(run.n_planes) if ids else ():
            x = src.planes[run.local.region, run.local.plane + i]
            y = dst.planes[run.remote.region, run.remote.plane + i]
            for j, k in zip(*ids):
                copy(x[j], y[k], run.slice)


def copy(x, y, piece):
    if piece is None:
        assert len(x) == len(y) and not y.any()
        y[:] = x
        return
    for i in range(piece.count):
        at = piece.local_offset + i * piece.local_stride
        to = piece.remote_offset + i * piece.remote_stride
        assert at + piece.bytes <= len(x) and to + piece.bytes <= len(y)
        assert not y[to:to + piece.bytes].any()
        y[to:to + piece.bytes] = x[at:at + piece.bytes]


def heads(tp, tp_size, total):
    """First head and number of heads of a rank, replicated where there are too few."""
    if tp_size <= total:
        return tp * (total // tp_size), total // tp_size
    return tp // (tp_size // total), 1


def make(rng, kinds, order, total, copies, tokens, names, tp_size, pp_size, n_blocks, two_regions):
    ranks = []
    for pp in range(pp_size):
        cut = [len(names) * i // pp_size for i in range(pp_size + 1)]
        for tp in range(tp_size):
            first, units = heads(tp, tp_size, total)
            parts = tuple(Part(kind, UNIT, units, first, total, order, copies) if order
                          else Part(kind, UNIT * max(tokens, 1), copies=copies) for kind in kinds)
            group = Group("main", tuple(names[cut[pp]:cut[pp + 1]]), tokens, n_blocks, parts)
            keys = geometry.plane_keys([group])
            regions = [key[1] % 2 for key in keys] if two_regions and len(group.layers) > 1 else ()
            place = Geometry(
    [group],
    tp=tp,
    tp_size=tp_size,
    pp=pp,
    pp_size=pp_size,
     regions=regions)
            ranks.append(Rank(geometry.unpack_note(geometry.pack_note(place)), rng))
    return ranks


sizes = st.sampled_from([1, 2, 4])


@SETTINGS
@hypothesis.given(
    seed=st.integers(0, 2**31), kinds=st.sampled_from([("k", "v"), ("kv",)]),
    order=st.sampled_from(["NHD", "HND", ""]), total=st.sampled_from([1, 2, 4, 8]),
    copies=st.sampled_from([1, 2]), small=st.sampled_from([1, 4]), ratio=sizes,
    larger=st.booleans(), src_tp=sizes, dst_tp=sizes, src_pp=sizes, dst_pp=sizes,
    n_tokens=st.integers(1, 40), skip=st.integers(0, 3),
    two=st.tuples(st.booleans(), st.booleans()))
def test_every_byte_comes_from_the_right_place_once(
        seed, kinds, order, total, copies, small, ratio, larger, src_tp, dst_tp, src_pp, dst_pp,
        n_tokens, skip, two):
    rng = np.random.default_rng(seed)
    if not order:
        total = 1
    if order and copies == 2 and total == 8:
        copies = 1
    src_tokens, dst_tokens = (small * ratio, small) if larger else (small, small * ratio)
    names = [f"layer{i}" for i in range(5)]
    n_blocks = 41
    srcs = make(
    rng,
    kinds,
    order,
    total,
    copies,
    src_tokens,
    names,
    src_tp,
    src_pp,
    n_blocks,
     two[0])
    dsts = make(
    rng,
    kinds,
    order,
    total,
    copies,
    dst_tokens,
    names,
    dst_tp,
    dst_pp,
    n_blocks,
     two[1])
    for rank in srcs:
        fill(rank, n_tokens)
    n = -(-n_tokens // dst_tokens)
    skip = min(skip, n - 1)
    for dst in dsts:
        takes = plan.assign(dst.geometry, [src.geometry for src in srcs], 0)
        for src, of_src in zip(srcs, takes):
            for take in of_src:
                for layer in range(0, 5, 2):  # streamed by two layers
                    move(src, dst, take, skip, n - skip, n_tokens, range(layer, layer + 2))
        want = Rank(dst.geometry, rng)
        want.ids = dst.ids
        fill(want, n_tokens)
        for key in geometry.plane_keys(dst.geometry.groups):
            got, told = dst.cells(*key), want.cells(*key)
            for at in range(n):
                have = min(dst_tokens, n_tokens - at * dst_tokens)
                block = dst.ids[at]
                if at < skip:
                    assert not got[block].any()
                else:
                    assert np.array_equal(got[block, :, :have], told[block, :, :have])
            rest = np.ones(n_blocks, bool)
            rest[dst.ids[:n]] = False
            assert not got[rest].any()


def kv_group(tp=0, tp_size=1, layers=4, tokens=16, total=4, **more):
    first, units = heads(tp, tp_size, total)
    part = {"unit_bytes": 256, "units": units, "first_unit": first, "total_units": total,
            "order": "NHD", **more}
    return Group("main", tuple(f"l{i}" for i in range(layers)), tokens, 64,
                 (Part("k", **part), Part("v", **part)))


def test_alike_sides_are_one_range_of_whole_blocks():
    here = Geometry([kv_group(layers=94)])
    [[take]] = plan.assign(here, [here], 0)
    [run] = plan.runs(here, here, take, None, True)
    assert run == plan.Run(plan.Side(0, 0, 0), plan.Side(0, 0, 0), 188, None)


@pytest.mark.parametrize("src_tp, dst_tp", [(1, 2), (2, 1), (4, 2), (2, 8), (8, 2), (8, 8)])
def test_other_head_counts_are_one_range_with_one_slice_per_pair_of_ranks(src_tp, dst_tp):
    srcs = [Geometry([kv_group(tp, src_tp)], tp=tp, tp_size=src_tp) for tp in range(src_tp)]
    for tp in range(dst_tp):
        dst = Geometry([kv_group(tp, dst_tp)], tp=tp, tp_size=dst_tp)
        for src, takes in zip(srcs, plan.assign(dst, srcs, 0)):
            for take in takes:
                assert len(plan.runs(src, dst, take, None, True)) == 1


def test_of_ranks_that_hold_the_same_each_gives_its_share():
    latent = Group("main", ("l0",), 16, 64, (Part("latent", 1152),))
    srcs = [Geometry([latent], tp=tp, tp_size=4) for tp in range(4)]
    givers = []
    for tp in range(8):
        takes = plan.assign(Geometry([latent], tp=tp, tp_size=8), srcs, 0)
        givers += [i for i, take in enumerate(takes) if take]
    assert givers == [0, 1, 2, 3, 0, 1, 2, 3]


def test_planes_of_single_heads_go_into_planes_of_all_heads():
    """One side has a plane per head (several parts of one kind)."""
    per_head = Group("main", ("l0", "l1"), 16, 64,
                     tuple(Part("kv", 512, 1, head, 4, "HND") for head in range(4)))
    whole = Group("main", ("l0", "l1"), 16, 64, (Part("kv", 512, 4, 0, 4, "HND"),))
    a, b = Geometry([per_head]), Geometry([whole])
    [[take]] = plan.assign(b, [a], 0)
    assert [part.src_part for part in take.parts] == [0, 1, 2, 3]
    offsets = sorted(run.slice.remote_offset for run in plan.runs(a, b, take, range(0, 1), True))
    assert offsets == [0, 8192, 16384, 24576]


def test_layers_are_matched_by_name_wherever_they_are():
    names = [f"l{i}" for i in range(6)]
    srcs = [Geometry([kv_group()._replace(layers=tuple(names[i::2]))], pp=i, pp_size=2)
            for i in range(2)]
    dst = Geometry([kv_group()._replace(layers=tuple(names))])
    takes = plan.assign(dst, srcs, 0)
    assert [take.layers for [take] in takes] == [((0, 0, 1), (1, 2, 1), (2, 4, 1)),
                                                 ((0, 1, 1), (1, 3, 1), (2, 5, 1))]


def test_what_is_nowhere_is_left_out_only_of_optional_groups():
    src = Geometry([kv_group(layers=3)])
    more = kv_group(layers=4)
    with pytest.raises(errors.LayoutMismatch, match="layer 'l3' is on none of the 1 ranks"):
        plan.assign(Geometry([more]), [src], 0)
    [[take]] = plan.assign(Geometry([more._replace(optional=True)]), [src], 0)
    assert take.n_layers == 3
    draft = more._replace(name="draft")
    with pytest.raises(errors.LayoutMismatch, match=r"group 'draft' is not on the other.*main"):
        plan.assign(Geometry([draft]), [src], 0)
    assert plan.assign(Geometry([draft._replace(optional=True)]), [src], 0) == [()]


@pytest.mark.parametrize("change, words", [
    ({"tokens": 24}, "blocks of 16 tokens at the source and of 24"),
    ({"unit_bytes": 128}, r"'k': bytes per token and unit \(256, 1\) at the source, \(128, 1\)"),
    ({"order": "HND"}, "order NHD at the source, HND at the destination"),
    ({"copies": 2}, "copies 1 at the source, 2"),
    ({"total": 8}, "unit 4 of 8 is on no rank"),
])
def test_sides_that_do_not_fit_are_refused_with_both_values(change, words):
    src = Geometry([kv_group()])
    with pytest.raises(errors.LayoutMismatch, match=words):
        plan.assign(Geometry([kv_group(**change)]), [src], 0)


def test_another_kind_of_cache_is_refused():
    latent = Group("main", ("l0",), 16, 64, (Part("latent", 1152),))
    with pytest.raises(errors.LayoutMismatch, match=r"'latent' here, but \['k', 'v'\]"):
        plan.assign(Geometry([latent]), [Geometry([kv_group()])], 0)


def test_words_that_differ_are_named():
    with pytest.raises(errors.LayoutMismatch, match="model: 'a' here, 'b' on the other side"):
        Geometry([kv_group()], check={"model": "a"}).check_words(
            Geometry([kv_group()], check={"model": "b"}))


@hypothesis.given(st.binary(max_size=200))
def test_a_note_that_is_none_is_a_protocol_error(data):
    with pytest.raises(errors.ProtocolError):
        geometry.unpack_note(data)


def test_a_note_of_another_version_says_so():
    import json
    import zlib

    body = json.loads(zlib.decompress(geometry.pack_note(Geometry([kv_group()]))))
    body["v"] = 99
    with pytest.raises(errors.VersionMismatch, match="99"):
        geometry.unpack_note(zlib.compress(json.dumps(body).encode()))


def test_notes_hold_large_models():
    names = tuple(f"model.layers.{i}.self_attn.attn" for i in range(94))
    group = kv_group()._replace(layers=names)
    assert len(geometry.pack_note(Geometry([group]))) < 1000


# ---- messages


@hypothesis.given(st.lists(st.lists(st.integers(0, 2**32 - 1), max_size=3000), max_size=3),
                  st.integers(0, 2**64 - 1))
def test_messages_come_out_as_they_went_in(lists, sender):
    ids = [messages.copy_ids(one, "ids") for one in lists]
    packed = messages.pack(messages.READY, {"id": "r", "x": [1, None]}, ids)
    joiner = Joiner(bytes)
    parts = messages.frames(sender, 7, packed)
    assert all(len(part) <= 4096 for part in parts)
    assert [joiner.add(part) for part in parts[:-1]] == [None] * (len(parts) - 1)
    message = messages.unpack(joiner.add(parts[-1]))
    assert message.fields["id"] == "r" and [list(one) for one in message.ids] == lists


def test_parts_of_several_senders_may_be_mixed():
    texts = {sender: bytes([sender]) * 10000 for sender in (1, 2)}
    joiner = Joiner(bytes)
    out = [joiner.add(part) for pair in zip(*(messages.frames(s, 1, t) for s, t in texts.items()))
           for part in pair]
    assert [one for one in out if one is not None] == list(texts.values())


def test_a_message_that_broke_off_does_not_spoil_the_next():
    joiner = Joiner(bytes)
    first, second = (messages.frames(5, n, bytes(9000)) for n in (1, 2))
    joiner.add(first[0])
    with pytest.raises(errors.ProtocolError, match="out of order"):
        joiner.add(first[2])
    assert [joiner.add(part) is not None for part in second] == [False, False, True]


@hypothesis.given(st.binary(max_size=100))
def test_bytes_that_are_no_message_are_protocol_errors(data):
    for read in (messages.unpack, Joiner(bytes).add):
        with pytest.raises(errors.ProtocolError):
            read(data)
