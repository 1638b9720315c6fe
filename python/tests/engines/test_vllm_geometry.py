"""vLLM's KV cache in kvxfer.pd's words: shapes and strides as vLLM itself makes them."""

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

import torch  # noqa: E402
from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec  # noqa: E402

import vllm_harness as harness  # noqa: E402
from kvxfer.errors import Unsupported  # noqa: E402
from kvxfer.pd import Part  # noqa: E402
from kvxfer.vllm import geometry  # noqa: E402
from kvxfer.vllm.states import Sharing, parts_of  # noqa: E402

CONTENT = 2 * harness.HEAD_SIZE * 4


def describe(groups=("full",), layout="LBHNC", tp=1, rank=0, total=harness.HEADS, kernel=None,
             block=harness.BLOCK, backends=()):
    layout = harness.KVCacheLayout[layout]
    config = harness._kv_cache(groups, tp, 8, layout, block)
    tensors = harness.allocate_kv_cache(config, torch.device("cpu"), layout,
                                        [kernel or block] * len(groups))
    return geometry.describe(config, tensors, geometry.Shards(rank, tp, total, backends))


@pytest.mark.parametrize("layout, order", [("LBHNC", "HND"), ("LBNHC", "NHD"), ("BLHNC", "HND"),
                                           ("BLNHC", "NHD")])
def test_order_of_heads_and_tokens_is_told_by_the_strides(layout, order):
    (group,) = describe(layout=layout).groups
    assert group.parts == (Part("kv", CONTENT, 4, 0, 4, order),)
    assert (group.block_tokens, group.n_blocks, len(group.layers)) == (16, 8, 3)


@pytest.mark.parametrize("layout", ["LHBNC", "BHLNC"])
def test_heads_that_lie_apart_are_planes_of_their_own(layout):
    found = describe(layout=layout)
    assert found.groups[0].parts == tuple(Part("kv", CONTENT, 1, h, 4, "HND") for h in range(4))
    assert found.planes[0, 0, 2].shape == (8, 16, CONTENT // 4)


@pytest.mark.parametrize("tp, rank, units, first", [(2, 1, 2, 2), (4, 3, 1, 3), (8, 5, 1, 2)])
def test_a_rank_names_its_heads_among_the_models(tp, rank, units, first):
    (part,) = describe(tp=tp, rank=rank).groups[0].parts
    assert (part.units, part.first_unit, part.total_units) == (units, first, 4)


def test_latents_are_the_same_on_every_rank():
    parts = {describe(("mla",), tp=4, rank=rank).groups[0].parts for rank in range(4)}
    assert parts == {(Part("latent", 16 * 24 * 4, 1, 0, 1, ""),)}


@pytest.mark.parametrize("layout, tokens, n_blocks, ratio", [("LBHNC", 8, 32, 4),
                                                             ("LBNHC", 32, 8, 1)])
def test_kernel_blocks_are_the_unit_only_where_heads_lie_outside_tokens(layout, tokens, n_blocks,
                                                                        ratio):
    found = describe(layout=layout, block=32, kernel=8)
    assert (found.groups[0].block_tokens, found.groups[0].n_blocks) == (tokens, n_blocks)
    assert found.places == ((geometry.Place(0, ratio),),)


def test_every_group_of_vllm_is_found_again():
    found = describe(("full", "window40"))
    assert [group.name for group in found.groups] == ["0.0", "1.0"]
    assert found.layers["model.layers.4.self_attn.attn"] == (1, 1)
    assert found.origin == (0, 1)


def test_layers_of_one_group_that_differ_are_groups_of_their_own():
    """DeepSeek's indexer caches, for one: they share the block table."""
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    config = harness._kv_cache(("mla",), 1, 8, harness.KVCacheLayout.LBHNC, 16)
    names = config.kv_cache_groups[0].layer_names
    small = MLAAttentionSpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.float32,
                             max_tp_shards=1)
    specs = {name: config.kv_cache_groups[0].kv_cache_spec for name in names}
    specs[names[1]] = small
    config.kv_cache_groups[0].kv_cache_spec = UniformTypeKVCacheSpecs(block_size=16,
                                                                      kv_cache_specs=specs)
    tensors = {name: torch.zeros(8, 1, 16, spec.head_size) for name, spec in specs.items()}
    found = geometry.describe(config, tensors, geometry.Shards(0, 1, 1))
    assert [group.layers for group in found.groups] == [(names[0], names[2]), (names[1],)]
    assert found.places == ((geometry.Place(0, 1), geometry.Place(1, 1)),)


SLOTS = FullAttentionSpec(block_size=16, num_kv_heads=4, head_size=8, dtype=torch.float32,
                          num_head_slots=2, state_content_bytes=4 * 8 * 4)


@pytest.mark.parametrize("backends, parts", [
    (("ROCM_ATTN",), (Part("k", 32, 4, 4, 8, "HND"), Part("v", 32, 4, 4, 8, "HND"))),
    (("OTHER",), (Part("block", 2 * 16 * 128, 1, 1, 2, ""),))], ids=["known", "unknown"])
def test_slots_of_k_and_v_are_cut_by_heads_only_where_that_is_known(backends, parts):
    kind, _ = geometry._layer("x", SLOTS, torch.zeros(8, 2, 16, 32), 8,
                              geometry.Shards(1, 2, 8, backends))
    assert kind.parts == parts


def test_a_cache_that_is_not_known_is_refused_with_the_layers_name():
    config = harness._kv_cache(("full",), 1, 8, harness.KVCacheLayout.LBHNC, 16)
    name = config.kv_cache_groups[0].layer_names[0]
    with pytest.raises(Unsupported, match=name):
        geometry.describe(config, {name: torch.zeros(2, 8, 16, 4, 16)}, geometry.Shards(0, 1, 4))


# ---- states

MAMBA2 = ((24, 3), (2, 4, 8))  # x of 8 columns, B and C of 8 each


def test_states_of_mamba2_are_cut_by_projection_and_head():
    parts = parts_of("MAMBA2", MAMBA2, (4, 4), Sharing(1, 2))
    assert parts == [(Part("state0.x", 12, 8, 8, 16, "HND"), 0),
                     (Part("state0.b", 12, 8, 8, 16, "HND"), 96),
                     (Part("state0.c", 12, 8, 8, 16, "HND"), 192),
                     (Part("state1", 128, 2, 2, 4, "HND"), 288)]


def test_groups_that_are_fewer_than_ranks_are_copies():
    parts = dict((part.kind, part) for part, _ in
                 parts_of("MAMBA2", MAMBA2, (4, 4), Sharing(3, 4, n_groups=2)))
    assert (parts["state0.b"].first_unit, parts["state0.b"].total_units) == (8, 16)
    assert (parts["state0.x"].first_unit, parts["state0.x"].total_units) == (24, 32)


def test_rows_of_the_other_orientation_are_parts_of_their_own():
    parts = parts_of("MAMBA2", ((3, 24), (2, 4, 8)), (4, 4), Sharing(0, 1, columns_first=False))
    assert [(part.kind, offset) for part, offset in parts[:4]] == [
        ("state0.x.0", 0), ("state0.b.0", 32), ("state0.c.0", 64), ("state0.x.1", 96)]
    assert len(parts) == 10


@pytest.mark.parametrize("kind, shapes, names", [
    ("MAMBA1", ((8, 3), (8, 4)), ["state0.x", "state1"]),
    ("GDN_ATTN", ((24, 3), (2, 4, 8)), ["state0.q", "state0.k", "state0.v", "state1"]),
    ("SHORT_CONV", ((8, 3),), ["state0.x"]), ("LINEAR", ((2, 4, 4),), ["state0"])])
def test_other_states_that_are_known(kind, shapes, names):
    parts = parts_of(kind, shapes, (4,) * len(shapes), Sharing(0, 2))
    assert [part.kind for part, _ in parts] == names
    assert all(part.total_units == 2 * part.units for part, _ in parts)


def test_states_that_are_not_known_go_as_a_whole():
    parts = parts_of("CUSTOM", ((5, 3), (2, 4)), (4, 2), Sharing(1, 2))
    assert parts == [(Part("state0", 60, 1, 1, 2, ""), 0), (Part("state1", 16, 1, 1, 2, ""), 60)]
