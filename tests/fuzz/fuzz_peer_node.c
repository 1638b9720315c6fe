/* See fuzz_peer_node.h. */
#include "fuzz_peer_node.h"

#include <string.h>

#include "base/log.h"
#include "test_plain_mem.h"

int LLVMFuzzerInitialize(int *argc, char ***argv);

struct fuzz_peer_node f;

/* Two transports, the same underneath. */
static struct kvx_transport_ops fuzz_best_ops, fuzz_any_ops;

static uint64_t script_now(void *arg)
{
	return f.script.now_ns;
}

static void on_terminal(void *arg, const struct kvx_xfer_end *end)
{
	f.n_ends++;
}

static void on_arrival(void *arg, const struct kvx_arrival *arrival)
{
	kvx_assert(arrival->region == f.region->id && arrival->payload_bytes <= KVX_PAYLOAD_MAX);
	kvx_assert(arrival->status == 0 || arrival->payload == NULL);
}

static int on_message(void *arg, struct kvx_region *region, const void *data, uint32_t len)
{
	kvx_assert(region == f.region && len <= KVX_PAYLOAD_MAX);
	return 0;
}

static void on_region(void *arg, struct kvx_region *region, int status, const char *text)
{
	kvx_assert(status == 0);
	f.n_region_events++;
}

void turn(uint64_t ns)
{
	uv_run(&f.loop, UV_RUN_NOWAIT);
	kvx_timers_run(f.timers);
	while (kvx_node_pump(f.node) || kvx_node_pump(f.other))
		;
	kvx_fake_advance(&f.script, ns);
}

void turns(unsigned n)
{
	while (n-- > 0)
		turn(KVX_MS);
}

static KVX_ON_LOOP struct kvx_node *make_node(void)
{
	const struct kvx_node_conf conf = {
	    .epoch = 1,
	    .timers = f.timers,
	    .dom = {.test = &f.script, .mem_kinds = 1u << KVX_MEM_HOST},
	    .copy_workers = 1,
	    .peer_ops = {&fuzz_best_ops, &fuzz_any_ops},
	    .quantum_bytes = 1u << 20,
	    .n_batches = 16,
	    .region_limits = {64, 64, 1ull << 40, 1ull << 40, 0},
	    .xfers = {.max_xfers = 100,
		      .default_deadline_ns = KVX_SEC,
		      .fence_bound_ns = 100 * KVX_MS,
		      .on_terminal = on_terminal,
		      .on_arrival = on_arrival},
	    .copy_ops = &kvx_fake_ops,
	};
	struct kvx_node *node = NULL;
	struct kvx_why why;
	int err = kvx_node_open(&conf, &node, &why);

	kvx_assert(err == 0);
	return node;
}

static KVX_ON_LOOP struct kvx_region *make_region(struct kvx_node *node)
{
	struct kvx_region *region = NULL;
	struct kvx_why why;
	unsigned before = f.n_region_events;
	const struct kvx_region_request request = {
	    .owner = 1,
	    .ops = &test_plain_ops,
	    .fd = -1,
	    .len_bytes = LEN,
	    .access = KVX_ACCESS_READ | KVX_ACCESS_WRITE,
	};
	int err = kvx_region_add(kvx_node_regions(node), &request, &region, &why);

	kvx_assert(err == 0);
	err = kvx_node_region_open(node, region, on_region, NULL);
	kvx_assert(err == 0);
	while (f.n_region_events == before)
		turn(1000);
	return region;
}

static KVX_ON_LOOP struct kvx_peers *make_peers(void)
{
	static const char *const tenants[] = {"default", "blue", NULL};
	const struct kvx_peers_conf conf = {
	    .loop = &f.loop,
	    .timers = f.timers,
	    .node = f.node,
	    .node_id = {0x0a},
	    .epoch = 1,
	    .heartbeat_ms = 100,
	    .lost_ms = 300,
	    .reconnect_min_ms = 10,
	    .reconnect_max_ms = 100,
	    .fence_bound_ms = 100,
	    .max_peers = 4,
	    .tenants = tenants,
	    .fallback = true,
	    .on_arrival = on_arrival,
	    .on_message = on_message,
	};
	struct kvx_peers *peers = NULL;
	struct kvx_why why;
	int err = kvx_peers_open(&conf, &peers, &why);

	kvx_assert(err == 0);
	return peers;
}

struct their_cmd {
	struct kvx_cmd cmd;
	unsigned slot;
};

static void on_cmd(struct kvx_cmd *cmd)
{
	unsigned i = ((struct their_cmd *)cmd)->slot;

	if (cmd->work.kind == KVX_CMD_LISTEN) {
		f.their_eps[i] = cmd->ep;
		f.their_addr_lens[i] = cmd->len;
		memcpy(f.their_addrs[i], cmd->bytes, cmd->len);
	} else {
		f.their_eps[i] = NULL;
	}
}

void other_command(enum kvx_work_kind kind)
{
	static struct their_cmd cmds[RAILS];
	bool wants = kind == KVX_CMD_LISTEN;
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(f.other, &n);

	kvx_assert(n == 2 * RAILS);
	for (unsigned i = 0; i < RAILS; i++) {
		cmds[i].slot = i;
		cmds[i].cmd =
		    (struct kvx_cmd){.work.kind = kind, .done = on_cmd, .ep = f.their_eps[i]};
		kvx_node_submit(f.other, rails[i].worker, &cmds[i].cmd);
		while ((f.their_eps[i] != NULL) != wants)
			turn(1000);
	}
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
	struct kvx_why why;

	kvx_log_set_level(KVX_LOG_ERROR);
	kvx_role_set_loop();
	kvx_role_set_worker();
	kvx_assert_on_loop();
	f.script.now_ns = KVX_SEC;
	f.script.queue_ops = 4096;
	f.script.n_rails = RAILS;
	fuzz_best_ops = kvx_fake_ops;
	fuzz_best_ops.name = "best";
	fuzz_any_ops = kvx_fake_ops;
	fuzz_any_ops.caps |= KVX_CAP_ANY_MEMORY;
	kvx_assert(uv_loop_init(&f.loop) == 0);
	kvx_assert(kvx_timers_create(script_now, NULL, &f.timers) == 0);
	f.node = make_node();
	f.other = make_node();
	f.region = make_region(f.node);
	f.theirs = make_region(f.other);
	kvx_assert(
	    kvx_region_publish(kvx_node_regions(f.node), f.region, "here", "note", 4, &why) == 0);
	f.peers = make_peers();
	return 0;
}
