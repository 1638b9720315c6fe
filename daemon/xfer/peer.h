/* Peers: other nodes' daemons. One TCP connection per pair of nodes, versioned hello, heartbeats,
 * loss, jittered reconnect; over it the lane is set up, regions are resolved (once per node, shared
 * by all clients), withdrawn, and transfers are announced and ended. Loop thread; libuv for the
 * sockets. */
#ifndef KVX_PEER_H
#define KVX_PEER_H

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#include "base/roles.h"
#include "xfer/desc.h"
#include "xfer/node.h"
#include "xfer/peer_tls.h"
#include "xfer/target.h"
#include "xfer/xfer.h"

#define KVX_PEER_PORT "7717" /* of addresses that name none */

struct kvx_peers;
struct kvx_peer;

struct kvx_peers_conf {
	uv_loop_t *loop;
	struct kvx_timers *timers;
	struct kvx_node *node; /* for regions, mkeys, transfers and the peer worker */
	uint8_t node_id[KVX_NODE_ID_BYTES];
	uint64_t epoch;
	const char
	    *listen; /* "host:port"; port 0: any; "": no listening, no peers reach this node */
	const char *advertise; /* what descriptors and hellos carry; "": the listen address */
	bool insecure;         /* listen on and dial other addresses than loopback without auth */
	struct kvx_peer_auth auth; /* how nodes prove who they are; borrowed for the call */
	const char *version;       /* daemon version, for people */
	uint32_t heartbeat_ms;     /* 1000 */
	uint32_t lost_ms;          /* 3000: no frame for that long: lost */
	uint32_t reconnect_min_ms, reconnect_max_ms; /* jittered exponential back-off */
	uint32_t fence_bound_ms; /* wait for WITHDRAWN at most that long, then fence the lane */
	uint32_t max_peers;
	uint32_t max_frame_bytes;
	uint64_t quantum_bytes; /* for lane schedulers */
	const char *const
	    *tenants;  /* names, by index, ended by NULL; borrowed for ever; NULL: {"default"} */
	bool fallback; /* a lane that cannot be made by one transport is made by the next one */
	void *arg;
	/* A transfer of another node to or from a region here has ended. */
	void (*on_arrival)(void *arg, const struct kvx_arrival *arrival);
	/* A message for the owner of a region here. Returns 0, or -errno for the sender (-EPIPE,
	 * -EDQUOT). */
	int (*on_message)(void *arg, struct kvx_region *region, const void *data, uint32_t len);
};

/* -EADDRINUSE, -EADDRNOTAVAIL, -EINVAL; -EPERM: non-loopback address without insecure; all said in
 * *why. */
int kvx_peers_open(const struct kvx_peers_conf *conf, struct kvx_peers **out_peers,
		   struct kvx_why *why) KVX_ON_LOOP;
/* Says BYE, fences every lane, closes every socket, frees; closed runs once when all is gone. */
void kvx_peers_close(struct kvx_peers *peers, void (*closed)(void *arg), void *arg) KVX_ON_LOOP;
const char *kvx_peers_address(
    const struct kvx_peers *peers); /* advertised "host:port"; "" when not listening */

/* Makes a target of a descriptor of another node: connects where needed, waits for the lane,
 * resolves. tenant: of the client that asks; the region's must be the same, else -EACCES. cb runs
 * exactly once unless the call returns an error, never before return: status 0 and a target with a
 * reference for the caller, or -ENOENT, -EACCES, -ESTALE, -EHOSTUNREACH, -ETIMEDOUT, -EHOSTDOWN ...
 * with text. *out_resolve can be given to kvx_resolve_abandon() until cb has run: then cb never
 * runs. */
struct kvx_resolve;
typedef void (*kvx_resolve_cb)(void *arg, int status, const char *text, struct kvx_target *target);
int kvx_peers_resolve(struct kvx_peers *peers, const struct kvx_desc *desc, uint32_t tenant,
		      uint64_t timeout_ns, kvx_resolve_cb cb, void *arg,
		      struct kvx_resolve **out_resolve, struct kvx_why *why) KVX_ON_LOOP;
void kvx_resolve_abandon(struct kvx_resolve *resolve) KVX_ON_LOOP;

/* Makes a target of a region that a client of the tenant has published on another node: asks the
 * daemon that listens at address ("host:port", "host"), then as kvx_peers_resolve(). cb runs
 * exactly once unless the call returns an error, never before return. -EINVAL no address,
 * -EHOSTUNREACH, -EBUSY, -ENOMEM, -ESHUTDOWN; to cb also -ENOENT nobody has published the name. */
struct kvx_find;
struct kvx_find_request {
	const char *address;
	const char *name; /* shorter than KVX_PUBLISH_BYTES */
	uint32_t tenant;
};
struct kvx_found { /* borrowed for the call */
	int status;
	const char *text;
	bool own;                  /* status 0, no target: the address is this node's */
	struct kvx_target *target; /* with a reference for the callee */
	const char *name;          /* as asked for */
	const void *note;
	uint32_t note_bytes;
};
typedef void (*kvx_find_cb)(void *arg, const struct kvx_found *found);
int kvx_peers_find(struct kvx_peers *peers, const struct kvx_find_request *request,
		   uint64_t timeout_ns, kvx_find_cb cb, void *arg, struct kvx_find **out_find,
		   struct kvx_why *why) KVX_ON_LOOP;
void kvx_find_abandon(struct kvx_find *find) KVX_ON_LOOP; /* cb never runs */
/* Is it the address that this node tells others? There may be other addresses of it. */
bool kvx_peers_is_own(const struct kvx_peers *peers, const char *address);

/* A message to the owner of target's region; cb as above. -EDQUOT: the peer has too much unread. */
typedef void (*kvx_peer_reply_cb)(void *arg, int status, const char *text);
struct kvx_peer_call;
struct kvx_peer_message {
	const void *data; /* copied */
	uint32_t len;
	uint64_t stream; /* 0; else: of those with this number none is delivered behind one that was
			    refused. Never used again after a refusal. */
};
int kvx_peers_message(struct kvx_peers *peers, struct kvx_target *target,
		      const struct kvx_peer_message *message, uint64_t timeout_ns,
		      kvx_peer_reply_cb cb, void *arg, struct kvx_peer_call **out_call) KVX_ON_LOOP;
/* Round trip to a peer known by node id (32 hex digits) or by "host:port"; text of the reply is a
 * number of ns. */
int kvx_peers_ping(struct kvx_peers *peers, const char *who, uint64_t timeout_ns,
		   kvx_peer_reply_cb cb, void *arg, struct kvx_peer_call **out_call,
		   struct kvx_why *why) KVX_ON_LOOP;
void kvx_peer_call_abandon(struct kvx_peer_call *call) KVX_ON_LOOP;

/* The node's and the transfers' hooks (see node.h): kvx_peers_open() installs them. */
void kvx_peers_remote_open(void *peers, struct kvx_target *target, uint64_t xfer_uid, int op,
			   uint64_t tag, const char *label) KVX_ON_LOOP;
void kvx_peers_remote_end(void *peers, struct kvx_target *target, uint64_t xfer_uid,
			  const struct kvx_arrival *end) KVX_ON_LOOP;
void kvx_peers_withdraw(void *peers, struct kvx_region *region, const struct kvx_withdrawal *why,
			void (*done_cb)(void *done_arg), void *done_arg) KVX_ON_LOOP;
void kvx_peers_lane_reset(void *peers, struct kvx_lane *lane, const char *cause) KVX_ON_LOOP;
void kvx_peers_note(void *peers, unsigned dom_index, const struct kvx_tevent *event) KVX_ON_LOOP;

/* For kvxferctl. */
struct kvx_peer_row {
	char node_id[33];
	const char *addr;
	const char *state; /* "connecting", "hello", "up", "lost" */
	uint64_t epoch;
	uint64_t up_ns;  /* since when; 0: not up */
	uint64_t rtt_ns; /* of the newest answered heartbeat; 0: none */
	unsigned n_lanes, n_lanes_up;
	const char *lane_transport, *lane_state; /* of the default tenant's lane */
	uint64_t lane_generation;
	uint32_t n_targets, n_inbound;
	uint64_t lane_bytes, lane_ops, lane_batches, lane_resets; /* of all its lanes */
	uint64_t n_stale_dropped, n_connects, n_lost;
	const char *last_error;
};
void kvx_peers_walk(const struct kvx_peers *peers,
		    void (*cb)(void *arg, const struct kvx_peer_row *row), void *arg) KVX_ON_LOOP;
/* The transfers of other nodes to and from regions here, as far as they have begun. */
struct kvx_inbound_row {
	const char *peer; /* its node id, 32 hex digits */
	uint32_t tenant;
	uint64_t region, tag;
	int op;
	const char *label; /* "": none */
	uint64_t open_ns;
};
void kvx_peers_walk_inbound(const struct kvx_peers *peers,
			    void (*cb)(void *arg, const struct kvx_inbound_row *row),
			    void *arg) KVX_ON_LOOP;
struct kvx_leg_row {
	const char *rail, *remote_rail; /* device names */
	uint32_t batches_in_flight;
	uint64_t bytes_in_flight;
};
struct kvx_lane_row {
	const char *peer; /* its node id, 32 hex digits */
	const char *tenant;
	bool any_memory;       /* the tenant's second one */
	const char *transport; /* "" when there is none yet */
	const char *state;     /* "down", "connecting", "up", "closing" */
	uint64_t generation;   /* as both nodes name it */
	uint64_t up_ns;        /* since when; 0: not up */
	unsigned n_legs;
	struct kvx_leg_row legs[KVX_MAX_RAILS];
	uint32_t queue_batches; /* in flight at most, of each leg */
	uint64_t n_batches, n_ops, n_bytes, n_errors;
	uint64_t n_resets;   /* torn down after it was up */
	uint64_t n_failed;   /* set-ups in a row that did not come up */
	uint64_t n_fallback; /* generations by another transport than the best */
	const char *last_error;
};
void kvx_peers_walk_lanes(const struct kvx_peers *peers,
			  void (*cb)(void *arg, const struct kvx_lane_row *row),
			  void *arg) KVX_ON_LOOP;

#endif
