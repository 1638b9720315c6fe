"""Engines of the real vLLM without a model: real VllmConfig, Scheduler, Requests, KV cache, output
aggregation and connectors; only the forward is ours. It writes into every slot of the KV cache a
number made of the layer, the head and the tokens up to there, so that a block that came from
another engine can be told from one that did not, and calls the connector's hooks where vLLM's
attention does.

Underneath are real daemons (the fixtures of conftest.py).
"""

import collections
import json
import time
import uuid

import torch
from vllm.config import (CacheConfig, DeviceConfig, KVTransferConfig, ModelConfig, ParallelConfig,
                         SchedulerConfig, VllmConfig)
from vllm.distributed.kv_transfer.kv_connector.factory import KVConnectorFactory
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.model_executor.layers.mamba.mamba_utils import is_conv_state_dim_first
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.kv_cache_interface import (FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec,
                                        KVCacheTensor, MambaSpec, MLAAttentionSpec,
                                        SlidingWindowSpec, compute_layout_strides)
from vllm.v1.kv_cache_layout import KVCacheLayout
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.utils import allocate_kv_cache

HEADS = 4
HEAD_SIZE = 8
N_LAYERS = 3
BLOCK = 16
_MODEL = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
          "intermediate_size": 64, "num_attention_heads": 2 * HEADS, "num_key_value_heads": HEADS,
          "head_dim": HEAD_SIZE, "num_hidden_layers": N_LAYERS, "vocab_size": 1000,
          "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "torch_dtype": "float32",
          "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu"}
_numbers = iter(range(20000, 60000))


def next_number():
    """Of an engine on its node."""
    return next(_numbers)


def zmq_of(engine):
    """As the engine registers with a proxy."""
    host, port = engine.daemon.rsplit(":", 1)
    return f"host:{host},handshake:{port},notify:{engine.number}"


def routed_id(prefill, decode):
    """A request id of vllm-router, as vLLM's server wraps it on one side."""
    return (f"cmpl-___prefill_addr_{zmq_of(prefill)}___decode_addr_{zmq_of(decode)}_"
            f"{uuid.uuid4().hex}-0-")


class Engine:
    """One engine instance: a scheduler and ``tp`` workers in this process."""

    def __init__(self, node, path, *, role="kv_producer", tp=1, read_mode=False, blocks=64,
                 max_batched=4096, layout=KVCacheLayout.LBHNC, groups=("full",), prefix_cache=True,
                 policy="recompute", kernel_block=None, async_scheduling=False, block=BLOCK,
                 number=None, **extra):
        self.number = number or next_number()
        self.tp, self.groups, self.block, self.read_mode = tp, groups, block, read_mode
        extra = {"socket": node.socket, "host_ip": "127.0.0.1", "http_port": str(self.number),
                 "read_mode": read_mode, **extra}
        self.transfer = KVTransferConfig(
            kv_connector="KvxferConnector", kv_connector_module_path="kvxfer.vllm", kv_role=role,
            kv_connector_extra_config=extra, kv_load_failure_policy=policy)
        self.configs = [_config(path, self.transfer, rank, tp, max_batched, prefix_cache,
                                async_scheduling, block) for rank in range(tp)]
        for config in self.configs:
            config.cache_config.num_gpu_blocks = blocks
        self.kv_config = _kv_cache(groups, tp, blocks, layout, block)
        self.workers, self.caches = [], []
        for config in self.configs:
            worker = KVConnectorFactory.create_connector(config, KVConnectorRole.WORKER,
                                                         self.kv_config)
            with worker.get_mem_pool_context():
                caches = allocate_kv_cache(self.kv_config, torch.device("cpu"), layout, [
                    1024 if kind == "mamba" else kernel_block or block for kind in groups])
            worker.register_kv_caches(caches)
            self.workers.append(worker)
            self.caches.append(caches)
        scheduler_class = self.configs[0].scheduler_config.get_scheduler_cls()
        self.scheduler = scheduler_class(
            vllm_config=self.configs[0], kv_cache_config=self.kv_config,
            structured_output_manager=StructuredOutputManager(self.configs[0]),
            block_size=max(group.kv_cache_spec.block_size
                           for group in self.kv_config.kv_cache_groups),
            hash_block_size=block, log_stats=True)
        handshakes = {(0, rank): worker.get_handshake_metadata()
                      for rank, worker in enumerate(self.workers)}
        self.scheduler.connector.set_xfer_handshake_metadata_pp_aware(handshakes)
        self.daemon = f"{handshakes[0, 0].host}:{handshakes[0, 0].port}"
        self.aggregator = KVOutputAggregator.from_connector(self.workers[0], tp)
        hash_fn = get_hash_fn_by_name("sha256")
        init_none_hash(hash_fn)
        self.hasher = get_request_block_hasher(block, hash_fn)
        self.outputs, self.stats = {}, None
        self.running, self.depth = collections.deque(), int(async_scheduling)
        self.sent, self.received, self.invalid = set(), set(), set()
        self.hooks = True
        self.after_layer = lambda layer: None

    def add(self, tokens, params, *, request_id=None, max_tokens=1):
        request_id = (request_id or "cmpl-x-0-") + uuid.uuid4().hex[:8]
        sampling = SamplingParams(max_tokens=max_tokens,
                                  extra_args={"kv_transfer_params": params} if params else None)
        sampling.update_from_generation_config({}, 2)
        request = Request(request_id=request_id, prompt_token_ids=list(tokens),
                          sampling_params=sampling, pooling_params=None, block_hasher=self.hasher)
        self.scheduler.add_request(request)
        return request

    def abort(self, request):
        self.scheduler.finish_requests([request.request_id], RequestStatus.FINISHED_ABORTED)

    def step(self):
        """One step of the engine core; with asynchronous scheduling, what the step before has
        brought is seen only after this one has been scheduled. Returns the scheduler's output."""
        output = self.scheduler.schedule()
        results = [self._run(rank, output) for rank in range(self.tp)]
        self.running.append((output, self.aggregator.aggregate(results)))
        while len(self.running) > self.depth:
            self._update(*self.running.popleft())
        return output

    def _update(self, output, result):
        kv = result.kv_connector_output
        self.sent |= kv.finished_sending or set()
        self.received |= kv.finished_recving or set()
        self.invalid |= kv.invalid_block_ids
        if kv.kv_connector_stats:
            self.stats = kv.kv_connector_stats
        for client in self.scheduler.update_from_output(output, result).values():
            for one in client.outputs:
                self.outputs.setdefault(one.request_id, []).append(one)

    def busy(self):
        return self.scheduler.has_requests() or bool(self.running) and self.running[0][
            0].total_num_scheduled_tokens > 0

    def computed(self):
        """Request id -> tokens computed."""
        return {id: request.num_computed_tokens for id, request in self.scheduler.requests.items()}

    def used_blocks(self):
        pool = self.scheduler.kv_cache_manager.block_pool
        return self.kv_config.num_blocks - 1 - pool.get_num_free_blocks()

    def tables(self, request):
        return self.scheduler.kv_cache_manager.get_block_ids(request.request_id)

    def leftovers(self):
        """What the connector still keeps of requests, by name; but for ids it remembers."""
        found = {}
        ours = [w._worker._ours for w in self.workers]
        for half in [self.scheduler.connector._scheduler, *(o.sender for o in ours),
                     *(o.receiver for o in ours)]:
            for name, value in vars(half).items():
                if isinstance(value, (dict, set, list)) and value and name not in (
                        "_asked", "_rules", "_all"):
                    found[name] = value
        return found

    def moved_bytes(self):
        """That this engine's workers have moved, in or out."""
        return sum(worker.counters()["bytes_in"] + worker.counters()["bytes_out"]
                   for worker in self.workers)

    def block_bytes(self):
        """Of all layers of one block."""
        page = sum(group.kv_cache_spec.page_size_bytes * len(group.layer_names)
                   for group in self.kv_config.kv_cache_groups)
        return page * self.tp

    def close(self):
        for worker in self.workers:
            worker.shutdown()
        self.scheduler.shutdown()

    # ---- the worker's step, in vLLM's order

    def _run(self, rank, output):
        worker = self.workers[rank]
        worker.handle_preemptions(output.kv_connector_metadata)
        worker.bind_connector_metadata(output.kv_connector_metadata)
        if output.total_num_scheduled_tokens:
            for layer in self.layers():
                worker.wait_for_layer_load(layer)
                self._forward(rank, layer, output)
                if self.hooks:
                    worker.save_kv_layer(layer, self.caches[rank][layer], None)
                self.after_layer(layer)
        worker.start_load_kv(None)
        worker.wait_for_save()
        ended = worker.get_transfer_results(output.finished_req_ids)
        kv = KVConnectorOutput(
            finished_sending=ended.finished_sending or None,
            finished_recving=ended.finished_recving or None,
            failed_recving=ended.failed_recving,
            invalid_block_ids=worker.get_block_ids_with_load_errors(),
            kv_connector_stats=worker.get_kv_connector_stats())
        worker.clear_connector_metadata()
        ids = list(output.num_scheduled_tokens)
        return ModelRunnerOutput(
            req_ids=ids, req_id_to_index={id: i for i, id in enumerate(ids)},
            sampled_token_ids=[self._sample(id, output) for id in ids], kv_connector_output=kv)

    def _sample(self, request_id, output):
        request = self.scheduler.requests[request_id]
        return [7] if request.num_computed_tokens >= request.num_tokens else []

    def _forward(self, rank, layer, output):
        group = self.group_of(layer)
        for request_id, n in output.num_scheduled_tokens.items():
            request = self.scheduler.requests[request_id]
            end = request.num_computed_tokens  # of after the step: it has been advanced
            table = self.scheduler.kv_cache_manager.get_block_ids(request_id)[group]
            if self.groups[group] == "mamba":
                self.state(rank, layer, table[-1]).copy_(
                    self.expected_state(rank, layer, request.all_token_ids[:end]))
                continue
            for position in range(end - n, end):
                block = table[position // self.block]
                if block:
                    self.slot(rank, layer, block, position % self.block).copy_(
                        self.expected(rank, layer, request.all_token_ids, position))

    # ---- what is in the cache

    def layers(self):
        return [name for group in self.kv_config.kv_cache_groups for name in group.layer_names]

    def group_of(self, layer):
        return next(i for i, group in enumerate(self.kv_config.kv_cache_groups)
                    if layer in group.layer_names)

    def slot(self, rank, layer, block, offset):
        """[heads, content] of one token."""
        cache = self.caches[rank][layer]
        kernel_block = cache.shape[2]
        ratio = self.block // kernel_block
        return cache[block * ratio + offset // kernel_block, :, offset % kernel_block, :]

    def expected(self, rank, layer, tokens, position):
        heads = self.caches[rank][layer].shape[1]
        shards = min(self.tp, HEADS) if heads * self.tp >= HEADS and heads > 0 else 1
        first = 0 if "mla" in self.groups else rank * shards // self.tp * heads
        seed = hash((layer, tuple(tokens[:position + 1]))) % 100003
        head = torch.arange(first, first + heads, dtype=torch.float32).unsqueeze(1)
        content = torch.arange(self.caches[rank][layer].shape[3], dtype=torch.float32)
        return seed + head * 0.25 + content * 0.001

    def state(self, rank, layer, block):
        """The bytes of one state."""
        spec = self.kv_config.kv_cache_groups[self.group_of(layer)].kv_cache_spec
        return self.caches[rank][layer][block].flatten()[:spec.state_content_size_bytes]

    def expected_state(self, rank, layer, tokens):
        """This rank's share of the state after ``tokens``: x, B, C and the heads."""
        seed = hash((layer, tuple(tokens))) % 100003
        pieces = []
        for i, columns in enumerate((16, 16, 16)):
            whole = seed + i + torch.arange(columns * 3).view(columns, 3) * 0.25
            pieces.append(whole.chunk(self.tp)[rank])
        conv = torch.cat(pieces)
        conv = conv if is_conv_state_dim_first() else conv.t().contiguous()
        heads = (seed + torch.arange(4 * 4 * 8) * 0.125).chunk(self.tp)[rank]
        return torch.cat([conv.flatten(), heads]).to(torch.float32).view(torch.int8)

    def wrong(self, request, end=None, layers=None):
        """Positions of the prompt whose KV is not what it must be (of those that are kept)."""
        found = []
        tokens = request.prompt_token_ids
        tables = self.tables(request)
        for rank in range(self.tp):
            for layer in layers or self.layers():
                table = tables[self.group_of(layer)]
                if self.groups[self.group_of(layer)] == "mamba":
                    if not torch.equal(self.state(rank, layer, table[-1]),
                                       self.expected_state(rank, layer, tokens[:end])):
                        found.append((rank, layer, "state"))
                    continue
                for position in range(len(tokens) if end is None else end):
                    block = table[position // self.block]
                    if block and not torch.equal(
                            self.slot(rank, layer, block, position % self.block),
                            self.expected(rank, layer, tokens, position)):
                        found.append((rank, layer, position))
        return found


def model_path(folder):
    """A model that exists as a configuration only."""
    (folder / "config.json").write_text(json.dumps(_MODEL))
    return str(folder)


def _config(path, transfer, rank, tp, max_batched, prefix_cache, async_scheduling, block):
    model = ModelConfig(model=path, skip_tokenizer_init=True, dtype="float32", max_model_len=1024,
                        enforce_eager=True)
    parallel = ParallelConfig(tensor_parallel_size=tp)
    config = VllmConfig(
        model_config=model, parallel_config=parallel, kv_transfer_config=transfer,
        cache_config=CacheConfig(block_size=block, enable_prefix_caching=prefix_cache),
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=max_batched, max_num_seqs=16, max_model_len=1024,
            is_encoder_decoder=False, enable_chunked_prefill=True,
            async_scheduling=async_scheduling),
        device_config=DeviceConfig("cpu"))
    config.parallel_config.rank = rank
    return config


def _spec(kind, tp, block):
    heads = max(1, HEADS // tp)
    if kind == "mla":
        return MLAAttentionSpec(block_size=block, num_kv_heads=1, head_size=24, dtype=torch.float32,
                                max_tp_shards=1)
    if kind == "mamba":
        return _mamba(tp)
    if kind.startswith("window"):
        return SlidingWindowSpec(block_size=block, num_kv_heads=heads, head_size=HEAD_SIZE,
                                 dtype=torch.float32, sliding_window=int(kind[6:]))
    return FullAttentionSpec(block_size=block, num_kv_heads=heads, head_size=HEAD_SIZE,
                             dtype=torch.float32)


def _mamba(tp, page=None):
    """Mamba2 with 4 heads of 4, states of 8, 2 groups: x of 16 columns, B and C of 16 each."""
    columns = (16 + 2 * 16) // tp
    conv = (columns, 3) if is_conv_state_dim_first() else (3, columns)
    return MambaSpec(block_size=1024, shapes=(conv, (4 // tp, 4, 8)),
                     dtypes=(torch.float32, torch.float32), page_size_padded=page)


def _kv_cache(groups, tp, blocks, layout, block):
    """As vLLM plans it: all groups overlay each other in one allocation."""
    specs = [_spec(kind, tp, block) for kind in groups]
    page = max(spec.page_size_bytes for spec in specs)
    specs = [_mamba(tp, page) if isinstance(spec, MambaSpec) else spec for spec in specs]
    names = [[f"model.layers.{g * N_LAYERS + i}.self_attn.attn" for i in range(N_LAYERS)]
             for g in range(len(groups))]
    tensors = []
    for spec, layers in zip(specs, names):
        strides = compute_layout_strides(spec, blocks, N_LAYERS, layout)
        tensors.append(KVCacheTensor(size=page * blocks * N_LAYERS, layers=layers,
                                     layer_stride=strides[0], block_stride=strides[1]))
    return KVCacheConfig(
        num_blocks=blocks, kv_cache_tensors=tensors,
        kv_cache_groups=[KVCacheGroupSpec(layers, spec) for layers, spec in zip(names, specs)],
        kv_cache_layout=layout.name, hash_block_size=block)


# ---- two engines and a proxy

WAIT_S = 30.0


def pair(engines, prefill=None, decode=None, **both):
    """A prefill and a decode engine; options of one, of the other and of both."""
    return (engines("kv_producer", **{**both, **(prefill or {})}),
            engines("kv_consumer", **{**both, **(decode or {})}))


def run(*engines, until=lambda: False):
    """Steps all engines until they have nothing left to do."""
    end = time.monotonic() + WAIT_S
    while not until() and any(engine.busy() for engine in engines):
        assert time.monotonic() < end, [engine.scheduler.requests for engine in engines]
        for engine in engines:
            engine.step()
        time.sleep(0.001)


def wait_until(true):
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def run_to_receipt(prefill, decode, request):
    """Until the decode side has its KV, and before it has computed anything."""
    run(prefill, decode, until=lambda: request.request_id in decode.received)
    assert request.request_id in decode.received


def write(prefill, decode, tokens, **options):
    """A request as a proxy sends it in WRITE mode: to both at once."""
    id = routed_id(prefill, decode)
    params = {"transfer_id": f"tx-{uuid.uuid4()}"}
    return (prefill.add(tokens, {**params, "do_remote_decode": True}, request_id=id),
            decode.add(tokens, {**params, "do_remote_prefill": True}, request_id=id, max_tokens=2,
                       **options))


def prefill_first(prefill, decode, tokens):
    """The prefill of a request in READ mode: (request id, request, what its answer tells)."""
    id = routed_id(prefill, decode)
    params = {"transfer_id": f"tx-{uuid.uuid4()}", "do_remote_decode": True}
    asked = prefill.add(tokens, params, request_id=id)
    run(prefill, until=lambda: asked.request_id in prefill.outputs)
    return id, asked, prefill.outputs[asked.request_id][-1].kv_transfer_params


def read(prefill, decode, tokens, **options):
    """A request as a proxy sends it in READ mode: to prefill, then, with its answer, to decode."""
    id, asked, answer = prefill_first(prefill, decode, tokens)
    return asked, decode.add(tokens, answer, request_id=id, max_tokens=2, **options)


def send(prefill, decode, tokens):
    """A request in the engines' mode. Returns those of both sides."""
    return (read if prefill.read_mode else write)(prefill, decode, tokens)
