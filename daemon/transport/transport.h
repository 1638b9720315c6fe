/* The data-plane contract: what a transport backend does, and nothing else.
 *
 * A backend moves bytes between registered memory of this process and registered memory that it
 * reaches through an endpoint. It has no threads, keeps no queue of its own beyond what it has
 * taken from post(), decides no policy and never calls back. Everything but probe() is called on
 * the one worker thread that owns the domain; a backend with KVX_CAP_BLOCKING_CONTROL has some
 * slots called on helper threads of that worker, see there.
 *
 *   rail          a device (or port of one) that can be a domain
 *   domain (dom)  an open rail with its memory table; one worker owns it
 *   ep            one end of a lane, or the loopback of a same-node transport
 *   mr            memory registered in a domain; with it go the rights that remote ends have
 *   mkey          bytes that name an mr to another domain; they travel in the peer protocol
 *   rkey          a mkey unpacked for one ep
 *
 * Completion: an op is done when its bytes are visible at the destination (delivery, not "sent");
 * only then may OP_DONE be reported with status 0. An op that failed may have moved any part of its
 * bytes, but once its OP_DONE was reported none of them lands any more: a backend that cannot
 * promise this for an error reports it only from fence().
 */
#ifndef KVX_TRANSPORT_H
#define KVX_TRANSPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/metrics.h"
#include "base/roles.h"
#include "gpu/gpu.h"
#include "mem/mem.h"

#define KVX_TRANSPORT_ADDR_MAX 256
#define KVX_TRANSPORT_MKEY_MAX 24576

/* Backends define the bodies; each begins with what is shown. */
struct kvx_dom;
struct kvx_ep;
struct kvx_mr;
struct kvx_rkey;

/* A device that a backend has found, usable or not. Backends without devices have one rail without
 * a name. Written by probe() only. */
#define KVX_RAIL_NAME_BYTES 64
#define KVX_MAX_RAILS       8 /* of one backend on one node; of GPUs there may be KVX_GPU_MAX */
enum kvx_rail_link { KVX_RAIL_LINK_NONE, KVX_RAIL_LINK_ETHERNET, KVX_RAIL_LINK_INFINIBAND };
struct kvx_rail {
	char name[KVX_RAIL_NAME_BYTES]; /* "mlx5_0:1"; "" for a backend without devices */
	char device[KVX_RAIL_NAME_BYTES];
	char netdev[16]; /* RoCE: the network interface; "" when unknown */
	char gid[46];    /* as text; "" when none */
	char firmware[64];
	uint32_t port; /* 1.. */
	uint32_t gid_index;
	uint32_t mtu_bytes;    /* active path MTU */
	uint64_t speed_mbps;   /* of the link: lanes times signalling rate; 0: unknown */
	int numa_node;         /* -1: unknown */
	struct kvx_gpu_id gpu; /* the device is a GPU; else all 0 */
	enum kvx_rail_link link;
	bool usable; /* it can be opened; endpoints also need a port that is up, see kvx_dom_port */
	/* Why it is not usable, and what to do. Usable: what it waits for; "": nothing. */
	char reason[KVX_WHY_BYTES];
};

enum kvx_op_kind { KVX_OP_READ = 1, KVX_OP_WRITE = 2 };

/* One contiguous copy. 56 bytes: batches of them are the hot data of the daemon. */
struct kvx_op {
	struct kvx_mr *local;
	struct kvx_rkey *remote;
	uint64_t local_offset;  /* bytes from the start of the mr */
	uint64_t remote_offset; /* bytes from the start of the remote mr */
	uint64_t len_bytes;     /* 1 .. limits.max_op_bytes */
	uint64_t cookie;        /* comes back in OP_DONE; ops of one batch share it */
	uint32_t kind;          /* enum kvx_op_kind */
	uint32_t flags;         /* 0 */
};

enum kvx_tevent_kind {
	KVX_TEV_OP_DONE, /* n_ops ops with `cookie` are done with `status` */
	KVX_TEV_EP_UP,   /* the ep can take ops */
	KVX_TEV_EP_DOWN, /* the ep is lost; every op it had taken has been or will be reported with
			    an error */
	KVX_TEV_EP_INCOMING, /* a remote end has connected to listen(); ep is new and belongs to the
				caller */
	KVX_TEV_DEVICE_LOST, /* the domain is unusable: close it */
	KVX_TEV_DEVICE_UP,   /* its port is usable again: lanes that lack it may be made anew */
};
struct kvx_tevent {
	enum kvx_tevent_kind kind;
	int status;        /* 0 or -errno */
	int vendor_code;   /* the library's or device's own code; 0: none */
	uint32_t n_ops;    /* OP_DONE: how many, > 0 */
	uint64_t cookie;   /* OP_DONE */
	struct kvx_ep *ep; /* EP_* */
	const char *text;  /* static string, or NULL */
};

/* What a backend says of itself: flags, and limits read from the device, never assumed. */
enum kvx_transport_caps {
	KVX_CAP_SAME_NODE = 1u << 0,  /* reaches memory of this process's domains */
	KVX_CAP_CROSS_NODE = 1u << 1, /* reaches other nodes through connect() */
	KVX_CAP_CONNECT =
	    1u << 2, /* connect() needs the other side's address (both sides connect) */
	KVX_CAP_EVENT_FD = 1u << 3, /* limits.event_fd and arm() can wake a sleeping worker */
	KVX_CAP_CPU_COPY =
	    1u << 4, /* progress() moves the bytes itself: more domains, more speed */
	/* mem_reg, mem_dereg, listen, connect, fence and lease(ep, 0) may block for long (pinning,
	 * address resolution, destroying queues): they are called on helper threads of the worker,
	 * at the same time as post() and progress() of the same domain. What the worker promises:
	 * for one ep at most one of its calls runs at a time, except progress(), rkey_free() and
	 * lease() with another value; no post() to an ep whose fence() has begun. What the backend
	 * promises: progress() reports the ep's open ops after fence() has returned, and nothing of
	 * the ep once ep_close() was called (worker thread). */
	KVX_CAP_BLOCKING_CONTROL = 1u << 5,
	/* CROSS_NODE: reaches memory of every kind that the node may register, by way of host
	 * memory where it must. */
	KVX_CAP_ANY_MEMORY = 1u << 6,
	/* mem_reg takes GPU memory by the dma-bufs of its allocations. It and mem_dereg go into the
	 * GPU's driver then, which may hang: with BLOCKING_CONTROL they are called on threads of
	 * each GPU's own, at the same time as on those for other memory. mem_reg may use mem until
	 * it returns, whatever becomes of the region. */
	KVX_CAP_DMABUF = 1u << 7,
	/* rkey_unpack and rkey_free return at once and share nothing with calls on the worker's
	 * threads: they are called on the loop, of an ep that is not being closed. */
	KVX_CAP_KEYS_ON_LOOP = 1u << 8,
};
/* What a domain counts, for people. Written on the worker's threads, read by the loop. */
struct kvx_dom_counters {
	struct kvx_counter wrs;         /* work requests posted */
	struct kvx_counter doorbells;   /* chains of work requests posted */
	struct kvx_counter signaled;    /* of the work requests, those that complete aloud */
	struct kvx_counter completions; /* taken from completion queues */
	struct kvx_counter inlined;     /* work requests with their data inline */
	struct kvx_counter gathered;    /* ops that shared a work request with another one */
	struct kvx_counter flushes;     /* reads that make writes visible */
	struct kvx_counter errors;      /* error completions */
	struct kvx_counter async_events;
	struct kvx_counter eps_made, eps_lost; /* endpoints connected; lost to an error */
	struct kvx_counter regs, reg_bytes;    /* memory registered now */
	/* Of GPU memory, through page-locked memory of the host. */
	struct kvx_counter bounced_ops, bounced_bytes;
};
/* What a domain's port is like now. Written on the worker's threads, read by the loop, each field
 * by itself: for people, and as a hint whether listen() would fail. */
struct kvx_dom_port {
	/* What it waits for (listen() fails until then) and what to do: lives as long as the
	 * domain. NULL: endpoints can be made; DEVICE_UP says when that comes true. */
	_Atomic(const char *) waits;
	_Atomic uint64_t gid[2]; /* its 16 bytes; 0: it had none yet */
	_Atomic uint64_t speed_mbps;
	_Atomic uint32_t gid_index;
	_Atomic uint32_t mtu_bytes;
};
struct kvx_transport_limits {
	uint64_t max_op_bytes;  /* longest op that post() takes */
	uint64_t batch_bytes;   /* what the scheduler should put into one batch, at best */
	uint32_t batch_ops;     /* likewise, in ops */
	uint32_t queue_batches; /* batches worth having in flight per ep */
	int event_fd; /* KVX_CAP_EVENT_FD: pollable once arm() said 0; else -1. The domain owns it.
		       */
	/* How long after fence() something that this end has sent may still land at the other
	 * side; UINT64_MAX: until the other side stops it or its lease is over. */
	uint64_t settle_ns;
	const struct kvx_dom_counters *counters; /* of the domain; NULL: none */
	const struct kvx_dom_port *port;         /* likewise */
};

/* verbs: [verbs] of the configuration, see kvxferd.conf(5) and docs/rdma.md. */
struct kvx_verbs_conf {
	char devices[KVX_WHY_BYTES]; /* "mlx5_0,mlx5_1:1"; "^mlx5_2": all but these; "": all */
	int gid_index;               /* -1: by rule */
	uint32_t mtu_bytes;          /* 0: what the port has */
	uint32_t qps_per_lane;       /* queue pairs per endpoint, 1..16 */
	uint32_t sq_depth;           /* work requests in flight per queue pair */
	uint32_t cq_depth;           /* per device; 0: enough for 64 endpoints */
	uint32_t post_batch;         /* work requests per doorbell at most */
	uint32_t max_sge;       /* local pieces per work request at most; 0: 8 or the device's */
	uint32_t inline_bytes;  /* writes up to this size carry their data in the request */
	uint64_t stripe_bytes;  /* longer ops are spread over queue pairs and rails */
	uint32_t max_rd_atomic; /* reads in flight per queue pair */
	uint32_t timeout;       /* 4.096 us * 2^timeout until a packet is sent again */
	uint32_t retry_count;   /* 0..7 */
	uint32_t rnr_retry;     /* 0..7, 7: without end */
	uint32_t min_rnr_timer; /* 0..31 */
	uint32_t traffic_class; /* 0..255 */
	uint32_t service_level; /* 0..15 */
	uint32_t hop_limit;     /* 1..255 */
	uint32_t pkey_index;
	bool flush;         /* a read after writes makes them visible before they are done */
	uint32_t settle_ms; /* how long a packet may be under way */
};

/* gpu: [gpu] of the configuration, see kvxferd.conf(5) and docs/gpu.md. */
struct kvx_gpu_conf {
	char runtime[8];           /* "cuda", "hip", "auto"; "": auto */
	char library_dir[256];     /* where its library is looked for first; "": nowhere */
	uint32_t streams;          /* of each device, 1..16 */
	int gather_max_bytes;      /* pieces up to this go by the gather kernel; 0: none; -1: as
				      measured when the device is opened */
	uint32_t call_timeout_ms;  /* how long a call of the runtime may take that maps memory */
	uint32_t fence_timeout_ms; /* how long copies may go on before the device is reset */
	uint64_t bounce_bytes;     /* page-locked message buffers of all eps of a domain */
	uint32_t bounce_slots;     /* messages under way through them, per ep and direction */
	/* What kvx_gpu_try() has found out before the runtime is loaded into this process: */
	int tried;         /* enum kvx_gpu_kind that works; 0: none was tried */
	char refused[256]; /* why none is loaded; "": one may be */
};

struct kvx_dom_conf {
	const char *bind_host;         /* node transports: address to listen on */
	const char *provider;          /* fabric: provider name */
	uint64_t copy_nt_min_bytes;    /* copy: shortest op copied with non-temporal stores;
					  UINT64_MAX: never */
	uint64_t fabric_message_bytes; /* fabric: size of a packed message */
	uint32_t fabric_queue;         /* fabric: messages in flight per ep */
	uint64_t fabric_rma_min_bytes; /* fabric: ops of at least this go by RMA where the provider
					  has it; UINT64_MAX: never */
	const struct kvx_rail *rail;   /* open: which one; NULL: the first usable one */
	struct kvx_verbs_conf verbs;
	struct kvx_gpu_conf gpu;
	uint32_t mem_kinds; /* bit set (1 << enum kvx_mem_kind) of memory this node may register */
	void *test;         /* fake: its script */
};

/* At most 16 slots, all filled. */
struct kvx_transport_ops {
	const char *name;
	uint32_t caps;

	/* What is there on this node? Fills at most max rails, usable or not, and returns how many;
	 * a backend without devices has one. -errno with the reason: none can be used. Any thread.
	 */
	int (*probe)(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		     struct kvx_why *why);
	int (*open)(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		    struct kvx_transport_limits *out_limits, struct kvx_why *why);
	void (*close)(struct kvx_dom *dom); /* eps, mrs, rkeys are gone before */

	/* Makes the ep of one lane. listen: a new ep and the address that the other side connects
	 * to; connect: gives an ep the other side's address, ends in EP_UP or EP_DOWN (a backend
	 * that does not notice by itself whether the two ends reach each other tries it before
	 * EP_UP). listen: -ENETDOWN, -EHOSTUNREACH: the port is down or has no address now.
	 * Same-node transports: listen gives an ep that is up. An ep to another
	 * node reaches, and is a way into, memory of its own tenant only; on the same node that is
	 * for who makes the keys to see to. */
	int (*listen)(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		      size_t *addr_len);
	int (*connect)(struct kvx_ep *ep, const void *addr, size_t addr_len);
	void (*ep_close)(
	    struct kvx_ep *ep); /* after fence(); frees it; rkeys of it are gone before */

	/* rights: KVX_ACCESS_* that remote ends get. Memory that GPUs reach (of one, or of the host
	 * where there is one) is registered in its home first: a gpu domain, for GPU memory the one
	 * of its device. That one fills mem->gpu->bases[].addr, or page-locks; all others find it
	 * done (mem->pinned). A region of GPU memory may have several segments: offsets are of the
	 * region, and an op may run over a segment's end. -EOPNOTSUPP: this domain takes no such
	 * memory, which is no failure of the region. mem_dereg: a fence for inbound access to this
	 * mr, except for ops that the transport moves by RMA (they are drained before by the
	 * withdraw protocol, or cut by fence()). */
	int (*mem_reg)(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
		       uint32_t rights, struct kvx_mr **out_mr);
	void (*mem_dereg)(struct kvx_mr *mr);
	/* length, 1 .. KVX_TRANSPORT_MKEY_MAX; -ENOSPC: it needs more room. Called on the thread of
	 * mem_reg, before anybody else knows the mr. */
	int (*mkey_pack)(const struct kvx_mr *mr, void *buf, size_t buf_bytes);
	int (*rkey_unpack)(struct kvx_ep *ep, const void *mkey, size_t len,
			   struct kvx_rkey **out_rkey); /* -EINVAL: not one */
	void (*rkey_free)(struct kvx_rkey *rkey);

	/* Takes the first ops of the array, in order; returns how many it took (0..n; fewer than n:
	 * try the rest after progress), or -errno when the ep is not usable and none was taken.
	 * Every op taken gets its OP_DONE. */
	int (*post)(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n);
	/* Moves things on, never blocks; fills at most max events and returns how many. */
	int (*progress)(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max);

	/* Makes limits.event_fd fire at the next need for progress(): 0, or -EAGAIN when there is
	 * work now (call progress instead of sleeping). Without KVX_CAP_EVENT_FD: 0 when no op is
	 * open, else -EAGAIN. */
	int (*arm)(struct kvx_dom *dom);

	/* The hard fence. After it returns no byte can land or be read through this ep, in either
	 * direction, but for what limits.settle_ns says; ops still open are reported by progress()
	 * with -ECANCELED, or with the error that brought the ep down; the ep takes no more ops.
	 * Idempotent. */
	int (*fence)(struct kvx_ep *ep);

	/* Lets inbound access through this ep go on until deadline_ns (monotonic); past it the
	 * backend lets nothing land or be read until it is extended. UINT64_MAX: no limit. 0: for
	 * good, only fence() and ep_close() follow. Backends without KVX_CAP_CROSS_NODE ignore it.
	 */
	void (*lease)(struct kvx_ep *ep, uint64_t deadline_ns);
};

/* Every backend of this build, best first for the same pair of ends; ends with NULL. Checks at the
 * first call that caps and slots agree. The only place that knows backend names. */
const struct kvx_transport_ops *const *kvx_transport_registry(void);
const struct kvx_transport_ops *kvx_transport_find(const char *name); /* NULL: unknown */

extern const struct kvx_transport_ops kvx_copy_ops;
extern const struct kvx_transport_ops kvx_gpu_transport_ops;
extern const struct kvx_transport_ops kvx_verbs_ops;
extern const struct kvx_transport_ops kvx_fabric_ops;
extern const struct kvx_transport_ops kvx_fake_ops; /* tests only: not in the registry */

#endif
