"""What a KVArgs becomes: groups, layers and parts. Values only; test_sglang_transfer moves them."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch", reason="needs torch")

import kvxfer  # noqa: E402
from kvxfer.sglang.geometry import Facts, Heads, Place, describe  # noqa: E402
from kvxfer.sglang.memory import allocations  # noqa: E402

PAGE = 4
HEAD = 32  # bytes


@pytest.fixture
def shared():
    """shared(item bytes, items) -> (address, bytes): a buffer in shared memory."""
    keep = []

    def make(item, items=8):
        with allocations():
            keep.append(torch.zeros((items, item), dtype=torch.uint8, device="cpu"))
        return keep[-1].data_ptr(), keep[-1].nbytes

    yield make


def kv_args(shared, kv, *, states=(), aux=(64, 32), **more):
    """``kv``: item lengths; ``states``: (type, item lengths, dims, conv groups, rows, layers)."""
    args = SimpleNamespace(
        page_size=PAGE,
        num_draft_entries=0,
        kv_layer_ids=[],
        state_types=[],
        state_data_ptrs=[],
        state_data_lens=[],
        state_item_lens=[],
        state_dim_per_tensor=[],
        state_conv_shard_groups=[],
        state_slice_outer_counts=[],
        state_layer_ids=[],
        mla_compression_ratios=None,
    )
    for prefix, items in (("kv", kv), ("aux", aux)):
        places = [shared(item) for item in items]
        setattr(args, f"{prefix}_data_ptrs", [address for address, _ in places])
        setattr(args, f"{prefix}_data_lens", [nbytes for _, nbytes in places])
        setattr(args, f"{prefix}_item_lens", list(items))
    for kind, items, dims, groups, rows, ids in states:
        places = [shared(max(item, 1)) for item in items]
        args.state_types.append(kind)
        args.state_data_ptrs.append([address for address, _ in places])
        args.state_data_lens.append([n if item else 0 for (_, n), item in zip(places, items)])
        args.state_item_lens.append(list(items))
        args.state_dim_per_tensor.append(dims)
        args.state_conv_shard_groups.append(groups)
        args.state_slice_outer_counts.append(rows)
        args.state_layer_ids.append(ids)
    args.__dict__.update(more)
    return args


def parts(layout, group):
    return {
        part.kind: (part.unit_bytes, part.units, part.first_unit, part.total_units, part.order)
        for part in layout.groups[group].parts
    }


def test_heads_of_a_rank(shared):
    args = kv_args(shared, [PAGE * 2 * HEAD] * 4)
    layout = describe(args, Facts(kv=Heads(2, 4, 8, "NHD")), Place(2, 4), latent=False, aux=True)
    group = layout.groups[layout.kv[0]]
    assert group.layers == ("0", "1") and group.block_tokens == PAGE and group.n_blocks == 8
    assert parts(layout, layout.kv[0]) == {"k": (HEAD, 2, 4, 8, "NHD"), "v": (HEAD, 2, 4, 8, "NHD")}
    assert layout.tp_bound == () and layout.states == ()
    layout.pool()


def test_pages_that_cannot_be_cut_belong_to_their_rank(shared):
    args = kv_args(shared, [640] * 2)
    layout = describe(args, Facts(), Place(1, 4), latent=False, aux=True)
    assert parts(layout, layout.kv[0])["k"] == (640, 1, 1, 4, "NHD")
    assert layout.tp_bound == ("kv",)


def test_latents_are_everybodys(shared):
    layout = describe(kv_args(shared, [96] * 3), Facts(), Place(1, 4), latent=True, aux=True)
    assert parts(layout, layout.kv[0]) == {"latent": (96, 1, 0, 1, "")}
    assert layout.groups[0].layers == ("0", "1", "2") and layout.tp_bound == ()


def test_layers_of_a_stage_have_the_names_of_the_model(shared):
    args = kv_args(shared, [96] * 3)
    layout = describe(args, Facts(start_layer=6), Place(pp=2, pp_size=4), latent=True, aux=False)
    assert layout.groups[0].layers == ("6", "7", "8") and layout.aux == ()


def test_layers_of_unknown_place_only_fit_the_same_stage(shared):
    args = kv_args(shared, [96] * 4)
    layout = describe(args, Facts(), Place(pp=1, pp_size=2), latent=False, aux=False)
    assert layout.groups[0].layers == ("p1of2.0", "p1of2.1")


def test_hybrid_models_name_their_layers(shared):
    args = kv_args(shared, [PAGE * HEAD] * 4, kv_layer_ids=[3, 7, 3, 7])
    layout = describe(args, Facts(kv=Heads(1, 0, 1, "NHD")), Place(), latent=False, aux=True)
    assert layout.groups[0].layers == ("3", "7") and set(parts(layout, 0)) == {"k", "v"}


def test_layers_that_differ_are_groups_of_their_own(shared):
    layout = describe(kv_args(shared, [96, 192, 96]), Facts(), Place(), latent=True, aux=True)
    assert sorted(layout.groups[i].layers for i in layout.kv) == [("0", "2"), ("1",)]


def test_draft_layers_are_optional(shared):
    args = kv_args(shared, [PAGE * HEAD] * 6, num_draft_entries=2)
    layout = describe(
        args,
        Facts(kv=Heads(1, 0, 1, "NHD"), draft=Heads(1, 0, 1, "NHD")),
        Place(),
        latent=False,
        aux=True,
    )
    target, draft = (layout.groups[i] for i in layout.kv)
    assert not target.optional and draft.optional and draft.layers == ("d0",)


def test_metadata_is_one_row_of_all_buffers(shared):
    layout = describe(
        kv_args(shared, [96], aux=(64, 32, 128)), Facts(), Place(), latent=True, aux=True
    )
    group = layout.groups[layout.aux[0]]
    assert [part.unit_bytes for part in group.parts] == [64, 32, 128]
    assert group.layers == ("row",) and group.n_blocks == 8


def test_temporal_states_are_cut_by_their_dims(shared):
    state = ("mamba", [4 * 48, 4 * 48], [4, 4], [None, None], [1, 1], [0, 2])
    layout = describe(
        kv_args(shared, [96], states=[state]), Facts(), Place(1, 2), latent=True, aux=True
    )
    assert parts(layout, layout.states[0][0]) == {"dims": (48, 4, 4, 8, "NHD")}
    assert layout.groups[layout.states[0][0]].layers == ("0", "2")


def test_convolutions_are_cut_by_sub_block_and_row(shared):
    state = ("mamba", [3 * 8 * 4], [8], [[4, 4, 8]], [3], [5])
    layout = describe(
        kv_args(shared, [96], states=[state]), Facts(), Place(1, 2), latent=True, aux=True
    )
    found = parts(layout, layout.states[0][0])
    assert (
        len(found) == 9
        and found["r2b2"] == (4, 4, 4, 8, "NHD")
        and found["r0b0"] == (4, 2, 2, 4, "NHD")
    )
    base = layout.planes[layout.states[0][0], 0, 0][1]
    offsets = [layout.planes[layout.states[0][0], 0, p][1] - base for p in range(9)]
    assert offsets == [row * 32 + at for row in range(3) for at in (0, 8, 16)]
    layout.pool()


def test_convolutions_of_unknown_sub_blocks_are_not_cut(shared):
    state = ("mamba", [96], [8], [None], [1], [5])
    args = kv_args(shared, [96], states=[state])
    start = args.state_data_ptrs[0][0]
    layout = describe(
        args, Facts(conv=((start, start + 96 * 8),)), Place(1, 2), latent=True, aux=True
    )
    assert parts(layout, layout.states[0][0]) == {"mamba": (96, 1, 1, 2, "NHD")}
    assert layout.tp_bound == ("mamba",)


def test_replicated_states_are_everybodys(shared):
    state = ("mamba", [96], [0], [None], [1], [5])
    layout = describe(
        kv_args(shared, [96], states=[state]), Facts(), Place(1, 2), latent=True, aux=True
    )
    assert parts(layout, layout.states[0][0]) == {"same": (96, 1, 0, 1, "")}


@pytest.mark.parametrize(
    "kind, latent, bound",
    [
        ("dsa", True, ()),
        ("swa_ring", True, ()),
        ("minimax_index_k", False, ("minimax_index_k",)),
        ("qsa_pending", False, ("qsa_pending",)),
        ("block_scale", False, ("block_scale",)),
    ],
)
def test_other_states(shared, kind, latent, bound):
    state = (kind, [96, 96], [], [], [], [])
    layout = describe(
        kv_args(shared, [96], states=[state]), Facts(), Place(), latent=latent, aux=True
    )
    assert set(layout.tp_bound) - {"kv"} == set(bound)


def test_layers_without_a_buffer_keep_the_others_names(shared):
    state = ("dsa", [0, 96, 0, 96], [], [], [], [])
    layout = describe(
        kv_args(shared, [96], states=[state]), Facts(), Place(), latent=True, aux=True
    )
    assert layout.groups[layout.states[0][0]].layers == ("1", "3")


def test_two_states_of_one_kind(shared):
    state = ("swa", [96], [], [], [], [])
    layout = describe(
        kv_args(shared, [96], states=[state, state]), Facts(), Place(), latent=True, aux=True
    )
    names = [layout.groups[groups[0]].name for groups in layout.states]
    assert len(set(names)) == 2


@pytest.mark.parametrize(
    "facts, kv, text",
    [(Facts(kv=Heads(3, 0, 3, "NHD")), [PAGE * 2 * HEAD], "does not hold 3 heads")],
)
def test_what_does_not_divide(shared, facts, kv, text):
    with pytest.raises(kvxfer.errors.Unsupported, match=text):
        describe(kv_args(shared, kv * 2), facts, Place(), latent=False, aux=True)


def test_tail_without_its_number_of_slots(shared):
    state = ("dsa_tail", [96], [], [], [], [])
    with pytest.raises(kvxfer.errors.Unsupported, match="kpool tail"):
        describe(kv_args(shared, [96], states=[state]), Facts(), Place(), latent=True, aux=True)
