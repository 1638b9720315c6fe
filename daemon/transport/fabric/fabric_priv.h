/* The fabric backend's own types, shared by its files.
 *
 *   dom    one libfabric domain with its completion queue, event queue and memory table
 *   ep     one end of a lane: an endpoint of its own, its buffers, its requests
 *   req    one of our requests on its way: a packed WRITE or READ, or one RMA operation
 *   reply  one DATA message on its way to the peer
 *
 * GPU memory has a header of its own, fabric_gpu.h: its messages go through buffers of theirs.
 *
 * Nothing here is shared between threads: all of it is the worker's that owns the dom, and calls
 * of its helpers are made on its thread, too (fabric_call.c; but for packing keys). Contexts handed
 * to libfabric are numbers (fab_ctx), never pointers: a completion that comes up after its ep is
 * gone finds nothing and is dropped.
 */
#ifndef KVX_FABRIC_PRIV_H
#define KVX_FABRIC_PRIV_H

#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_rma.h>

#include "base/assert.h"
#include "base/idmap.h"
#include "base/queue.h"
#include "transport/pack.h"
#include "transport/transport.h"

#define FAB_IOV_MAX   8u    /* most iovs of one operation that we ever use */
#define FAB_MAX_EPS   4096u /* of one domain */
#define FAB_MAX_MRS   (1u << 20)
#define FAB_MAX_QUEUE 256u
#define FAB_N_RX      4u /* receive buffers: a message is consumed at once, they never queue up */
#define FAB_RX_SINK                                                                                \
	1u /* with placing only buffer 0 is posted; this takes what is dropped, or cannot have a   \
	      bounce buffer before it has come */
#define FAB_N_TX       4u /* buffers for gathered data of our WRITEs */
#define FAB_N_REPLY    4u /* ... of DATA for the peer's READs */
#define FAB_MIN_INJECT (KVX_PACK_HDR_BYTES + KVX_PACK_HELLO_BYTES)
#define FAB_ACK_BYTES  512u /* longest ack message */

enum fab_ctx_kind {
	FAB_CTX_RX = 1,
	FAB_CTX_REQ = 2,
	FAB_CTX_REPLY = 3,
	FAB_CTX_PLACE = 4,
	FAB_CTX_BOUNCE = 5,
};

struct fab_gpu; /* fabric_gpu.h */
struct fab_dev;
struct fab_bounce;

enum fab_ep_state {
	FAB_EP_LISTENING,  /* has an address, waits for connect() */
	FAB_EP_CONNECTING, /* both ends are finding each other */
	FAB_EP_UP,
	FAB_EP_DOWN, /* lost or fenced: the endpoint is closed, nothing moves any more */
};

enum fab_req_kind { FAB_REQ_WRITE, FAB_REQ_READ, FAB_REQ_RMA };

struct kvx_mr {
	struct kvx_dom *dom;
	uint8_t *addr;
	uint64_t len_bytes;
	uint64_t page_bytes;
	uint32_t tenant;
	uint32_t rights;
	struct kvx_pack_key key;
	struct fid_mr *fid; /* NULL: the provider needs to know nothing of it */
	void *desc;
	struct fab_dev *dev; /* GPU memory: its device, and where it is; NULL: memory of the host */
	const struct kvx_gpu_mem *gpu_mem;
	bool told; /* in the log, that it goes through host memory */
};

struct kvx_rkey {
	struct kvx_ep *ep;
	struct kvx_pack_key key;
	uint64_t len_bytes;
	uint32_t rights;
	bool has_rma;
	uint64_t rma_key;
	uint64_t rma_base;
};

/* Part of a region that a request uses. */
struct fab_place {
	struct kvx_mr *mr;
	uint64_t offset;
	uint64_t len_bytes;
};

struct fab_req {
	struct kvx_ep *ep;
	struct fab_req *next; /* in the ep's free list or the dom's done list */
	uint64_t cookie;
	uint32_t gen; /* counts the uses: a late answer to an earlier use is told apart */
	uint32_t n_ops;
	uint32_t bytes;
	uint32_t n_places;
	int status;
	int vendor_code;
	uint16_t index;
	uint8_t kind;
	bool open;                 /* in flight */
	bool sending;              /* the provider may still read or write its buffers */
	bool answered;             /* status is final */
	bool dead;                 /* READ: a region it was to fill is gone: drop the data */
	bool held;                 /* the ep broke: reported by fence() */
	bool bounced;              /* its local memory is a GPU's */
	struct fab_bounce *bounce; /* whose copies it waits for: nobody else may answer it */
	const char *text;          /* of the status, or NULL: the ep's */
	uint8_t *head;             /* KVX_PACK_HEAD_BYTES */
	uint8_t *buf;              /* one of free_tx while it has head and gathered data, or NULL */
	struct fab_place places[KVX_PACK_MAX_OPS];
};

struct fab_reply {
	bool sending;
	uint8_t *buf; /* KVX_PACK_HEAD_BYTES + a message's data */
	unsigned n_direct;
	const struct kvx_mr *direct[FAB_IOV_MAX]; /* regions being sent from without a copy */
};

/* A READ of the peer that waits for a reply to become free: its message, which has no data. */
struct fab_waiting {
	bool for_reply; /* it can go on with a reply only */
	uint32_t len;
	uint8_t msg[KVX_PACK_HEAD_BYTES];
};

/* The message that is being received straight into a region: after an *_AHEAD message, one at a
 * time.
 */
struct fab_placing {
	bool active;
	uint32_t sunk;       /* > 0: length of its head, which it is received behind in the sink */
	int status;          /* < 0: the data is dropped, and this is why */
	uint32_t id;         /* WRITE_AHEAD: what to ack */
	struct fab_req *req; /* DATA_AHEAD: our READ; NULL for a WRITE_AHEAD */
	uint32_t data_bytes;
	struct fab_bounce *bounce; /* it is received into its buffer; or NULL */
	uint32_t n_mrs;
	const struct kvx_mr *mrs[FAB_IOV_MAX];
};

/* A message that waits in its receive buffer until GPU memory can take its data. */
struct fab_stalled {
	unsigned rx;
	size_t len;
};

/* A data message that must be the next on the connection: its *_AHEAD message has gone already. */
struct fab_owed {
	bool active;
	unsigned n;
	struct iovec iov[FAB_IOV_MAX];
	void *desc[FAB_IOV_MAX];
	void *ctx;
};

struct kvx_ep {
	struct kvx_dom *dom;
	struct fid_ep *fid; /* NULL: none yet, or closed */
	fi_addr_t peer;     /* connectionless endpoints */
	uint16_t index;
	uint16_t gen;
	uint32_t tenant;
	enum fab_ep_state state;
	bool connected; /* the library says so (connection-oriented), or the address is known */
	bool hello_sent;
	bool hello_got;
	uint64_t secret;      /* in every message to us */
	uint64_t peer_secret; /* in every message from us; 0: connect() was not called */
	uint64_t lease_ns;
	struct fi_info *connreq;      /* a connection request that came before connect() */
	uint64_t connreq_from;        /* ... and the secret it names as its own */
	struct kvx_pack_hello limits; /* what both sides take */

	uint8_t *chunk; /* all buffers of this ep */
	size_t chunk_bytes;
	struct fid_mr *chunk_mr;
	void *chunk_desc;
	size_t rx_bytes;
	uint8_t *rx[FAB_N_RX];
	struct fab_req *reqs; /* queue of them */
	struct fab_req *free_reqs;
	uint32_t n_asked; /* requests that the peer has yet to answer */
	uint8_t *free_tx[FAB_N_TX];
	unsigned n_free_tx;
	struct fab_reply replies[FAB_N_REPLY];
	struct fab_waiting *waiting; /* ring of queue entries */
	uint32_t waiting_head, n_waiting;
	struct kvx_pack_ack *acks; /* to be sent: queue entries */
	uint32_t n_acks;
	struct fab_placing placing;
	struct fab_owed owed;
	unsigned n_bounces[4];                /* by kind */
	unsigned n_replies_sent;              /* of these: DATA that the peer may have */
	bool bounce_wait;                     /* something of it waits for a bounce */
	struct fab_stalled stalled[FAB_N_RX]; /* first come, first served */
	unsigned n_stalled;

	struct kvx_ep *dirty_next; /* dom's list of eps with something to send */
	bool dirty;
	struct kvx_ep *news_next; /* dom's list of eps with an event to report */
	bool in_news;
	bool news_up, news_down;
	int down_status;
	int down_vendor;
	const char *down_text;
};

struct kvx_dom {
	struct fi_info *info;
	struct fid_fabric *fabric;
	struct fid_domain *domain;
	struct fid_cq *cq;
	struct fid_eq *eq;   /* connection-oriented only */
	struct fid_pep *pep; /* likewise */
	struct fid_av *av;   /* connectionless only */
	int event_fd;        /* epoll of what the two queues give, of timer_fd and call_fd */
	int timer_fd;        /* has copies of GPU memory looked at: set by fab_gpu_arm() */
	bool connected_eps;  /* FI_EP_MSG; else FI_EP_RDM */
	bool rma;            /* large ops go by RMA */
	bool placing;        /* large ops of packed messages are received where they belong */
	unsigned n_placing;  /* eps that do so right now */
	bool mr_local;       /* the provider wants local buffers registered */
	bool mr_virt;        /* RMA addresses are virtual, else offsets */
	bool mr_prov_key;    /* the provider chooses RMA keys */
	bool eq_due;
	bool cq_left; /* completions may be left unread */
	bool lost;    /* DEVICE_LOST is to be reported */
	bool lost_told;
	unsigned iov_limit;
	unsigned rx_iov_limit;
	unsigned placed_ops; /* that we can send in one go: both limits */
	unsigned rma_iov_limit;
	size_t inject_bytes;
	uint64_t message_bytes;
	uint64_t rma_min_bytes;
	uint32_t queue;
	uint32_t mem_kinds;
	uint32_t turns;
	struct kvx_idmap *mrs;
	struct kvx_ep **eps; /* by index; grows */
	uint16_t *gens;
	unsigned n_eps; /* length of both */
	unsigned n_connecting;
	struct fab_req *done_head, **done_tail;
	struct kvx_ep *news_head, **news_tail;
	struct kvx_ep *dirty_head;
	pthread_t thread; /* the worker's */
	/* Calls of other threads: on their way, how many, what wakes the worker; and, its own,
	 * those that it has begun. */
	struct kvx_queue *calls;
	_Atomic unsigned n_calls;
	int call_fd;
	struct fab_call *waiting_calls;
	uint64_t n_bad;      /* messages and requests refused */
	struct fab_gpu *gpu; /* NULL: no GPU memory was ever registered */
	struct kvx_gpu_conf gpu_conf;
	struct kvx_dom_counters counters;
};

/* fabric_info.c */
int fabric_err(ssize_t rc); /* the one translator: libfabric's codes to -errno of kvx_err.h */
int fabric_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		 struct kvx_why *why);
/* The provider, and whether it has RMA that is wanted. */
int fab_info_get(const struct kvx_dom_conf *conf, struct fi_info **out_info, bool *out_rma,
		 struct kvx_why *why);
int fabric_random(void *buf, size_t len);

/* fabric_dom.c */
int fabric_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		struct kvx_transport_limits *out_limits, struct kvx_why *why);
void fabric_close(struct kvx_dom *dom);

/* fabric_progress.c */
int fabric_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max);
int fabric_arm(struct kvx_dom *dom);
void fab_req_done(struct fab_req *req); /* answered and not sending any more: report it */
void fab_ep_news(struct kvx_ep *ep);    /* news_up or news_down was set */
void fab_ep_dirty(struct kvx_ep *ep);   /* has acks or waiting READs */

/* fabric_call.c */
int fabric_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		   struct kvx_mr **out_mr);
void fabric_mem_dereg(struct kvx_mr *mr);
int fabric_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		  size_t *addr_len);
int fabric_connect(struct kvx_ep *ep, const void *addr, size_t addr_len);
int fabric_fence(struct kvx_ep *ep);
void fabric_lease(struct kvx_ep *ep, uint64_t deadline_ns);
/* A call of another thread; memory of that one, which waits. */
struct fab_call {
	struct kvx_queue_node node; /* first */
	/* Worker thread, once a turn until it says true. */
	bool (*step)(struct fab_call *call);
	struct fab_call *next;
	bool begun, over;
	int status;
	sem_t done;
};
int fab_calls_open(struct kvx_dom *dom);
void fab_calls_close(struct kvx_dom *dom);
void fab_calls_progress(struct kvx_dom *dom);
/* Nothing new is there: it may sleep until call_fd says so. */
bool fab_calls_arm(struct kvx_dom *dom);

/* fabric_ep.c */
int fab_ep_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		  size_t *addr_len);
int fab_ep_connect(struct kvx_ep *ep, const void *addr, size_t addr_len);
void fabric_ep_close(struct kvx_ep *ep);
void fab_ep_fence(struct kvx_ep *ep); /* all of it but waiting for copies */
struct kvx_ep *fab_ep_find(struct kvx_dom *dom, uint16_t index, uint16_t gen);
/* Closes the endpoint now and fails everything open; EP_DOWN will be reported. WRITEs that may
 * still land, because it is this side that closes, are reported only from fence(). */
void fab_ep_break(struct kvx_ep *ep, int status, int vendor_code, const char *text);
bool fab_ep_lease_over(const struct kvx_ep *ep);
int fab_ep_post_rx(struct kvx_ep *ep, unsigned i);
/* The peer's hello came. */
void fab_ep_on_hello(struct kvx_ep *ep, const struct kvx_pack_hello *hello);

/* fabric_cm.c */
int fab_cm_listen(struct kvx_ep *ep, void *addr, size_t *addr_len); /* fills the library's part */
int fab_cm_connect(struct kvx_ep *ep, const void *addr, size_t addr_len);
void fab_cm_progress(struct kvx_dom *dom);
void fab_cm_send_hello(struct kvx_ep *ep);

/* fabric_req.c */
struct fab_req *fab_req_get(struct kvx_ep *ep, const struct kvx_op *op, enum fab_req_kind kind);
void fab_req_put(struct fab_req *req);
void fab_req_fail(struct fab_req *req, int status); /* nothing of it was sent: report it */
void fab_req_answer(struct fab_req *req, int status);
void fab_req_sent(struct fab_req *req); /* the provider let go of its buffers */
/* Open and not answered, nor about to be; or NULL. */
struct fab_req *fab_req_find(struct kvx_ep *ep, uint32_t id);
uint32_t fab_req_id(const struct fab_req *req);
int fab_op_check(const struct kvx_op *op); /* inside both regions? */

/* fabric_msg.c: packed messages we ask with */
int fab_msg_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n);
/* The peer's answers. -EPROTO: not an answer to anything; -EAGAIN: not now. */
int fab_msg_on_data(struct kvx_ep *ep, const struct kvx_pack_msg *msg);
int fab_msg_on_ack(struct kvx_ep *ep, const struct kvx_pack_msg *msg);

/* One message: a head, and data that is gathered behind it or sent from where it is. */
struct fab_out {
	struct kvx_ep *ep;
	uint8_t *head; /* head_len bytes; room for the gathered data follows, if room */
	uint32_t head_len;
	bool room;
	const struct fab_place *places;
	uint32_t n_places;
	void *ctx;
};
/* How many of the last places go without a copy. */
unsigned fab_out_n_direct(const struct kvx_ep *ep, const struct fab_place *places, uint32_t n);
/* 0; -EAGAIN: not now; -EFAULT: region memory is not there; other: the ep is broken. */
int fab_out_send(const struct fab_out *out, unsigned n_direct);

/* fabric_place.c: large ops, received where they belong */
bool fab_place_wants(const struct kvx_ep *ep, uint64_t len_bytes);
/* The head (an *_AHEAD message) and then the places, without a copy; returns as fab_out_send(). */
int fab_place_send(const struct fab_out *out);
/* The same with one run of bytes behind the head; not ahead: in the same message. */
struct fab_run {
	struct kvx_ep *ep;
	bool ahead;
	uint8_t *head; /* head_len bytes, the data behind them */
	uint32_t head_len;
	uint32_t data_bytes;
	void *desc;
	void *ctx;
};
int fab_place_send_run(const struct fab_run *run);
/* Sends what is owed: nothing else may be sent on the ep before. 0, -EAGAIN, or the ep is broken.
 */
int fab_place_settle(struct kvx_ep *ep);
/* -EAGAIN: not now; -EPROTO: nothing that was asked for, or could be. */
int fab_place_on_write(struct kvx_ep *ep, const struct kvx_pack_msg *msg, const uint8_t *raw,
		       size_t len);
int fab_place_on_data(struct kvx_ep *ep, const struct kvx_pack_msg *msg, const uint8_t *raw,
		      size_t len);
void fab_place_done(struct kvx_ep *ep, size_t len);
bool fab_place_uses(const struct kvx_ep *ep, const struct kvx_mr *mr);

/* fabric_serve.c: packed messages of the peer */
void fab_serve_rx(struct kvx_ep *ep, unsigned i, size_t len);
/* Ops of a request to places of our memory, all of them or none. */
int fab_serve_resolve(const struct kvx_ep *ep, const struct kvx_pack_msg *msg, uint32_t right,
		      struct fab_place places[KVX_PACK_MAX_OPS]);
void fab_serve_ack(struct kvx_ep *ep, uint32_t id, int status);
void fab_serve_bad(struct kvx_ep *ep, const char *text); /* the peer broke the protocol */
void fab_serve_flush(struct kvx_ep *ep);                 /* waiting READs, acks */
bool fab_serve_stuck(const struct kvx_ep *ep); /* has work that no completion will wake it for */

/* fabric_rma.c */
bool fab_rma_wants(const struct kvx_ep *ep, const struct kvx_op *op);
int fab_rma_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n);

/* fabric_mr.c */
int fab_mr_register(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
		    uint32_t rights, struct kvx_mr **out_mr);
/* Nothing reaches it from here on; what copies are under way is to be waited for before it is
 * freed. */
void fab_mr_withdraw(struct kvx_mr *mr);
void fab_mr_free(struct kvx_mr *mr);
int fabric_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes);
int fabric_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey);
void fabric_rkey_free(struct kvx_rkey *rkey);

/* fabric_copy.c: region places from or to one run of bytes, guarded: 0, or -EFAULT when region
 * memory is not there. scatter looks at the ep's lease as it goes: -EHOSTDOWN when it is over. */
int fab_gather(uint8_t *dst, const struct fab_place *places, uint32_t n);
int fab_scatter(const struct kvx_ep *ep, const uint8_t *src, const struct fab_place *places,
		uint32_t n);
/* Makes sure that huge pages of what is about to be sent without a copy are there. */
int fab_touch(const struct fab_place *place);

/* A context is kind, slot, ep index and generation in one number. */
static inline void *fab_ctx(const struct kvx_ep *ep, enum fab_ctx_kind kind, unsigned slot)
{
	uint64_t v =
	    ((uint64_t)ep->gen << 48) | ((uint64_t)ep->index << 32) | ((uint64_t)kind << 24) | slot;

	return (void *)(uintptr_t)v;
}

#endif
