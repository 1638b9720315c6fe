/* Two whole nodes with their peer tables in one process: real sockets on 127.0.0.1, the fake
 * transport and virtual time, one thread, one loop. Peers reach node b through a wire of ours that
 * a test can hold (nothing passes) or cut. And a peer by hand, that says what no daemon would. */
#ifndef KVX_PEER_RIG_H
#define KVX_PEER_RIG_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/clock.h"
#include "base/roles.h"
#include "base/timer.h"
#include "peer.pb-c.h"
#include "peer_rails.h"
#include "proto/kvx_wire.h"
#include "transport/fake/fake.h"
#include "xfer/peer.h"

#define RIG_ENDS  64
#define RIG_WIRES 16

struct rig_end {
	struct kvx_xfer_end end;
	char text[KVX_WHY_BYTES];
	uint64_t at_ns;
};
struct rig_arrival {
	struct kvx_arrival arrival;
	char text[KVX_WHY_BYTES];
	uint8_t payload[64];
};

/* What a callback of the peer channel has said. */
struct rig_answer {
	bool done;
	int status;
	char text[KVX_WHY_BYTES];
	struct kvx_target *target;
};

struct peer_rig;

struct rig_side {
	struct peer_rig *rig;
	struct kvx_node *node;
	struct kvx_peers *peers; /* NULL: closed */
	struct kvx_node_conf node_conf;
	struct kvx_peers_conf conf;
	unsigned n_rails;   /* of each transport; 0: as the script says */
	uint32_t bad_rails; /* bit set of those that are not usable */
	bool closed;
	unsigned n_ends, n_arrivals, n_messages, n_region_events;
	struct rig_end ends[RIG_ENDS];
	struct rig_arrival arrivals[RIG_ENDS];
	uint8_t message[64];
	uint32_t message_len;
	int message_status; /* what on_message answers */
};

struct rig_wire {
	int a, b; /* sockets; -1: none */
};

struct peer_rig {
	uv_loop_t loop;
	struct kvx_fake_script script;
	struct kvx_timers *timers;
	struct rig_side a, b; /* a has the lower node id */
	int wire_fd;          /* listens in front of b; -1: none */
	char wire_addr[32];
	bool wire_held;
	bool b_stopped; /* its daemon does nothing at all; what arrives at its memory does */
	struct rig_wire wires[RIG_WIRES];
	unsigned n_wires;
};

/* How much time passes with each look at the clock; 0 but for tests of that. */
extern uint64_t rig_clock_tick_ns;

/* Everything at its defaults; change confs before rig_start(). */
void rig_init(struct peer_rig *rig) KVX_ROLE_ATTR(assert_capability(kvx_role_loop));
void rig_start(struct peer_rig *rig) KVX_ON_LOOP;
void rig_start_side(struct rig_side *side) KVX_ON_LOOP; /* the peers of one side, also again */
void rig_close_side(struct rig_side *side) KVX_ON_LOOP; /* and waits */
void rig_stop(struct peer_rig *rig) KVX_ON_LOOP;        /* checks that nothing is left */

void rig_turn(struct peer_rig *rig) KVX_ON_LOOP;
void rig_turn_still(struct peer_rig *rig) KVX_ON_LOOP;        /* virtual time stands */
void rig_pass(struct peer_rig *rig, uint64_t ms) KVX_ON_LOOP; /* so much virtual time */
/* Turns until cond, at most so much virtual time; the value of cond then. What the kernel has not
 * carried by then has a second of real time more, in which virtual time stands. */
#define RIG_UNTIL(rig, cond, ms)                                                                   \
	({                                                                                         \
		uint64_t end_ = (rig)->script.now_ns + (ms)*KVX_MS;                                \
		while (!(cond) && (rig)->script.now_ns < end_)                                     \
			rig_turn(rig);                                                             \
		uint64_t real_ = kvx_now_ns() + KVX_SEC;                                           \
		while (!(cond) && kvx_now_ns() < real_)                                            \
			rig_turn_still(rig);                                                       \
		(cond);                                                                            \
	})

/* Descriptors of b lead to the wire from now on (what b says of itself does not). */
void rig_wire_b(struct peer_rig *rig);
void rig_wire_cut(struct peer_rig *rig);
void rig_wire_cut_near(struct peer_rig *rig); /* b does not notice */
/* A socket to where a side listens, that does not block; -1: it is refused. */
int rig_connect(const struct rig_side *to);

struct kvx_region *rig_region(struct rig_side *side, uint64_t len, uint32_t access,
			      struct kvx_layout *layout) KVX_ON_LOOP;
struct kvx_region *rig_region_of(struct rig_side *side, uint32_t tenant, uint64_t len,
				 uint32_t access, struct kvx_layout *layout) KVX_ON_LOOP;
void rig_region_close(struct rig_side *side,
		      struct kvx_region *region) KVX_ON_LOOP; /* does not wait */
struct kvx_desc rig_desc(const struct rig_side *side, const struct kvx_region *region);
/* Resolves and waits for the answer. */
struct rig_answer rig_resolve(struct rig_side *side, const struct kvx_desc *desc) KVX_ON_LOOP;
struct rig_answer rig_resolve_as(struct rig_side *side, uint32_t tenant,
				 const struct kvx_desc *desc) KVX_ON_LOOP;
void rig_on_resolved(void *arg, int status, const char *text, struct kvx_target *target);
void rig_on_reply(void *arg, int status, const char *text);
/* One op of len bytes from 0 to 0; 0 or the refusal. */
int rig_submit(struct rig_side *side, int op, struct kvx_region *region, struct kvx_target *target,
	       uint64_t len, uint64_t deadline_ms) KVX_ON_LOOP;

int rig_submit_by(struct rig_side *side, const char *require, int op, struct kvx_region *region,
		  struct kvx_target *target, uint64_t len, uint64_t deadline_ms) KVX_ON_LOOP;

/* The row of a side's only peer; false: it has none. */
bool rig_row(const struct rig_side *side, struct kvx_peer_row *out_row) KVX_ON_LOOP;
bool rig_is_up(const struct rig_side *side) KVX_ON_LOOP;
bool rig_lane_is_up(const struct rig_side *side) KVX_ON_LOOP;
uint64_t rig_lane_generation(const struct rig_side *side) KVX_ON_LOOP;

/* The row of a tenant's lane to the only peer; false: there is none. */
bool rig_lane(const struct rig_side *side, const char *tenant,
	      struct kvx_lane_row *out_row) KVX_ON_LOOP;
/* Up, by this transport, with so many legs? On both sides? */
bool rig_lane_is(const struct rig_side *side, const char *tenant, const char *transport,
		 unsigned n_legs) KVX_ON_LOOP;
bool rig_lanes_are(const struct peer_rig *rig, const char *tenant, const char *transport,
		   unsigned n_legs) KVX_ON_LOOP;

/* A peer by hand. */
struct rig_raw {
	struct peer_rig *rig;
	int fd;
	struct kvx_reader *reader;
};
void rig_raw_open(struct peer_rig *rig, const struct rig_side *to, struct rig_raw *raw);
void rig_raw_close(struct rig_raw *raw);
void rig_raw_send(struct rig_raw *raw, uint16_t type, const void *message);
void rig_raw_bytes(struct rig_raw *raw, const void *bytes, size_t len);
/* HELLO of a node whose id is 16 times `id`; and waits for the answer's type. */
int rig_raw_hello(struct rig_raw *raw, uint8_t id, uint64_t epoch) KVX_ON_LOOP;
Kvxp__PeerHello rig_raw_hello_message(uint8_t *id16, uint64_t epoch);
/* Type of the next frame that is no heartbeat; 0: end of stream; -1: nothing came. body: unpacked
 * by the caller from the copy. */
int rig_raw_recv(struct rig_raw *raw, uint8_t *buf, size_t size, size_t *out_len) KVX_ON_LOOP;
/* Skips frames until one of this type; false: end of stream or nothing came. */
bool rig_raw_wait(struct rig_raw *raw, int type, uint8_t *buf, size_t size,
		  size_t *out_len) KVX_ON_LOOP;

#endif
