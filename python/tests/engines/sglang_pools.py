"""SGLang's own memory pools on the CPU, with contents that can be told apart.

Whatever a pool holds, it is a list of fields here: a tensor whose first dimension are token rows or
slots, and which of the model's units (heads, dims) it has. Contents of a request depend on the
request, the field and the unit, so that a rank with other units can say what it should have got.
"""

import contextlib
import zlib
from types import SimpleNamespace

import numpy as np
import torch
from sglang.srt.configs.mamba_utils import (
    KimiLinearCacheParams,
    KimiLinearStateShape,
    Mamba2CacheParams,
    Mamba2StateDType,
    Mamba2StateShape,
)
from sglang.srt.disaggregation.utils import get_dsa_tail_state_indices
from sglang.srt.mem_cache.memory_pool import (
    DSATokenToKVPool,
    HybridLinearKVPool,
    MambaPool,
    MHATokenToKVPool,
    MLATokenToKVPool,
)
from sglang.srt.mem_cache.swa_memory_pool import SWAKVPool

from kvxfer.sglang.memory import allocations


class Field:
    """``index``: what addresses it: "tokens", "window" (its tokens), "row", "tail"."""

    def __init__(
        self, name, tensor, first, total, *, axis=1, index="tokens", blocks=None, per_page=0
    ):
        self.name, self.tensor, self.axis, self.index = name, tensor, axis, index
        self.first, self.total, self.blocks, self.per_page = first, total, blocks, per_page

    def values(self, room, n):
        """[n] + shape of the tensor's items, float32, of this rank's units."""
        shape = list(self.tensor.shape)
        shape[0] = n
        shape[self.axis] = self.total
        seed = zlib.crc32(f"{room} {self.name}".encode())
        whole = np.random.default_rng(seed).integers(-100, 100, shape).astype(np.float32)
        units = self.tensor.shape[self.axis]
        if self.blocks is None:
            mine = np.arange(self.first, self.first + units)
        else:  # sub-blocks are shared out each for itself
            tp = self.total // units
            rank = self.first // units
            starts = np.cumsum([0, *self.blocks])
            mine = np.concatenate(
                [
                    np.arange(start + rank * n // tp, start + (rank + 1) * n // tp)
                    for start, n in zip(starts, self.blocks)
                ]
            )
        return torch.from_numpy(np.take(whole, mine, axis=self.axis))


class Pools:
    def __init__(self, model, kv, fields, *, draft=None, req_to_token=None, full_layers=()):
        self.model, self.kv, self.draft = model, kv, draft
        self.fields, self.req_to_token, self.full_layers = fields, req_to_token, list(full_layers)

    def fill_canary(self, value):
        for field in self.fields:
            field.tensor.fill_(value)

    # ---- where a request lies

    def _rows(self, field, request):
        """(positions among the request's values, rows of the tensor)."""
        page = self.model.page
        n = request.n - request.prefix
        if field.index == "row":
            return np.zeros(1, int), np.array([request.row])
        if field.index == "tail":
            six = get_dsa_tail_state_indices(self.kv, request.row, request.n)
            if not six:
                return np.zeros(0, int), np.zeros(0, int)
            slots = [*range(six[1], six[1] + six[2]), *range(six[3], six[3] + six[4])]
            return np.arange(len(slots)), np.array([six[0] * six[5] + slot for slot in slots])
        if field.index == "window":
            start = (
                max(request.prefix, request.n - self.model.window) // page * page - request.prefix
            )
            tokens = np.arange(max(start, 0), n)
        else:
            tokens = np.arange(n)
        pages = np.array(request.pages, int)
        if field.per_page:  # one item per page
            at = np.unique(tokens // page)
            return at, pages[at]
        return tokens, pages[tokens // page] * page + tokens % page

    def state_indices(self, request):
        """What SGLang's scheduler gives for each component."""
        out = []
        for kind in self.components():
            if kind == "mamba":
                out.append([np.array([request.row], np.int32)][0])
            elif kind == "swa":
                fields = [f for f in self.fields if f.index == "window"]
                _, rows = self._rows(fields[0], request)
                out.append(
                    np.unique(rows // self.model.page).astype(np.int32)[
                        np.argsort(np.unique(rows // self.model.page, return_index=True)[1])
                    ]
                )
            elif kind == "dsa":
                out.append(np.array(request.pages, np.int32))
            elif kind == "dsa_tail":
                out.append(get_dsa_tail_state_indices(self.kv, request.row, request.n))
        return out or None

    def components(self):
        return {
            "swa": ["swa"],
            "mamba": ["mamba"],
            "dsa": ["dsa"],
            "dsa_tail": ["mamba", "dsa", "dsa_tail"],
        }.get(self.model.kind, [])

    # ---- contents

    def write(self, room, request):
        for field in self.fields:
            at, rows = self._rows(field, request)
            if len(rows):
                values = field.values(room, int(at.max()) + 1)[at]
                field.tensor[torch.from_numpy(rows)] = values.to(field.tensor.dtype)

    def compare(self, room, request):
        for field in self.fields:
            at, rows = self._rows(field, request)
            if len(rows):
                want = field.values(room, int(at.max()) + 1)[at].to(field.tensor.dtype)
                got = field.tensor[torch.from_numpy(rows)]
                wrong = (got != want).flatten(1).any(1).sum().item()
                assert not wrong, f"{field.name}: {wrong} of {len(rows)} rows are wrong"

    def _all_rows(self, field, request):
        """Rows that a transfer of the request may write: whole pages."""
        if field.index == "row":
            return np.array([request.row] if request.row else [], int)
        if field.index == "tail":
            size = self.kv.index_kpool + self.kv.tail_extra_slots
            if not request.row:
                return np.zeros(0, int)
            return np.arange(request.row * size, (request.row + 1) * size)
        pages = np.array(request.pages, int)
        if field.per_page:
            return pages
        page = self.model.page
        return (pages[:, None] * page + np.arange(page)).ravel()

    def mark(self, request, value):
        for field in self.fields:
            rows = self._all_rows(field, request)
            if len(rows):
                field.tensor[torch.from_numpy(rows)] = value

    def intact(self, requests, value):
        """Nothing outside of these requests differs from the value."""
        for field in self.fields:
            other = torch.ones(field.tensor.shape[0], dtype=torch.bool)
            for request in requests:
                rows = self._all_rows(field, request)
                if len(rows):
                    other[torch.from_numpy(rows)] = False
            canary = torch.full((), value).to(field.tensor.dtype)
            wrong = (field.tensor != canary).flatten(1).any(1) & other
            assert not wrong.any(), f"{field.name}: {int(wrong.sum())} rows of nobody were written"

    def touched(self, pages, value):
        """Rows of these pages that differ from the value."""
        request = SimpleNamespace(pages=pages, row=0)
        n = 0
        for field in self.fields:
            rows = self._all_rows(field, request)
            if len(rows) and field.index != "tail":
                canary = torch.full((), value).to(field.tensor.dtype)
                n += int((field.tensor[torch.from_numpy(rows)] != canary).flatten(1).any(1).sum())
        return n


def make_pools(model, tp, tp_size, pp=0, pp_size=1):
    """As SGLang's model runner: under kvxfer's hook, which puts them into shared memory."""
    with contextlib.nullcontext() if model.private else allocations():
        return _MAKERS[model.kind](model, tp, tp_size, pp, pp_size)


def _heads(model, tp, tp_size):
    """(heads of this rank, first): few heads are on several ranks."""
    if model.heads >= tp_size:
        n = model.heads // tp_size
        return n, tp * n
    return 1, tp * model.heads // tp_size


def _mha_pool(model, n_heads, layers, start, **more):
    return MHATokenToKVPool(
        model.tokens,
        model.page,
        torch.float32,
        n_heads,
        model.dim,
        layers,
        "cpu",
        False,
        start_layer=start,
        end_layer=start + layers,
        **more,
    )


def _mha_fields(pool, prefix, first, total, start, index="tokens"):
    return [
        Field(f"{prefix}{which}{start + i}", buffer, first, total, index=index)
        for which, buffers in (("k", pool.k_buffer), ("v", pool.v_buffer))
        for i, buffer in enumerate(buffers)
    ]


def _stage(model, pp, pp_size):
    n = model.layers // pp_size
    return n, pp * n


def _mha(model, tp, tp_size, pp, pp_size):
    layers, start = _stage(model, pp, pp_size)
    n, first = _heads(model, tp, tp_size)
    pool = _mha_pool(model, n, layers, start)
    fields = _mha_fields(pool, "", first, model.heads, start)
    draft = None
    if model.draft_layers:
        draft = _mha_pool(model, n, model.draft_layers, 0)
        fields += _mha_fields(draft, "draft", first, model.heads, 0)
    return Pools(model, pool, fields, draft=draft)


def _mla_args(model):
    return dict(kv_lora_rank=model.dim * 2, qk_rope_head_dim=model.dim)


def _mla(model, tp, tp_size, pp, pp_size):
    layers, start = _stage(model, pp, pp_size)
    pool = MLATokenToKVPool(
        model.tokens,
        model.page,
        torch.float32,
        layer_num=layers,
        device="cpu",
        enable_memory_saver=False,
        start_layer=start,
        end_layer=start + layers,
        **_mla_args(model),
    )
    fields = [Field(f"latent{start + i}", buffer, 0, 1) for i, buffer in enumerate(pool.kv_buffer)]
    return Pools(model, pool, fields)


def _swa(model, tp, tp_size, pp, pp_size):
    n, first = _heads(model, tp, tp_size)
    full, window = [0, 2], [1]
    pool = SWAKVPool(
        model.tokens, model.tokens, model.page, torch.float32, n, model.dim, window, full, "cpu"
    )
    fields = _mha_fields(pool.full_kv_pool, "full", first, model.heads, 0)
    fields += _mha_fields(pool.swa_kv_pool, "swa", first, model.heads, 0, index="window")
    return Pools(model, pool, fields)


def _states(model, tp, tp_size):
    """Linear attention in layers 0 and 2: (pool, fields)."""
    dtype = Mamba2StateDType(conv=torch.float32, temporal=torch.float32)
    if model.kda:
        shape = KimiLinearStateShape.create(tp_world_size=tp_size, num_heads=4, head_dim=model.dim)
        params = KimiLinearCacheParams(shape=shape, layers=[0, 2], dtype=dtype)
    else:
        shape = Mamba2StateShape.create(
            tp_world_size=tp_size,
            intermediate_size=32,
            n_groups=4,
            num_heads=4,
            head_dim=8,
            state_size=4,
            conv_kernel=4,
            conv_shard_groups=model.conv_blocks,
        )
        params = Mamba2CacheParams(shape=shape, layers=[0, 2], dtype=dtype)
    pool = MambaPool(
        size=model.rows,
        spec_state_size=0,
        cache_params=params,
        mamba_layer_ids=[0, 2],
        device="cpu",
    )
    conv, temporal = pool.mamba_cache.conv[0], pool.mamba_cache.temporal
    axis = 2 if model.kda else 1
    units, heads = conv.shape[1 + axis], temporal.shape[2]
    fields = []
    for i in range(2):
        fields.append(
            Field(
                f"conv{i}",
                conv[i],
                tp * units,
                units * tp_size,
                axis=axis,
                index="row",
                blocks=shape.conv_shard_groups,
            )
        )
        fields.append(Field(f"temporal{i}", temporal[i], tp * heads, heads * tp_size, index="row"))
    return pool, fields


def _mamba(model, tp, tp_size, pp, pp_size):
    states, fields = _states(model, tp, tp_size)
    n, first = _heads(model, tp, tp_size)
    pool = HybridLinearKVPool(
        model.tokens, torch.float32, model.page, n, model.dim, [1, 3], "cpu", states
    )
    fields += _mha_fields(pool.full_kv_pool, "full", first, model.heads, 0)
    return Pools(model, pool, fields, full_layers=[1, 3])


def _latent_fields(pool):
    fields = [Field(f"latent{i}", buffer, 0, 1) for i, buffer in enumerate(pool.kv_buffer)]
    return fields + [
        Field(f"index{i}", buffer.view(torch.int8), 0, buffer.shape[1], per_page=1)
        for i, buffer in enumerate(pool.index_k_with_scale_buffer)
    ]


def _dsa(model, tp, tp_size, pp, pp_size):
    pool = DSATokenToKVPool(
        model.tokens,
        model.page,
        dtype=torch.float32,
        layer_num=model.layers,
        device="cpu",
        index_head_dim=128,
        enable_memory_saver=False,
        kv_cache_dim=model.dim * 3,
        **_mla_args(model),
    )
    return Pools(model, pool, _latent_fields(pool))


def _dsa_tail(model, tp, tp_size, pp, pp_size):
    """Linear attention and sparse MLA, whose index has a ring for the open pool of each request."""
    states, fields = _states(model, tp, tp_size)
    pool = HybridLinearKVPool(
        model.tokens,
        torch.float32,
        model.page,
        1,
        model.dim,
        [1, 3],
        "cpu",
        states,
        use_mla=True,
        use_dsa=True,
        index_head_dim=128,
        kv_cache_dim=model.dim * 3,
        index_kpool=2,
        index_kpool_compress=True,
        tail_extra_slots=1,
        max_running_requests=model.rows,
        **_mla_args(model),
    )
    full = pool.full_kv_pool
    fields += _latent_fields(full)
    for name, buffers in (("k", full._compress_tail_k), ("s", full._compress_tail_score)):
        fields += [
            Field(f"tail{name}{i}", buffer.flatten(0, 1), 0, buffer.shape[2], index="tail")
            for i, buffer in enumerate(buffers)
        ]
    return Pools(model, pool, fields, full_layers=[1, 3])


_MAKERS = {
    "mha": _mha,
    "mla": _mla,
    "swa": _swa,
    "mamba": _mamba,
    "dsa": _dsa,
    "dsa_tail": _dsa_tail,
}
