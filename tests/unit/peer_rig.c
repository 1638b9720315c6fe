/* See peer_rig.h. */
#include "peer_rig.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/roles.h"
#include "xfer/plan.h"

#define TURN_NS (KVX_MS / 2)

/* regions of plain memory */

static int mem_check(struct kvx_mem *mem, struct kvx_why *why)
{
	mem->page_bytes = 4096;
	return 0;
}

static int mem_map(struct kvx_mem *mem, struct kvx_why *why)
{
	mem->addr = calloc(1, mem->len_bytes);
	return mem->addr != NULL ? 0 : kvx_why(why, -ENOMEM, "out of memory");
}

static void mem_unmap(struct kvx_mem *mem)
{
	free(mem->addr);
	mem->addr = NULL;
}

static const struct kvx_mem_ops rig_mem_ops = {KVX_MEM_HOST, "test", mem_check, mem_map, mem_unmap};

/* callbacks */

static void on_terminal(void *arg, const struct kvx_xfer_end *end)
{
	struct rig_side *side = arg;
	struct rig_end *e = &side->ends[side->n_ends++];

	cr_assert_leq(side->n_ends, RIG_ENDS);
	e->end = *end;
	snprintf(e->text, sizeof(e->text), "%s", end->text);
	e->end.text = e->text;
	e->at_ns = side->rig->script.now_ns;
}

static void on_arrival(void *arg, const struct kvx_arrival *arrival)
{
	struct rig_side *side = arg;
	struct rig_arrival *a = &side->arrivals[side->n_arrivals++];

	cr_assert_leq(side->n_arrivals, RIG_ENDS);
	a->arrival = *arrival;
	snprintf(a->text, sizeof(a->text), "%s", arrival->text);
	a->arrival.text = a->text;
	if (arrival->payload_bytes > 0)
		memcpy(a->payload, arrival->payload,
		       arrival->payload_bytes < 64 ? arrival->payload_bytes : 64);
}

static int on_message(void *arg, struct kvx_region *region, const void *data, uint32_t len)
{
	struct rig_side *side = arg;

	side->n_messages++;
	side->message_len = len < sizeof(side->message) ? len : sizeof(side->message);
	memcpy(side->message, data, side->message_len);
	return side->message_status;
}

static void on_closed(void *arg)
{
	((struct rig_side *)arg)->closed = true;
}

uint64_t rig_clock_tick_ns;

static uint64_t script_now(void *arg)
{
	struct kvx_fake_script *script = arg;

	script->now_ns += rig_clock_tick_ns;
	return script->now_ns;
}

/* life */

static void side_init(struct peer_rig *rig, struct rig_side *side, uint8_t id, uint64_t epoch)
{
	side->rig = rig;
	side->node_conf = (struct kvx_node_conf){
	    .epoch = epoch,
	    .dom = {.test = &rig->script, .mem_kinds = 1u << KVX_MEM_HOST},
	    .copy_workers = 1,
	    .peer_ops = {&test_fake_ops},
	    .quantum_bytes = 1u << 20,
	    .n_batches = 16,
	    .region_limits = {64, 64, 1ull << 40, 1ull << 40},
	    .xfers = {.max_xfers = 1000,
		      .default_deadline_ns = 60 * KVX_SEC,
		      .fence_bound_ns = 200 * KVX_MS,
		      .history = 8,
		      .arg = side,
		      .on_terminal = on_terminal,
		      .on_arrival = on_arrival},
	    .copy_ops = &kvx_fake_ops,
	};
	side->conf = (struct kvx_peers_conf){
	    .loop = &rig->loop,
	    .epoch = epoch,
	    .listen = "127.0.0.1:0",
	    .advertise = "",
	    .version = "test",
	    .heartbeat_ms = 100,
	    .lost_ms = 300,
	    .reconnect_min_ms = 10,
	    .reconnect_max_ms = 100,
	    .fence_bound_ms = 200,
	    .max_peers = 8,
	    .arg = side,
	    .on_arrival = on_arrival,
	    .on_message = on_message,
	};
	memset(side->node_conf.node_id, id, KVX_NODE_ID_BYTES);
	memset(side->conf.node_id, id, KVX_NODE_ID_BYTES);
}

void rig_init(struct peer_rig *rig)
{
	memset(rig, 0, sizeof(*rig));
	kvx_role_set_loop();
	kvx_role_set_worker();
	test_rails_init();
	rig->script.now_ns = KVX_SEC;
	rig->script.queue_ops = 4096;
	rig->wire_fd = -1;
	cr_assert_eq(uv_loop_init(&rig->loop), 0);
	cr_assert_eq(kvx_timers_create(script_now, &rig->script, &rig->timers), 0);
	side_init(rig, &rig->a, 0x0a, 1001);
	side_init(rig, &rig->b, 0x0b, 1002);
}

void rig_start_side(struct rig_side *side)
{
	struct kvx_why why = {""};

	side->closed = false;
	side->conf.node = side->node;
	side->conf.timers = side->rig->timers;
	cr_assert_eq(kvx_peers_open(&side->conf, &side->peers, &why), 0, "%s", why.text);
}

void rig_start(struct peer_rig *rig)
{
	struct rig_side *sides[] = {&rig->a, &rig->b};
	struct kvx_why why = {""};

	for (unsigned i = 0; i < 2; i++) {
		sides[i]->node_conf.timers = rig->timers;
		test_rails_begin(i);
		if (sides[i]->n_rails > 0) {
			rig->script.n_rails = sides[i]->n_rails;
			rig->script.bad_rails = sides[i]->bad_rails;
		}
		cr_assert_eq(kvx_node_open(&sides[i]->node_conf, &sides[i]->node, &why), 0, "%s",
			     why.text);
		rig_start_side(sides[i]);
	}
}

void rig_close_side(struct rig_side *side)
{
	if (side->peers == NULL)
		return;
	kvx_peers_close(side->peers, on_closed, side);
	cr_assert(RIG_UNTIL(side->rig, side->closed, 20000), "peers do not close");
	side->peers = NULL;
}

static void wire_close(struct rig_wire *wire)
{
	if (wire->a >= 0)
		close(wire->a);
	if (wire->b >= 0)
		close(wire->b);
	wire->a = wire->b = -1;
}

void rig_stop(struct peer_rig *rig)
{
	struct rig_side *sides[] = {&rig->a, &rig->b};

	for (unsigned i = 0; i < 2; i++) {
		uint32_t cursor = 0;
		struct kvx_region *region;

		while ((region = kvx_region_next(kvx_node_regions(sides[i]->node), &cursor)) !=
		       NULL)
			if (region->state != KVX_REGION_CLOSING)
				rig_region_close(sides[i], region);
	}
	cr_assert(RIG_UNTIL(rig,
			    kvx_regions_count(kvx_node_regions(rig->a.node)) == 0 &&
				kvx_regions_count(kvx_node_regions(rig->b.node)) == 0,
			    20000),
		  "regions do not close");
	rig_close_side(&rig->a);
	rig_close_side(&rig->b);
	kvx_node_close(rig->a.node);
	kvx_node_close(rig->b.node);
	cr_assert_eq(rig->script.n_eps, 0);
	cr_assert_eq(rig->script.n_mrs, 0);
	cr_assert_eq(rig->script.n_rkeys, 0);
	rig_wire_cut(rig);
	if (rig->wire_fd >= 0)
		close(rig->wire_fd);
	kvx_timers_destroy(rig->timers);
	uv_run(&rig->loop, UV_RUN_NOWAIT);
	cr_assert_eq(uv_loop_close(&rig->loop), 0, "handles are left in the loop");
	uv_library_shutdown(); /* closes the pipe that all loops share */
}

/* the wire in front of b */

void rig_wire_b(struct peer_rig *rig)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof(addr);

	rig->wire_fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	cr_assert_geq(rig->wire_fd, 0);
	cr_assert_eq(bind(rig->wire_fd, (struct sockaddr *)&addr, sizeof(addr)), 0);
	cr_assert_eq(listen(rig->wire_fd, 16), 0);
	cr_assert_eq(getsockname(rig->wire_fd, (struct sockaddr *)&addr, &len), 0);
	snprintf(rig->wire_addr, sizeof(rig->wire_addr), "127.0.0.1:%u", ntohs(addr.sin_port));
}

static uint16_t side_port(const struct rig_side *side)
{
	return (uint16_t)atoi(strrchr(kvx_peers_address(side->peers), ':') + 1);
}

static void set_nodelay(int fd)
{
	const int one = 1;

	cr_assert_eq(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), 0);
}

static int connect_to(uint16_t port)
{
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_port = htons(port),
				   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert_geq(fd, 0);
	if (connect(fd, (struct sockaddr *)&addr, sizeof(addr)) != 0) {
		close(fd);
		return -1;
	}
	fcntl(fd, F_SETFL, O_NONBLOCK);
	set_nodelay(fd);
	return fd;
}

void rig_wire_cut(struct peer_rig *rig)
{
	for (unsigned i = 0; i < rig->n_wires; i++)
		wire_close(&rig->wires[i]);
	rig->n_wires = 0;
}

void rig_wire_cut_near(struct peer_rig *rig)
{
	for (unsigned i = 0; i < rig->n_wires; i++) {
		if (rig->wires[i].a >= 0)
			close(rig->wires[i].a);
		rig->wires[i].a = -1;
	}
}

static bool wire_move(int from, int to)
{
	char buf[65536];
	ssize_t n = recv(from, buf, sizeof(buf), MSG_DONTWAIT);

	if (n > 0)
		return send(to, buf, (size_t)n, MSG_NOSIGNAL) == n;
	return n < 0 && errno == EAGAIN;
}

static void wire_turn(struct peer_rig *rig)
{
	int fd;

	if (rig->wire_fd < 0 || rig->wire_held)
		return;
	while ((fd = accept4(rig->wire_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		struct rig_wire *wire = &rig->wires[rig->n_wires++];

		cr_assert_leq(rig->n_wires, RIG_WIRES);
		set_nodelay(fd);
		wire->a = fd;
		wire->b = rig->b.peers != NULL ? connect_to(side_port(&rig->b)) : -1;
		if (wire->b < 0)
			wire_close(wire);
	}
	for (unsigned i = 0; i < rig->n_wires; i++) {
		struct rig_wire *wire = &rig->wires[i];

		if (wire->a >= 0 && (!wire_move(wire->a, wire->b) || !wire_move(wire->b, wire->a)))
			wire_close(wire);
	}
}

/* time */

/* Sockets are real: what is on its way in the kernel needs a moment of real time. */
void rig_turn(struct peer_rig *rig)
{
	const struct timespec moment = {.tv_nsec = 20000};

	nanosleep(&moment, NULL);
	wire_turn(rig);
	uv_run(&rig->loop, UV_RUN_NOWAIT);
	kvx_timers_run(rig->timers);
	for (unsigned i = 0; i < 100; i++) {
		bool any = kvx_node_pump(rig->a.node);

		if (!rig->b_stopped)
			any |= kvx_node_pump(rig->b.node);
		if (!any)
			break;
	}
	kvx_fake_advance(&rig->script, TURN_NS);
}

void rig_pass(struct peer_rig *rig, uint64_t ms)
{
	uint64_t end = rig->script.now_ns + ms * KVX_MS;

	while (rig->script.now_ns < end)
		rig_turn(rig);
}

/* what tests do */

static void on_region_opened(void *arg, struct kvx_region *region, int status, const char *text)
{
	cr_assert_eq(status, 0, "%s", text);
	((struct rig_side *)arg)->n_region_events++;
}

static void on_region_closed(void *arg, uint64_t region_id)
{
	((struct rig_side *)arg)->n_region_events++;
}

struct kvx_region *rig_region(struct rig_side *side, uint64_t len, uint32_t access,
			      struct kvx_layout *layout)
{
	return rig_region_of(side, 0, len, access, layout);
}

struct kvx_region *rig_region_of(struct rig_side *side, uint32_t tenant, uint64_t len,
				 uint32_t access, struct kvx_layout *layout)
{
	const struct kvx_region_request request = {.owner = 7,
						   .tenant = tenant,
						   .ops = &rig_mem_ops,
						   .fd = -1,
						   .len_bytes = len,
						   .access = access,
						   .layout = layout};
	struct kvx_region *region;
	struct kvx_why why = {""};
	unsigned before = side->n_region_events;

	cr_assert_eq(kvx_region_add(kvx_node_regions(side->node), &request, &region, &why), 0, "%s",
		     why.text);
	cr_assert_eq(kvx_node_region_open(side->node, region, on_region_opened, side), 0);
	cr_assert(RIG_UNTIL(side->rig, side->n_region_events > before, 1000));
	return region;
}

void rig_region_close(struct rig_side *side, struct kvx_region *region)
{
	cr_assert_eq(kvx_node_region_close(side->node, region, -ECANCELED, "unregistered",
					   on_region_closed, side),
		     0);
}

struct kvx_desc rig_desc(const struct rig_side *side, const struct kvx_region *region)
{
	struct kvx_desc desc = {
	    .epoch = side->conf.epoch,
	    .region = region->id,
	    .len_bytes = region->mem.len_bytes,
	    .access = region->access,
	    .mem_kind = KVX_MEM_HOST,
	};

	memcpy(desc.node_id, side->conf.node_id, KVX_NODE_ID_BYTES);
	memcpy(desc.token, region->token, KVX_TOKEN_BYTES);
	snprintf(desc.addr, sizeof(desc.addr), "%s",
		 side == &side->rig->b && side->rig->wire_fd >= 0 ? side->rig->wire_addr
								  : kvx_peers_address(side->peers));
	return desc;
}

void rig_on_resolved(void *arg, int status, const char *text, struct kvx_target *target)
{
	struct rig_answer *answer = arg;

	cr_assert_not(answer->done, "told twice");
	answer->done = true;
	answer->status = status;
	answer->target = target;
	snprintf(answer->text, sizeof(answer->text), "%s", text);
}

void rig_on_reply(void *arg, int status, const char *text)
{
	rig_on_resolved(arg, status, text, NULL);
}

struct rig_answer rig_resolve(struct rig_side *side, const struct kvx_desc *desc)
{
	return rig_resolve_as(side, 0, desc);
}

struct rig_answer rig_resolve_as(struct rig_side *side, uint32_t tenant,
				 const struct kvx_desc *desc)
{
	struct rig_answer answer = {0};
	struct kvx_resolve *resolve;
	struct kvx_why why = {""};

	answer.status = kvx_peers_resolve(side->peers, desc, tenant, 2 * KVX_SEC, rig_on_resolved,
					  &answer, &resolve, &why);
	if (answer.status < 0) {
		answer.done = true;
		snprintf(answer.text, sizeof(answer.text), "%s", why.text);
	}
	cr_assert(RIG_UNTIL(side->rig, answer.done, 5000), "no answer to a resolve");
	return answer;
}

int rig_submit(struct rig_side *side, int op, struct kvx_region *region, struct kvx_target *target,
	       uint64_t len, uint64_t deadline_ms)
{
	return rig_submit_by(side, "", op, region, target, len, deadline_ms);
}

int rig_submit_by(struct rig_side *side, const char *require, int op, struct kvx_region *region,
		  struct kvx_target *target, uint64_t len, uint64_t deadline_ms)
{
	const uint64_t zero = 0;
	const struct kvx_op_list ops = {
	    .n_ops = 1, .n_lens = 1, .local_offsets = &zero, .remote_offsets = &zero, .lens = &len};
	static uint64_t number;
	const struct kvx_xfer_req req = {
	    .client = 7,
	    .number = ++number,
	    .op = op,
	    .region = region,
	    .target = target,
	    .tag = 0x7a6,
	    .deadline_ns = deadline_ms * KVX_MS,
	    .require = require,
	    .payload = "payload",
	    .payload_bytes = 7,
	    .ops = &ops,
	};
	struct kvx_xfer *xfer;
	struct kvx_why why = {""};

	return kvx_xfer_submit(kvx_node_xfers(side->node), &req, &xfer, &why);
}

struct row_walk {
	unsigned n;
	struct kvx_peer_row *row;
};

static void on_row(void *arg, const struct kvx_peer_row *row)
{
	struct row_walk *walk = arg;

	walk->n++;
	*walk->row = *row;
}

bool rig_row(const struct rig_side *side, struct kvx_peer_row *out_row)
{
	struct row_walk walk = {0, out_row};

	memset(out_row, 0, sizeof(*out_row));
	if (side->peers == NULL)
		return false;
	kvx_peers_walk(side->peers, on_row, &walk);
	return walk.n > 0;
}

bool rig_is_up(const struct rig_side *side)
{
	struct kvx_peer_row row;

	return rig_row(side, &row) && strcmp(row.state, "up") == 0;
}

bool rig_lane_is_up(const struct rig_side *side)
{
	struct kvx_peer_row row;

	return rig_row(side, &row) && strcmp(row.lane_state, "up") == 0;
}

uint64_t rig_lane_generation(const struct rig_side *side)
{
	struct kvx_peer_row row;

	return rig_row(side, &row) ? row.lane_generation : 0;
}

struct lane_walk {
	const char *tenant;
	bool found;
	struct kvx_lane_row *row;
};

static void on_lane_row(void *arg, const struct kvx_lane_row *row)
{
	struct lane_walk *walk = arg;

	if (strcmp(row->tenant, walk->tenant) != 0)
		return;
	walk->found = true;
	*walk->row = *row;
}

bool rig_lane(const struct rig_side *side, const char *tenant, struct kvx_lane_row *out_row)
{
	struct lane_walk walk = {tenant, false, out_row};

	memset(out_row, 0, sizeof(*out_row));
	out_row->state = "none";
	if (side->peers != NULL)
		kvx_peers_walk_lanes(side->peers, on_lane_row, &walk);
	return walk.found;
}

bool rig_lane_is(const struct rig_side *side, const char *tenant, const char *transport,
		 unsigned n_legs)
{
	struct kvx_lane_row row;

	return rig_lane(side, tenant, &row) && strcmp(row.state, "up") == 0 &&
	       strcmp(row.transport, transport) == 0 && row.n_legs == n_legs;
}

bool rig_lanes_are(const struct peer_rig *rig, const char *tenant, const char *transport,
		   unsigned n_legs)
{
	return rig_lane_is(&rig->a, tenant, transport, n_legs) &&
	       rig_lane_is(&rig->b, tenant, transport, n_legs);
}

/* a peer by hand */

void rig_raw_open(struct peer_rig *rig, const struct rig_side *to, struct rig_raw *raw)
{
	raw->rig = rig;
	raw->fd = connect_to(side_port(to));
	cr_assert_geq(raw->fd, 0);
	cr_assert_eq(kvx_reader_create(1u << 20, &raw->reader), 0);
}

void rig_raw_close(struct rig_raw *raw)
{
	kvx_reader_destroy(raw->reader);
	close(raw->fd);
}

void rig_raw_bytes(struct rig_raw *raw, const void *bytes, size_t len)
{
	cr_assert_eq(send(raw->fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

void rig_raw_send(struct rig_raw *raw, uint16_t type, const void *message)
{
	uint8_t buf[8192 + KVX_WIRE_HDR_BYTES];
	size_t len = protobuf_c_message_get_packed_size(message);
	const struct kvx_wire_hdr hdr = {.len_bytes = (uint32_t)len, .type = type};

	cr_assert_leq(len, 8192);
	kvx_wire_hdr_pack(&hdr, buf);
	protobuf_c_message_pack(message, buf + KVX_WIRE_HDR_BYTES);
	rig_raw_bytes(raw, buf, len + KVX_WIRE_HDR_BYTES);
}

int rig_raw_recv(struct rig_raw *raw, uint8_t *buf, size_t size, size_t *out_len)
{
	struct kvx_msg msg;

	for (unsigned i = 0; i < 8000; i++) {
		int n;

		while ((n = kvx_reader_next(raw->reader, &msg)) == 1) {
			if (msg.type == KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT)
				continue;
			cr_assert_leq(msg.len_bytes, size);
			memcpy(buf, msg.body, msg.len_bytes);
			*out_len = msg.len_bytes;
			return msg.type;
		}
		cr_assert_eq(n, 0);
		n = kvx_reader_fill(raw->reader, raw->fd);
		if (n == 0 || (n < 0 && n != -EAGAIN))
			return 0;
		if (n == -EAGAIN)
			rig_turn(raw->rig);
	}
	return -1;
}

bool rig_raw_wait(struct rig_raw *raw, int type, uint8_t *buf, size_t size, size_t *out_len)
{
	for (unsigned i = 0; i < 100; i++) {
		int got = rig_raw_recv(raw, buf, size, out_len);

		if (got == type)
			return true;
		if (got <= 0)
			return false;
	}
	return false;
}

Kvxp__PeerHello rig_raw_hello_message(uint8_t *id16, uint64_t epoch)
{
	static char *transports[] = {(char *)"fake"};
	Kvxp__PeerHello hello = KVXP__PEER_HELLO__INIT;

	hello.version_min = 1;
	hello.version_max = 1;
	hello.node_id.data = id16;
	hello.node_id.len = 16;
	hello.epoch = epoch;
	hello.transports = transports;
	hello.n_transports = 1;
	hello.lost_ms = 300;
	return hello;
}

int rig_raw_hello(struct rig_raw *raw, uint8_t id, uint64_t epoch)
{
	uint8_t id16[16], buf[4096];
	Kvxp__PeerHello hello = rig_raw_hello_message(id16, epoch);
	size_t len;

	memset(id16, id, sizeof(id16));
	rig_raw_send(raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	return rig_raw_recv(raw, buf, sizeof(buf), &len);
}
