"""One rank of SGLang, without a scheduler: what runs in the processes of sglang_harness."""

import gc
import json
import os
import pathlib
import random
import time
from types import SimpleNamespace

import numpy as np
import torch
from sglang.srt.disaggregation.base.conn import KVPoll, KVTransferDestination
from sglang.srt.disaggregation.decode import DecodePreallocQueue
from sglang.srt.disaggregation.prefill import PrefillBootstrapQueue
from sglang.srt.disaggregation.utils import (
    KVClassType,
    MetadataBuffers,
    TransferBackend,
    get_kv_class,
    is_mla_backend,
)
from sglang.srt.runtime_context import SpawnRanks, get_parallel, publish
from sglang.srt.server_args import ServerArgs
from sglang_pools import make_pools

BACKEND = "kvxfer"


class Driver:
    """The calls that SGLang's scheduler makes, one by one."""

    def __init__(
        self, *, mode, model, path, port, bootstrap, tp, tp_size, pp, pp_size, env, socket
    ):
        os.environ.update(env)
        os.environ["KVXFER_SOCKET"] = socket
        self.mode, self.model = mode, model
        self.tp, self.tp_size, self.pp, self.pp_size = tp, tp_size, pp, pp_size
        args = ServerArgs(
            model_path=path,
            device="cpu",
            tp_size=tp_size,
            pp_size=pp_size,
            port=port,
            host="127.0.0.1",
            disaggregation_mode=mode,
            page_size=model.page,
            disaggregation_transfer_backend=BACKEND,
            disaggregation_bootstrap_port=bootstrap,
            skip_tokenizer_init=True,
            attention_backend="torch_native",
            disaggregation_decode_retraction_backup="cpu_tensor" if mode == "decode" else None,
        )
        publish(args, role="scheduler", ranks=SpawnRanks(world_rank=pp * tp_size + tp, gpu_id=0))
        backend = TransferBackend(BACKEND)
        if mode == "prefill" and tp == 0 and pp == 0:
            self.server = get_kv_class(backend, KVClassType.BOOTSTRAP_SERVER)(
                "127.0.0.1", bootstrap
            )
        get_parallel().override_permanently(
            pp_group=_Stages(f"{path}/stages-{port}-{tp}", pp, pp_size)
        )
        self.pools = make_pools(model, tp, tp_size, pp, pp_size)
        self.pools.fill_canary(-7.0 if mode == "decode" else 3.0)
        self.metadata = MetadataBuffers(
            model.rows,
            hidden_size=16,
            hidden_states_dtype=torch.float32,
            max_sampling_mask_tokens=16,
        )
        self.queue = _queue(mode, self.pools, self.metadata, backend, tp, pp, pp_size, model, args)
        self.queue.kv_manager = self.manager = self.queue._init_kv_manager()
        self.scheduler = self.queue.scheduler
        self.sender = get_kv_class(backend, KVClassType.SENDER)
        self.receiver = get_kv_class(backend, KVClassType.RECEIVER)
        self.requests = {}
        self.free_pages = list(range(1, model.tokens // model.page))
        self.free_rows = list(range(1, model.rows))
        random.Random(f"{mode}{tp}").shuffle(self.free_pages)
        random.Random(f"{mode}{tp}").shuffle(self.free_rows)

    # ---- a request

    def open(self, room, address):
        make = self.sender if self.mode == "prefill" else self.receiver
        end = make(self.manager, address, room)
        self.requests[room] = SimpleNamespace(
            end=end, n=0, prefix=0, pages=[], row=0, disagg_kv_sender=end
        )
        if self.mode == "prefill":
            self.scheduler.disagg_prefill_bootstrap_queue.queue.append(self.requests[room])
        else:
            assert self.manager.try_ensure_parallel_info(address)
            end.init(0)

    def _take(self, room, n_tokens, prefix):
        """Pages for the tokens behind the prefix, and a row."""
        request = self.requests[room]
        request.n, request.prefix = n_tokens, prefix
        n_pages = -(-(n_tokens - prefix) // self.model.page)
        request.pages = [self.free_pages.pop() for _ in range(n_pages)]
        request.row = self.free_rows.pop()
        return request

    def _give_back(self, request):
        self.free_pages = request.pages + self.free_pages
        if request.row:
            self.free_rows = [request.row] + self.free_rows
        request.pages, request.row = [], 0

    def ask(self, room, n_tokens, prefix=0):
        """Decode: pages are there."""
        request = self._take(room, n_tokens, prefix)
        request.end.send_metadata(
            np.array(request.pages, np.int32),
            request.row,
            self.pools.state_indices(request),
            decode_prefix_len=prefix,
        )

    def begin(self, room, n_tokens):
        """Prefill: SGLang's finalize_bootstrap, and all is computed."""
        prefix = self.requests[room].end.pop_decode_prefix_len()
        request = self._take(room, n_tokens, prefix)
        request.end.init(len(request.pages), request.row)
        self.scheduler.disagg_prefill_bootstrap_queue.queue.remove(request)
        self.pools.write(room, request)
        self._write_metadata(room, request.row)
        return prefix

    def chunk(self, room, i, of):
        """Prefill: chunk i of so many; the last one has states and metadata."""
        request = self.requests[room]
        n = len(request.pages)
        first, last = n * i // of, n * (i + 1) // of
        request.end.send(
            np.array(request.pages[first:last], np.int32),
            self.pools.state_indices(request) if i == of - 1 else None,
            num_kv_tokens=(last - first) * self.model.page,
        )
        if i == of - 1:
            self.scheduler.disagg_prefill_inflight_queue.append(request)

    def poll(self, room):
        return int(self.requests[room].end.poll())

    def consensus(self, room):
        """What the first pipeline stage asks: the least that all stages have reached."""
        return int(self.requests[room].end.poll_pp_consensus())

    def abort(self, room):
        self.requests[room].end.abort()

    def failure(self, room):
        """What failure_exception says; then the pages are free, as in SGLang."""
        request = self.requests[room]
        try:
            request.end.failure_exception()
        except Exception as err:
            text = f"{type(err).__name__}: {err}"
        else:
            raise AssertionError("failure_exception raised nothing")
        return text

    def safe(self, room):
        """Decode: whether SGLang may give the pages back."""
        return self.manager.is_abort_release_safe(room, 1)

    def release(self, room):
        """The pages go back, and are written by somebody else at once."""
        request = self._pop(room)
        self.pools.mark(request, CANARY_OF_ANOTHER)
        used = list(request.pages)
        self._give_back(request)
        return used

    def _pop(self, room):
        request = self.requests.pop(room)
        if self.mode == "prefill":
            for queue in (
                self.scheduler.disagg_prefill_bootstrap_queue.queue,
                self.scheduler.disagg_prefill_inflight_queue,
            ):
                if request in queue:
                    queue.remove(request)
        return request

    def clear(self, room):
        """After success."""
        request = self._pop(room)
        request.end.clear()
        if self.mode == "decode":
            self.pools.mark(request, -7.0)
            self.metadata.clear_slot(request.row)
        self._give_back(request)

    def check(self, room):
        """Decode: what arrived is what was computed, and nothing else was touched."""
        request = self.requests[room]
        self.pools.compare(room, request)
        assert int(self.metadata.bootstrap_room[request.row, 0]) == room
        assert int(self.metadata.output_ids[request.row, 0]) == room % 1000
        self.intact()

    def intact(self):
        """Decode: no page that is not of a request has been written."""
        busy = [request for request in self.requests.values()]
        self.pools.intact(busy, -7.0)

    def touched(self, pages):
        """How many rows of these pages were written after release()."""
        n = self.pools.touched(pages, CANARY_OF_ANOTHER)
        self.pools.mark(SimpleNamespace(pages=pages, row=0), -7.0)
        return n

    def _write_metadata(self, room, row):
        self.metadata.output_ids[row][0] = room % 1000
        self.metadata.bootstrap_room[row, 0] = room

    # ---- many at once

    def bulk_open(self, rooms, address):
        for room in rooms:
            self.open(room, address)

    def bulk_ask(self, rooms, sizes):
        for room in rooms:
            self.ask(room, sizes[room])

    def bulk_wait(self, rooms, state):
        left = set(rooms)
        while left:
            left = {room for room in left if self.poll(room) not in (state, KVPoll.Failed)}

    def bulk_send(self, rooms, sizes):
        for room in rooms:
            self.begin(room, sizes[room])
            self.chunk(room, 0, 1)

    def bulk_end(self, rooms):
        """Polls all to their ends, checks contents (decode) and forgets them, as SGLang does."""
        found = {}
        left = set(rooms)
        until = time.monotonic() + 60
        while left:
            assert time.monotonic() < until, f"{left} have not ended"
            for room in list(left):
                state = self.poll(room)
                if state not in (KVPoll.Failed, KVPoll.Success):
                    continue
                left.discard(room)
                found[room] = state
                if state == KVPoll.Failed:
                    self.failure(room)
                    assert self.mode == "prefill" or self.safe(room)
                    request = self._pop(room)
                    self.pools.mark(request, -7.0)
                    self._give_back(request)
                    continue
                if self.mode == "decode":
                    self.pools.compare(room, self.requests[room])
                self.clear(room)
        return found

    # ---- inspection

    def counts(self):
        """What the manager still remembers."""
        m = self.manager
        names = ["request_status", "failure_records", "_rooms"]
        names += (
            ["req_to_decode_prefix_len", "transfer_infos"]
            if self.mode == "prefill"
            else ["prefill_response_tracker", "required_prefill_response_num_table"]
        )
        found = {name: len(getattr(m, name)) for name in names}
        found["open"] = int(m.rank.stats()["open"])
        return found

    def objects(self):
        """Containers that Python knows of."""
        gc.collect()
        return len(gc.get_objects())

    def stats(self):
        return dict(self.manager.rank.stats())

    def paths(self):
        return self.manager.paths()

    def metric(self, room):
        return self.requests[room].end.get_transfer_metric()

    def groups(self):
        return [group.name for group in self.manager.layout.groups]

    def bound(self):
        return self.manager.layout.tp_bound

    def remembered(self, room):
        return self.manager.request_status.get(room)

    def call_receiver(self, room, name):
        return getattr(self.requests[room].end, name)()

    def forget_contacts(self):
        self.server._contacts.clear()

    def ask_host(self, room):
        self.requests[room].end.send_metadata(
            np.zeros(1, np.int32), 1, None, destination=KVTransferDestination.HOST
        )

    def stop_bootstrap(self):
        self.server.close()

    def close(self):
        self.manager.teardown()


CANARY_OF_ANOTHER = 11.0


class _Stages:
    """What kvxfer and SGLang's PPConsensusStore need of a group of pipeline stages."""

    def __init__(self, path, rank, size):
        self.path, self.rank, self.world_size = pathlib.Path(path), rank, size
        self.is_last_rank = rank == size - 1

    def broadcast_object(self, value, src=0):
        if self.rank == src:
            self.path.with_suffix(".new").write_text(json.dumps(value))
            self.path.with_suffix(".new").rename(self.path)
            return value
        until = time.monotonic() + 60
        while not self.path.exists():
            assert time.monotonic() < until
            time.sleep(0.01)
        return json.loads(self.path.read_text())


def _queue(mode, pools, metadata, backend, tp, pp, pp_size, model, args):
    """SGLang's queue with what its _init_kv_manager reads, and no scheduler."""
    config = SimpleNamespace(
        num_hidden_layers=model.layers,
        get_total_num_kv_heads=lambda: model.heads,
        hf_text_config=SimpleNamespace(full_attention_layer_ids=getattr(pools, "full_layers", [])),
    )
    runner = SimpleNamespace(kv_cache_dtype_str="float32")
    scheduler = SimpleNamespace(
        tp_worker=SimpleNamespace(model_runner=runner),
        model_config=config,
        rust_server=None,
        enable_hisparse=False,
        server_args=args,
        req_to_token_pool=pools.req_to_token,
        disagg_prefill_inflight_queue=[],
        disagg_prefill_bootstrap_queue=SimpleNamespace(queue=[]),
    )
    queue = object.__new__(PrefillBootstrapQueue if mode == "prefill" else DecodePreallocQueue)
    fields = dict(
        token_to_kv_pool=pools.kv,
        draft_token_to_kv_pool=pools.draft,
        is_mla_backend=is_mla_backend(pools.kv),
        metadata_buffers=metadata,
        tp_rank=tp,
        pp_rank=pp,
        pp_size=pp_size,
        gpu_id=0,
        transfer_backend=backend,
        scheduler=scheduler,
        enable_staging=False,
        req_to_token_pool=pools.req_to_token,
        transfer_queue=SimpleNamespace(
            enable_deferred_kv_release=False, deferred_kv_release_timeout=30.0
        ),
    )
    queue.__dict__.update(fields)
    return queue
