/* Lanes to peers, inside: a lane joins this node to one peer for one tenant; each generation of it
 * goes by one transport and has legs, one for each pair of rails. A tenant may have a second lane,
 * the bounce lane, by transports that reach memory of every kind: for regions that the devices of
 * the first one do not reach. The two know nothing of each other. Shared by
 *
 *   peer_lane.c       a lane's life: when a generation begins and when it is made anew
 *   peer_lane_up.c    set-up
 *   peer_leg.c        its legs: which rails, commands to their endpoints, leases
 *   peer_lane_pick.c  which transport and which rails the next generation uses
 *   peer_lane_frame.c LANE, LANE_UP and LANE_DOWN of the other side
 *   peer_lane_down.c  tear-down
 *
 * Everything here belongs to the loop thread; endpoints live on the workers of their rails and are
 * reached by commands only. */
#ifndef KVX_PEER_LANE_H
#define KVX_PEER_LANE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/clock.h"
#include "base/roles.h"
#include "peer.pb-c.h"
#include "proto/kvx_err.h"
#include "xfer/lane.h"
#include "xfer/node.h"

#define LANE_MAGIC      0x6c616e65u
#define LANE_TRIES      3u              /* set-ups by one transport before the next one is tried */
#define LANE_RENEW_NS   (60 * KVX_SEC)  /* a lane that could be better is made anew after that */
#define LANE_RENEW_MAX  4u              /* doublings of it while that does not help */
#define LANE_QUIET_NS   KVX_SEC         /* and when nobody has used it for so long */
#define LANE_OVERDUE_NS (240 * KVX_SEC) /* so long after that also when it is used */
#define LANE_PAUSE_NS   (2 * KVX_SEC)   /* it waits so long for what is in flight */
#define LANE_STABLE_NS  (2 * KVX_SEC)   /* one that breaks sooner counts as a failed set-up */
#define LANE_POLL_NS    KVX_MS          /* waiting for batches to come back */
#define LANE_FENCES     3u              /* tries of a fence that fails */

struct kvx_peer;
struct peer_lane;

/* One endpoint of a generation. Slot i here and slot i at the other side belong together. */
struct peer_leg {
	struct peer_lane *lane;
	const struct kvx_node_rail *rail; /* NULL: the slot is not used */
	struct kvx_ep *ep;                /* NULL: none yet, or none any more */
	bool up;                          /* CONNECT was done */
	bool over;         /* the other side has none for it: it is closed while the others go on */
	bool setup_busy;   /* cmd_setup is with the worker */
	bool lease_busy;   /* cmd_lease is with the worker */
	bool down_busy;    /* cmd_down is with the worker */
	bool lease_zeroed; /* LEASE 0 was done */
	bool fenced;
	uint64_t lease_sent_ns; /* newest submitted */
	struct kvx_cmd cmd_setup, cmd_lease, cmd_down;
};

/* What the other side said of its leg in a slot. */
struct peer_leg_addr {
	uint8_t addr[KVX_TRANSPORT_ADDR_MAX];
	size_t addr_len; /* 0: it has none there */
	char rail[KVX_RAIL_NAME_BYTES];
};

enum lane_phase {
	LANE_IDLE,       /* no ep */
	LANE_LISTENING,  /* waits for LISTENs */
	LANE_OFFERED,    /* lower node id: waits for the answer */
	LANE_CONNECTING, /* waits for CONNECTs */
	LANE_WAIT_UP,    /* waits for the other side's */
	LANE_UP,
	LANE_STOPPING, /* waits for LEASE 0: inbound is being stopped */
	LANE_FENCING,  /* waits for FENCEs */
	LANE_SETTLING, /* waits until nothing that was sent can land: what came back is held */
	LANE_DRAINING, /* waits for what is in flight to come back */
	LANE_CLOSING,  /* waits for RKEY_FREEs and EP_CLOSEs */
};

/* Waiting until inbound by lanes of a tenant has come to its end once: begun with those that had
 * not stopped then. */
struct lane_fence {
	uint64_t stops[2]; /* of the lane, of the bounce lane */
	unsigned open;     /* bit set: which of them is still waited for */
};
#define LANES_BOTH 3u /* bit set of the lane and the bounce lane */

/* Owned by its peer, lives as long as it. */
struct peer_lane {
	uint32_t magic;
	struct kvx_peer *peer;
	struct kvx_lane lane; /* what transfers see */
	unsigned index;       /* in the peer's lanes */
	uint32_t tenant;
	bool any_memory; /* it is the tenant's bounce lane */
	bool wanted;     /* by both hellos there is to be one */
	const struct kvx_transport_ops *common[KVX_NODE_TRANSPORTS]; /* that it may go by, of those
									of the peer: best first */
	unsigned n_common;
	enum lane_phase phase;
	struct peer_leg legs[KVX_MAX_RAILS];
	unsigned n_slots; /* of legs, in this generation */
	struct peer_leg_addr remote[KVX_MAX_RAILS];
	unsigned n_remote;
	uint64_t wire_generation;  /* of the newest set-up, as PeerLane names it */
	uint64_t last_offer;       /* higher node id: newest offer of this epoch */
	uint64_t offer_generation; /* higher node id: an offer that waits; 0: none */
	const struct kvx_transport_ops *offer_ops;
	bool remote_up;
	bool remote_down;     /* the other side said LANE_DOWN of wire_generation */
	bool announced;       /* the other side knows wire_generation */
	bool told_down;       /* LANE_DOWN was sent on this connection */
	bool lease_stopped;   /* LEASE 0 is wanted */
	bool down_wanted;     /* tear it down as soon as the LISTENs are back */
	bool remote_dead;     /* epoch of the other side is over: never send LANE_DOWN */
	unsigned n_keys_busy; /* RKEY_* of this lane's targets with workers */
	int down_status, down_vendor;
	bool down_to_renew;
	char down_text[KVX_WHY_BYTES];
	uint64_t lease_ns; /* newest wanted */
	uint64_t setup_deadline_ns;
	uint64_t stop_deadline_ns;
	uint64_t lost_safe_ns; /* the peer was lost: from then on nothing of ours lands there; 0: it
				  was not */
	uint64_t fenced_ns;    /* since when all legs are fenced; 0: they are not */
	unsigned n_fences;     /* tries */
	uint64_t up_ns;        /* since when; 0: not up */
	uint64_t held_ns;      /* since when the scheduler holds a failed batch; 0: it does not */
	uint64_t retry_ns;
	unsigned n_failed; /* set-ups in a row that did not come up */
	unsigned n_broken; /* generations in a row that did not last */
	/* which transport and rails: peer_lane_pick.c */
	unsigned level;        /* index in `common` */
	unsigned level_failed; /* in a row by this one */
	unsigned level_tries;  /* then the next one */
	uint64_t rails_tried;  /* bit sets by index in kvx_node_rails(): in this set-up */
	uint64_t rails_suspect, rails_avoid; /* did not connect once, twice */
	bool renew_now;      /* a port has come up: do not wait until nobody uses it */
	uint64_t pause_ns;   /* since when it gives out nothing, to be made anew; 0: it does */
	uint64_t renew_ns;   /* then it may be made anew */
	unsigned n_renewals; /* that did not make it better */
	uint64_t quiet_ns, seen_activity; /* since when nobody has used it */
	/* the peer's use of it */
	uint64_t n_stops;          /* how often inbound has come to its end */
	unsigned n_inbound;        /* transfers that are open */
	uint64_t n_inbound_opened; /* ever */
	/* totals, for people */
	uint64_t n_fallback;
	char last_error[KVX_WHY_BYTES];
};

/* peer_lane.c */
int lane_create(struct kvx_peer *peer, unsigned index, struct peer_lane **out_lane) KVX_ON_LOOP;
void lane_destroy(struct peer_lane *lane) KVX_ON_LOOP; /* NULL is fine */
struct peer_lane *lane_of(struct kvx_lane *lane);
/* A new connection; what the hellos say of the lane, and the epoch of the peer, are set. */
void lane_on_conn(struct peer_lane *lane, bool new_epoch) KVX_ON_LOOP;
void lane_extend(struct peer_lane *lane) KVX_ON_LOOP; /* the peer's lease_base_ns has grown */
bool lane_is_idle(const struct peer_lane *lane);
bool lane_inbound_is_stopped(const struct peer_lane *lane);
/* Was inbound stopped at any moment since n_stops was `stops`? A new generation may have begun
 * since. */
bool lane_has_stopped_since(const struct peer_lane *lane, uint64_t stops);
void lane_step(struct peer_lane *lane) KVX_ON_LOOP;
uint64_t lane_next_ns(const struct peer_lane *lane);
const char *lane_state_name(const struct peer_lane *lane);
const char *lane_tenant_name(const struct peer_lane *lane);
const char *lane_kind_name(const struct peer_lane *lane); /* "lane", "bounce lane" */
void lane_note_error(struct peer_lane *lane, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* A rail may be of use again. */
void lane_on_device_up(struct peer_lane *lane, const struct kvx_node_rail *rail) KVX_ON_LOOP;

/* peer_lane_up.c */
/* A new generation, from idle, by that transport. */
void lane_begin(struct peer_lane *lane, const struct kvx_transport_ops *ops) KVX_ON_LOOP;
void lane_note_unusable(struct peer_lane *lane, const struct kvx_transport_ops *ops) KVX_ON_LOOP;
/* Legs: a LISTEN, or all CONNECTs of one, are back. */
void lane_on_listened(struct peer_lane *lane) KVX_ON_LOOP;
void lane_on_connected(struct peer_lane *lane, struct peer_leg *leg,
		       const struct kvx_cmd *cmd) KVX_ON_LOOP;
/* The other side's answer: remote[] is filled. */
void lane_on_answer(struct peer_lane *lane) KVX_ON_LOOP;
void lane_check_up(struct peer_lane *lane) KVX_ON_LOOP;
void lane_count_failure(struct peer_lane *lane) KVX_ON_LOOP;

/* peer_leg.c */
bool leg_is_live(const struct peer_leg *leg);
unsigned legs_count(const struct peer_lane *lane);     /* live ones */
bool legs_busy_in_setup(const struct peer_lane *lane); /* LISTEN or CONNECT */
bool legs_are_busy(const struct peer_lane *lane);      /* any command */
bool legs_lease_is_zero(const struct peer_lane *lane); /* of all live ones */
bool legs_are_up(const struct peer_lane *lane);        /* all live ones */
uint64_t legs_settle_ns(const struct peer_lane *lane); /* the longest */
struct peer_leg *legs_find(struct peer_lane *lane, unsigned dom_index);
const char *leg_rail_name(const struct peer_leg *leg); /* for people */
void legs_listen(struct peer_lane *lane) KVX_ON_LOOP;  /* all that have a rail and no ep */
void legs_connect(struct peer_lane *lane) KVX_ON_LOOP; /* those with an address; others go */
void legs_lease(struct peer_lane *lane, uint64_t lease_ns) KVX_ON_LOOP; /* 0: for good */
/* FENCE (but of those that are fenced) or EP_CLOSE of all live ones; wakes the peer as each is
 * back.
 */
void legs_command(struct peer_lane *lane, enum kvx_work_kind kind) KVX_ON_LOOP;
void legs_set_outlets(struct peer_lane *lane) KVX_ON_LOOP;
void legs_clear(struct peer_lane *lane) KVX_ON_LOOP; /* no command is out */

/* peer_lane_pick.c */
/* The transport of the next generation that we offer; NULL: none can be used now. */
const struct kvx_transport_ops *lane_pick_transport(struct peer_lane *lane) KVX_ON_LOOP;
/* It may have to be waited for. */
bool lane_has_transport(const struct peer_lane *lane);
bool transport_has_rail(const struct kvx_node *node, const struct kvx_transport_ops *ops);
/* Gives slots rails of lane.ops that were not tried yet. Returns how many slots got one. */
unsigned lane_pick_rails(struct peer_lane *lane) KVX_ON_LOOP;
unsigned lane_count_slots(const struct peer_lane *lane);   /* of an offer of ours */
void lane_pick_failed(struct peer_lane *lane) KVX_ON_LOOP; /* a set-up did */
void lane_pick_rail_failed(struct peer_lane *lane, const struct kvx_node_rail *rail);
void lane_pick_up(struct peer_lane *lane) KVX_ON_LOOP;    /* it is up */
void lane_pick_reset(struct peer_lane *lane) KVX_ON_LOOP; /* a new connection: all from the best */
void lane_pick_device_up(struct peer_lane *lane, const struct kvx_node_rail *rail) KVX_ON_LOOP;
bool lane_could_be_better(const struct peer_lane *lane);
void lane_pick_renew(struct peer_lane *lane) KVX_ON_LOOP; /* it is made anew to be better */

/* peer_lane_frame.c */
int lane_on_lane(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int lane_on_up(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
int lane_on_down(struct kvx_peer *peer, const ProtobufCMessage *message) KVX_ON_LOOP;
void lane_send(struct peer_lane *lane, bool answer) KVX_ON_LOOP; /* PEER_LANE of the live legs */
void lane_send_up(struct peer_lane *lane) KVX_ON_LOOP;
/* "Nothing of wire_generation lands here any more", once per connection. */
void lane_tell_down(struct peer_lane *lane) KVX_ON_LOOP;

/* peer_lane_down.c */
/* From any phase but idle; a second call adds nothing. Acts in peer_step(). */
void lane_down(struct peer_lane *lane, int status, const char *text) KVX_ON_LOOP;
/* Likewise, when an endpoint, its device or the other side's broke. */
void lane_break(struct peer_lane *lane, int status, int vendor_code, const char *text) KVX_ON_LOOP;
void lane_renew(struct peer_lane *lane) KVX_ON_LOOP; /* likewise, when a better one may be had */
void lane_step_down(struct peer_lane *lane) KVX_ON_LOOP;
uint64_t lane_down_next_ns(const struct peer_lane *lane);

#endif
