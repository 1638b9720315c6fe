/* The verbs backend's own types, shared by its files.
 *
 *   dom    one port of one RDMA device: completion queue, protection domains, table of eps
 *   ep     one leg of a lane: its queue pairs, all to one ep of the other side
 *   qp     one reliable connected queue pair and the chains that are open on it
 *   chain  work requests posted with one doorbell, of which the last one completes aloud
 *
 * Threads (KVX_CAP_BLOCKING_CONTROL). [data] is the worker's thread: open, close, post, progress,
 * arm, rkey_*, ep_close, lease(> 0). Helpers: [mem] mem_reg, mkey_pack, mem_dereg (one thread each
 * for host memory, and for each GPU, whose driver may hang in them: no other thread may ever wait
 * for those); [setup] listen, connect; [fence] fence, lease(0). A field says who writes it; what
 * more than one thread touches is _Atomic, or is handed over by an atomic that the comment names.
 * There is no lock, but for helpers among themselves in verbs_flush.c.
 *
 * How a queue pair ends while others may use it: ep->hold counts who is using the ep's queue pairs
 * right now, and has a bit (VERBS_CUT) that lets nobody in any more. Who sets the bit while nobody
 * is inside destroys the queue pairs; else the last one to leave does. Each queue pair is owned by
 * who takes its pointer out of qp->ibqp. */
#ifndef KVX_VERBS_PRIV_H
#define KVX_VERBS_PRIV_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <infiniband/verbs.h>

#include "base/assert.h"
#include "mem/region.h"
#include "transport/transport.h"
#include "transport/verbs/verbs_build.h"
#include "transport/verbs/verbs_gid.h"
#include "transport/verbs/verbs_mem.h"

#define VERBS_DOM_MAGIC        0x6b76787672646f6dull
#define VERBS_MAX_QPS          16u   /* of one ep */
#define VERBS_MAX_EPS          1024u /* of one domain */
#define VERBS_MAX_SGE          32u
#define VERBS_MAX_DEPTH        32768u
#define VERBS_MAX_INLINE       1024u
#define VERBS_MAX_PORTS        4u /* of a device, that are looked at */
#define VERBS_MAX_WAITS        8u /* different things that a port may wait for */
#define VERBS_WHOLE_SHIFT      63u
#define VERBS_FLUSH_BYTES      64u /* what the other side may read of an ep's own memory */
#define VERBS_FLUSH_READ_BYTES 8u  /* what it does read */
#define VERBS_LOOP_DEPTH       32u /* flushes of this node on the way at once, of one tenant */
#define VERBS_STASH            16u /* completions that arm() takes out */
#define VERBS_CUT              0x80000000u

/* address of an ep: pure (verbs_addr.c) */

struct verbs_addr_qp {
	uint32_t qpn;
	uint32_t psn; /* its first packet's */
};
struct verbs_addr {
	bool ethernet;
	enum ibv_mtu mtu;
	uint16_t lid;
	uint8_t max_reads; /* reads that it serves at once, per queue pair */
	uint8_t gid[16];
	uint64_t flush_addr; /* VERBS_FLUSH_BYTES that may be read */
	uint32_t flush_rkey;
	uint32_t n_qps;
	struct verbs_addr_qp qps[VERBS_MAX_QPS];
};
/* Bytes written: at most KVX_TRANSPORT_ADDR_MAX. */
size_t verbs_addr_encode(const struct verbs_addr *addr, uint8_t buf[KVX_TRANSPORT_ADDR_MAX]);
/* 0; -EINVAL: not one; -EPROTONOSUPPORT: of another version. */
int verbs_addr_decode(const void *buf, size_t len, struct verbs_addr *out_addr);

/* endpoints */

struct verbs_qp {
	_Atomic(struct ibv_qp *) ibqp; /* NULL: destroyed, or being so by who took it */
	uint32_t qpn;                  /* [setup] in listen(), then constant */
	uint32_t psn;
	struct verbs_fifo fifo; /* [data] */
};

/* [data] */
enum verbs_ep_state {
	VERBS_EP_LISTENING, /* until connect() is seen to have returned */
	VERBS_EP_PROVING,   /* a read on every queue pair is due or under way */
	VERBS_EP_UP,
	VERBS_EP_DOWN, /* takes no more ops; open ones are reported once fence() is done */
};

enum verbs_stop { VERBS_STOP_NONE, VERBS_STOP_LEASE, VERBS_STOP_FENCE };

struct kvx_ep {
	struct kvx_dom *dom;
	uint32_t tenant;
	uint16_t index; /* in dom->eps */
	uint16_t generation;
	uint32_t n_qps;  /* made [setup]; those in use may be fewer after connect() */
	uint32_t n_used; /* [setup] -> [data] by connected */
	struct verbs_qp qps[VERBS_MAX_QPS];
	struct ibv_pd *pd;
	/* A page of its own: what the other side reads to flush (VERBS_FLUSH_BYTES), then where our
	 * own flush reads land. */
	uint8_t *flush_page;
	struct ibv_mr *flush_mr; /* [setup], then [fence] */
	/* Our own address as the other side was told, and where it is in the port's table. [setup]
	 */
	uint8_t gid[16];
	uint8_t gid_index;
	enum ibv_mtu mtu;
	uint64_t remote_flush_addr;
	uint32_t remote_flush_rkey;

	_Atomic uint32_t hold;    /* users of the queue pairs, and VERBS_CUT */
	_Atomic uint32_t n_alive; /* queue pairs not yet destroyed */
	_Atomic uint32_t stop;    /* enum verbs_stop: who asked for the cut: [fence] */
	_Atomic bool connected;   /* connect() succeeded: [setup] -> [data] */
	_Atomic int dead;         /* once it is down, why: [data] -> [setup] */
	_Atomic bool fenced;      /* fence() succeeded: [fence] -> [data] */

	/* All below [data]. */
	enum verbs_ep_state state;
	bool news_up, news_down; /* events to be reported */
	bool was_up;
	uint32_t n_proven;
	uint64_t prove_ns; /* PROVING: when the reads are to be posted, then when to give up */
	bool prove_posted;
	uint64_t lease_ns;
	int down_status;
	int down_vendor;
	const char *down_text;
	/* Ops that verbs_build_chain() refused, all of one cookie; n 0: none. */
	uint64_t refused_cookie;
	uint32_t refused_n;
	int refused_status;
};

struct kvx_dom {
	uint64_t magic;
	/* Set by verbs_open(), constant from then on. */
	struct ibv_context *context; /* its async_fd and the channel's fd do not block */
	struct ibv_comp_channel *channel;
	struct ibv_device_attr device;
	char name[KVX_RAIL_NAME_BYTES]; /* "mlx5_0:1", for the log */
	uint8_t port;
	char netdev[16]; /* its interface, for the log */
	bool ethernet;
	uint32_t max_msg_bytes;
	struct kvx_verbs_conf conf; /* as it is used: every value is one that the device takes */
	uint32_t max_dest_reads;    /* reads that this device serves at once, per queue pair */
	uint32_t mem_kinds;
	uint64_t max_mr_bytes;
	int event_fd; /* epoll of the four below */
	int timer_fd;
	int wake_fd;         /* eventfd: a helper has news for [data] */
	uint32_t cq_entries; /* completions that the queue holds */
	uint32_t ep_entries; /* of them, what one ep needs: qps_per_lane * sq_depth */
	struct verbs_build_limits limits;

	/* Protection domains, made when first used: any thread. */
	_Atomic(struct ibv_pd *) pds[KVX_MAX_TENANTS];

	/* GPU memory: flushes by verbs_flush.c, which lets one helper in at a time. */
	_Atomic bool flush_taken;
	struct verbs_flush *flushes;
	uint64_t n_flushes; /* made so far */
	/* Made with the first GPU region of a tenant, kept. */
	_Atomic(struct verbs_loop *) loops[KVX_MAX_TENANTS];
	_Atomic(struct verbs_left *) left; /* loopbacks that the device keeps: verbs_pair.c */
	/* The port's own loopback did not answer: it is not waited for again before that time,
	 * unless the port has told something since. As flushes, but for the count. */
	uint64_t no_loopback_until_ns;
	uint32_t no_loopback_news;
	struct kvx_why no_loopback_why;
	_Atomic uint32_t port_news; /* [data] counts */

	/* [data]; replaced only while cq_broken and n_eps is 0, which [setup] sees by cq_broken. */
	struct ibv_cq *cq;

	_Atomic uint32_t n_eps;            /* eps made or being made */
	_Atomic uint32_t cq_used;          /* completions reserved by eps */
	_Atomic bool cq_broken;            /* it overran: no ep works; [data] */
	_Atomic bool attention;            /* a helper has changed an ep: look at all of them */
	_Atomic bool port_doubt;           /* a helper found the port other than port_now says */
	_Atomic bool slots[VERBS_MAX_EPS]; /* index is taken: [setup] sets, [data] clears */
	_Atomic(struct kvx_ep *) eps[VERBS_MAX_EPS]; /* likewise, but NULL while being made */
	uint16_t generations[VERBS_MAX_EPS];         /* handed over by slots[] */
	_Atomic uint32_t eps_end;                    /* one past the highest index ever used */

	/* All below [data]. */
	struct verbs_build build;
	struct ibv_wc *stash; /* completions that arm() found */
	uint32_t n_stash, stash_at;
	bool scan_due;       /* an ep has something to report or to do */
	uint32_t scan_waits; /* calls since then in which the queue was not found empty */
	bool armed;          /* arm() said 0: the fds of event_fd are to be read */
	bool lost, lost_told, port_up_due;
	const char *lost_text;
	uint32_t turns;
	struct verbs_flush *busy; /* with reads wanted or on the way, see verbs_park.c */
	bool release_due;         /* chains that have waited for a flush may be done */
	uint32_t cq_closing;      /* part of cq_used that is given back once the queue was empty */
	uint64_t look_ns;         /* when the port is looked at again; 0: when it says something */
	uint64_t mend_ns;         /* when a new completion queue is tried again; 0: at once */
	uint64_t next_due_ns; /* earliest of that, leases and proofs of all eps; UINT64_MAX: none */
	uint64_t timer_ns;    /* what timer_fd is set to */
	struct kvx_dom_counters counters; /* regs*: [mem]; the others: [data] */
	struct kvx_dom_port port_now;
	/* What port_now.waits has pointed to so far: never changed, as the loop may be reading. */
	char wait_texts[VERBS_MAX_WAITS][KVX_WHY_BYTES];
	unsigned n_wait_texts;
};

/* verbs_list.c, verbs_probe.c, verbs_dom.c, verbs_conf.c: the device */

/* ibv_get_device_list(), and what the library says on stderr meanwhile. NULL: errno. One thread at
 * a time; start-up only. */
struct ibv_device **verbs_list(int *out_n, char *words, size_t words_bytes);
/* The entries of a port's GID table; how many, or -errno. Any thread. */
int verbs_read_gids(struct ibv_context *context, uint32_t port, const struct ibv_port_attr *attr,
		    struct verbs_gid *out_gids, unsigned max);
/* Formats of reasons, with strerror(). */
#define VERBS_PORT_MUTE "the port cannot be asked (ibv_query_port: %s): is the device being reset?"
#define VERBS_GIDS_MUTE "its GID table cannot be read (%s): update rdma-core or the kernel driver"
/* Is the port up? 0, or -ENETDOWN with what to do. netdev may be "". Pure. */
int verbs_port_is_up(const struct ibv_port_attr *attr, const char *netdev, struct kvx_why *why);
/* What endpoints need to know of the port as it is now. */
struct verbs_port {
	uint8_t gid[16];
	uint8_t gid_index; /* in its table */
	uint16_t lid;
	enum ibv_mtu mtu; /* that of the port, or less if so configured */
	uint64_t speed_mbps;
};
/* 0; -ENETDOWN: it is not up; -EHOSTUNREACH: it cannot be addressed; others: it cannot be asked.
 * Any thread; logs nothing. */
int verbs_port_read(const struct kvx_dom *dom, struct verbs_port *out_port, struct kvx_why *why);
/* The same, writes port_now, and says in the log what has changed. Whether the port can be used.
 * [data] */
bool verbs_port_look(struct kvx_dom *dom);
uint32_t verbs_mtu_bytes(enum ibv_mtu mtu);

int verbs_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		struct kvx_why *why);
/* Opens the device, reads its limits, makes conf fit them (see verbs_conf_fit()), PDs lazily,
 * channel, queue, fds; calls verbs_path_init(). limits: max_op_bytes = dom->limits.max_op_bytes,
 * batch_bytes = stripe_bytes * qps_per_lane (at least 1 MiB), batch_ops = 128, queue_batches,
 * event_fd, settle_ns, counters. */
int verbs_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
	       struct kvx_transport_limits *out_limits, struct kvx_why *why);
void verbs_close(struct kvx_dom *dom); /* calls verbs_path_fini() first */
/* Pure: what of the configuration fits this device, and the limits that follow from it: fills
 * dom->conf, limits, max_dest_reads, ep_entries, cq_entries (as asked for). -EINVAL with the
 * reason: a value that cannot be made to fit. Sees to: qps 1..16; sq_depth a number the device
 * takes, >= post_batch + VERBS_OP_WRS + 1; post_batch >= 1; max_sge 1..VERBS_MAX_SGE; inline <=
 * VERBS_MAX_INLINE (verbs_qp.c lowers it to what the queue pair gives); cq_depth >= one ep. */
int verbs_conf_fit(struct kvx_dom *dom, const struct kvx_verbs_conf *conf, struct kvx_why *why);
/* Was it unplugged? The kernel answers EIO to everything then, also to the destruction of what it
 * has destroyed itself; an EIO of a device that is there means that it is not destroyed. */
bool verbs_device_is_gone(struct ibv_context *context);
/* The PD of a tenant, made at its first use; NULL: out of memory or device. Any thread. */
struct ibv_pd *verbs_dom_pd(struct kvx_dom *dom, uint32_t tenant);
/* [data] */
int verbs_cq_create(struct kvx_dom *dom); /* fills cq and cq_entries; 0 or -errno */
int verbs_cq_destroy(struct kvx_dom *dom);

/* verbs_err.c */

int verbs_err(int err);                               /* errno of a verbs call (> 0) -> -errno */
int verbs_wc_err(enum ibv_wc_status status);          /* -> -errno */
const char *verbs_wc_text(enum ibv_wc_status status); /* what happened and what to do */
int verbs_random(void *buf, size_t len);              /* 0 or -EIO */

/* verbs_ep.c: [setup], [fence], [data] as the slots say */

int verbs_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		 size_t *addr_len);
int verbs_connect(struct kvx_ep *ep, const void *addr, size_t addr_len);
void verbs_ep_close(struct kvx_ep *ep);
int verbs_fence(struct kvx_ep *ep);
void verbs_lease(struct kvx_ep *ep, uint64_t deadline_ns);

/* verbs_hold.c: who may use the queue pairs, and how they end. Any thread */

bool verbs_ep_enter(struct kvx_ep *ep); /* false: cut; no leave then */
void verbs_ep_leave(struct kvx_ep *ep);
bool verbs_ep_is_cut(const struct kvx_ep *ep);
/* Lets nobody in any more and destroys the queue pairs, unless somebody is inside, who then does.
 * Never waits for another thread. */
void verbs_ep_cut(struct kvx_ep *ep);
/* After a cut: returns when the last queue pair is gone. 0, or -errno of what cannot be destroyed.
 */
int verbs_ep_wait_gone(struct kvx_ep *ep);

/* verbs_qp.c [setup] */

/* What this end of a connection is. */
struct verbs_end {
	uint8_t gid[16];
	uint8_t gid_index;
	enum ibv_mtu mtu;
	uint32_t psn; /* its first packet's */
};
int verbs_psn(uint32_t *out_psn); /* a random one; 0 or -EIO */
/* In INIT. context: see verbs_wr_id(). 0 or -errno. Any helper. */
int verbs_qp_make(struct kvx_dom *dom, struct ibv_pd *pd, struct ibv_cq *cq, uint32_t depth,
		  uint64_t context, struct ibv_qp **out_qp);
/* To RTR and RTS, towards one of the other side. Any helper. */
int verbs_qp_join(const struct kvx_dom *dom, struct ibv_qp *ibqp, const struct verbs_end *mine,
		  const struct verbs_addr *remote, const struct verbs_addr_qp *remote_qp);
int verbs_qp_create(struct kvx_ep *ep, struct verbs_qp *qp);
int verbs_qp_connect(struct kvx_ep *ep, struct verbs_qp *qp, const struct verbs_addr *remote,
		     const struct verbs_addr_qp *remote_qp);
int verbs_qp_destroy(struct ibv_qp *ibqp); /* 0 or -errno. Any thread */
/* [data], while opening: sets limits.inline_bytes to what queue pairs have. */
int verbs_qp_try(struct kvx_dom *dom, struct kvx_why *why);

/* verbs_post.c [data] */

int verbs_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n);
int verbs_post_proofs(struct kvx_ep *ep); /* one read on every queue pair */

/* verbs_progress.c [data] */

int verbs_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max);
/* One more of the n events or, where the last one is of the same batch, a larger one; how many
 * there are then. */
unsigned verbs_event_add_done(struct kvx_tevent *events, unsigned n, uint64_t cookie,
			      uint32_t n_ops);
int verbs_arm(struct kvx_dom *dom);
void verbs_dom_attention(struct kvx_dom *dom); /* any thread: look at all eps; wakes a sleeper */
struct kvx_ep *verbs_ep_find(struct kvx_dom *dom, uint64_t wr_id); /* NULL: gone */

/* verbs_park.c [data]: reads into GPU memory are done when they are visible there */

/* This chain has completed; it waits in its queue pair's fifo from now on. */
void verbs_park(struct kvx_ep *ep, struct verbs_chain *chain);
/* Takes up what flushes have brought and posts those that are wanted. */
void verbs_park_turn(struct kvx_dom *dom);
/* Adds what has become done to the n events; how many there are then. */
unsigned verbs_park_release(struct kvx_dom *dom, struct kvx_tevent *events, unsigned n,
			    unsigned max);
int verbs_park_arm(struct kvx_dom *dom); /* 0; -EAGAIN: there is something to do now */
void verbs_park_on_time(struct kvx_dom *dom, uint64_t now);
/* Loops with this completion queue (NULL: all) bring nothing back any more. text: static. */
void verbs_park_break(struct kvx_dom *dom, const struct ibv_cq *cq, const char *text);

/* verbs_scan.c [data] */

/* Looks at all eps and adds what there is to tell to the n events; how many there are then. */
unsigned verbs_scan(struct kvx_dom *dom, struct kvx_tevent *events, unsigned n, unsigned max);
/* The ep takes no more ops and EP_DOWN will be reported; the first call counts. text: static. */
void verbs_ep_break(struct kvx_ep *ep, int status, int vendor_code, const char *text);
void verbs_dom_break_eps(struct kvx_dom *dom, int status, int vendor_code, const char *text);
void verbs_on_time(struct kvx_dom *dom); /* what was due: proofs, ends of leases */

/* verbs_async.c [data] */

void verbs_async_read(struct kvx_dom *dom); /* all events that are there; never blocks */
void verbs_port_check(struct kvx_dom *dom); /* looks; DEVICE_UP follows if it can be used */
void verbs_dom_lost(struct kvx_dom *dom, const char *text);
void verbs_cq_break(struct kvx_dom *dom, const char *text);
bool verbs_cq_can_mend(const struct kvx_dom *dom); /* broken, and no ep is left that uses it */
void verbs_cq_mend(struct kvx_dom *dom);           /* then: a new one */

/* verbs.c [data]. The data path's part of open and close: scratch, and a queue pair for a try,
 * which says early whether the device takes this configuration and how many inline bytes it has. */

int verbs_path_init(struct kvx_dom *dom, struct kvx_why *why);
void verbs_path_fini(struct kvx_dom *dom);

/* wr_id and qp_context */

/* ep index 16 | generation 16 | queue pair 8 | chain number 24, from the top. Never a pointer: what
 * comes up after its ep is gone finds nothing. */
#define VERBS_CHAIN_MASK 0xffffffu
static inline uint64_t verbs_wr_id(const struct kvx_ep *ep, unsigned qp, uint32_t chain)
{
	return ((uint64_t)ep->index << 48) | ((uint64_t)ep->generation << 32) |
	       ((uint64_t)qp << 24) | (chain & VERBS_CHAIN_MASK);
}

#endif
