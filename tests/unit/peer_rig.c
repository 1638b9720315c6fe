/* The life of both nodes of peer_rig.h, the wire in front of b, and time. */
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

#define TURN_NS (KVX_MS / 2)

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

static void set_nodelay(int fd)
{
	const int one = 1;

	cr_assert_eq(setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one)), 0);
}

int rig_connect(const struct rig_side *to)
{
	const int port = atoi(strrchr(kvx_peers_address(to->peers), ':') + 1);
	struct sockaddr_in addr = {.sin_family = AF_INET,
				   .sin_port = htons((uint16_t)port),
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
		wire->b = rig->b.peers != NULL ? rig_connect(&rig->b) : -1;
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
void rig_turn_still(struct peer_rig *rig)
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
}

void rig_turn(struct peer_rig *rig)
{
	rig_turn_still(rig);
	kvx_fake_advance(&rig->script, TURN_NS);
}

void rig_pass(struct peer_rig *rig, uint64_t ms)
{
	uint64_t end = rig->script.now_ns + ms * KVX_MS;

	while (rig->script.now_ns < end)
		rig_turn(rig);
}
