/* The gpu backend, inside. Same-node copies with a GPU at one end or at both, made by the device
 * that owns the domain.
 *
 *   gpu.c           the table; opening and closing a domain          worker
 *   gpu_probe.c     the runtime of this process, its devices         any; once
 *   gpu_control.c   calls that may hang, on threads with a deadline
 *   gpu_reg.c       a region's entry in a domain                     [mem] helpers
 *   gpu_mapping.c   memory of the device: mapped, verified, closed   [mem] helpers
 *   gpu_pin.c       memory of the host: page-locked                  [mem] helpers
 *   gpu_peer.c      memory of other devices: peer access             [mem] helpers
 *   gpu_key.c       keys of regions                                  [reg] helper, loop
 *   gpu_verify.c    is a mapping what the client meant?              control thread
 *   gpu_post.c      ops become pieces, pieces become a flight        worker
 *   gpu_flight.c    a flight goes to a stream                        worker
 *   gpu_progress.c  flights that have landed, the fence              worker; fence: [cut] helper
 *   gpu_watch.c     is an idle device still there?                   worker, control thread
 *   gpu_lost.c      what becomes of a lost device's copies           any; a thread of its own
 *   gpu_access.c    what other threads may do with the device        any
 *   gpu_event.c     events of engines, for who waits for them        watchers (xfer)
 *   gpu_flush.c     memory that RDMA devices flush by                control thread
 *   gpu_gather.c    from which size on copies beat the kernel        control thread, at open
 *
 * A flight is what one post() sends: copies on one stream, and the event behind them. An op of very
 * many pieces is more than a flight may hold: the flight goes out once more with its next pieces
 * when those before have landed, and is reported with the last of them. */
#ifndef KVX_GPU_BACKEND_PRIV_H
#define KVX_GPU_BACKEND_PRIV_H

#include <semaphore.h>
#include <stdatomic.h>

#include "base/metrics.h"
#include "base/queue.h"
#include "mem/gpu.h"
#include "mem/gpu_map.h"
#include "mem/region.h"
#include "transport/transport.h"

#define GPU_DOM_MAGIC  0x6b76646f6d677075ull
#define GPU_MR_MAGIC   0x6b76676d72303031ull
#define GPU_MKEY_MAGIC 0x6b76676b65793031ull

#define GPU_MAX_STREAMS   16u
#define GPU_FLIGHTS       32u   /* of a domain, in flight at once */
#define GPU_FLIGHT_COPIES 256u  /* pieces that are handed to the runtime at once */
#define GPU_FLIGHT_PIECES 1024u /* of one flight under way at once, cuts at segment ends too */
#define GPU_BATCH_OPS     128u
#define GPU_WATCH_NS      (1000 * 1000 * 1000ull) /* between two looks at an idle device */
#define GPU_TICK_US       20 /* between two looks while flights are out and the worker sleeps */

/* ---- the runtime (gpu_probe.c): one in this process, made by the first probe, for ever. */
struct gpu_shared {
	struct kvx_gpu *gpu;
	int n_devices;
	struct kvx_gpu_device devices[KVX_GPU_MAX];
	_Atomic uint32_t lost;        /* bit set of devices */
	_Atomic uint32_t lost_resets; /* of these, those whose reset is over */
	/* Flights of other devices' domains that touch a device's memory, or memory of the host
	 * that it has page-locked. A domain counts first and then looks whether the device is lost;
	 * who resets it does it the other way round. */
	_Atomic unsigned n_visits[KVX_GPU_MAX];
};
/* NULL: none was found (yet). */
struct gpu_shared *gpu_shared(void);
int gpu_device_find(const struct gpu_shared *shared, const struct kvx_gpu_id *id); /* or -1 */
int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
	      struct kvx_why *why);

/* ---- calls that may hang (gpu_control.c) */
struct gpu_control;
/* A call: embedded in what it works on. Whoever waits for it owns it again when it has ended; one
 * that nobody waits for any more belongs to the control thread, which ends it with late(). */
struct gpu_call {
	struct kvx_queue_node node;          /* first */
	int (*run)(struct gpu_call *call);   /* control thread */
	void (*late)(struct gpu_call *call); /* control thread: undoes what run() did, frees it */
	int status;                          /* for late(): -ETIMEDOUT: run() never began */
	/* The control's: */
	struct gpu_control *control;
	uint64_t sent_ns, timeout_ns;
	bool waited; /* by somebody, who gives up or is told by `done` */
	bool stays;  /* in the queue, whatever is in front of it */
	sem_t done;
	_Atomic bool parted; /* who comes second to it knows that the other one has been there */
	_Atomic bool begun;
};
/* device: for people. The thread is bound to none: calls see to that. */
int gpu_control_create(const char *name, int device, struct gpu_control **out_control);
/* Of one device; before any call. Those of `slow` may take long: they wait for each other however
 * long that takes, and while one runs within its time the other control's calls may, too. */
void gpu_control_pair(struct gpu_control *control, struct gpu_control *slow);
/* Before `slow` is destroyed; nobody may be in a call of control's. */
void gpu_control_unpair(struct gpu_control *control);
/* Waits some seconds for what runs. false: it does not come back, and with what it works on must be
 * left. */
bool gpu_control_destroy(struct gpu_control *control);
/* What run() gave; or
 *   -EBUSY      it was not begun within timeout_ns (a slow control: because an earlier one hangs),
 *               or an earlier one is known to hang; nothing was done, it is the caller's;
 *   -ETIMEDOUT  it was begun, has not come back within timeout_ns from then, and is no longer the
 *               caller's. */
int gpu_control_call(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns);
/* For what gives back: is queued even behind a call that does not come back. Never -EBUSY, and
 * -ETIMEDOUT also where it was not begun. */
int gpu_control_call_always(struct gpu_control *control, struct gpu_call *call,
			    uint64_t timeout_ns);
/* The same as gpu_control_call(), for who does not wait but looks now and then. 0 or -EBUSY. */
int gpu_control_begin(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns);
/* Of a call that was begun so, until it is true: whether it is over. */
bool gpu_control_has_ended(struct gpu_call *call, int *out_status);
/* Nobody looks any more. true: it has returned, or never began, and is the caller's; else the
 * control thread's. */
bool gpu_control_leave(struct gpu_call *call);
/* Nobody waits: late() follows run(). */
void gpu_control_send(struct gpu_control *control, struct gpu_call *call, uint64_t timeout_ns);

/* ---- a domain */
struct kvx_mr {
	uint64_t magic;
	struct kvx_dom *dom;
	uint64_t len_bytes;
	uint32_t rights;
	bool on_device; /* memory of some device, else of the host */
	int device;     /* whose, -1: host */
	uint64_t addr;  /* one range; 0: look into `segments` */
	const struct kvx_gpu_mem *segments;
	int pinner; /* host memory: the device that has page-locked it */
	/* What this domain did for it, and undoes. */
	void *pinned;              /* host memory that it pinned */
	struct kvx_gpu_map **maps; /* of its bases; NULL: none */
	uint32_t n_maps;
	struct gpu_call give_back; /* that undoes it */
};

struct kvx_rkey {
	struct kvx_mr *mr;
};

struct kvx_ep {
	struct kvx_dom *dom;
	unsigned n_open; /* flights; worker */
	_Atomic bool fenced;
	_Atomic bool sending; /* the worker sends more of a flight: looks at `fenced` behind it */
	_Atomic unsigned n_landed; /* flights: a fence waits as long as some land */
};

struct gpu_flight {
	void *event;
	struct kvx_ep *ep; /* NULL: free */
	uint64_t cookie;
	uint32_t n_ops;
	int status; /* of handing it to the runtime */
	int vendor_code;
	unsigned n_pieces;          /* that are under way */
	unsigned n_listed;          /* entries of `list` in use */
	uint32_t visits;            /* bit set of other devices whose memory it touches */
	struct kvx_op rest;         /* what is left of its last op; len_bytes 0: nothing */
	struct kvx_gpu_piece *list; /* page-locked, GPU_FLIGHT_COPIES long: the kernel's */
	struct gpu_flight *next;    /* of its stream, or of the free ones */
};

struct gpu_stream {
	void *stream;
	struct gpu_flight *first, *last;
	unsigned n;
	unsigned n_tries; /* queries of the first one's event that failed */
};

/* The pieces of the flight that is being made, as the runtime wants them. */
struct gpu_build {
	unsigned n;
	bool host, peer; /* some piece has an end in host memory; joins two devices */
	bool unlocked;   /* some piece has an end in host memory that is page-locked no more */
	uint64_t dst[GPU_FLIGHT_COPIES];
	uint64_t src[GPU_FLIGHT_COPIES];
	size_t len[GPU_FLIGHT_COPIES];
};

enum gpu_reset { GPU_RESET_NONE, GPU_RESET_RUNS, GPU_RESET_DONE };

struct kvx_dom {
	uint64_t magic;
	struct kvx_gpu *gpu;
	int device;
	struct kvx_gpu_id id;
	char name[KVX_RAIL_NAME_BYTES];
	uint64_t call_timeout_ns, fence_timeout_ns;

	/* [mem] helpers and control thread */
	struct gpu_control *control;
	struct gpu_control *pins;          /* the same, for locking much host memory */
	struct gpu_control *reset_control; /* idle until the device is lost */
	struct gpu_call reset_call, close_call, watch_call;
	_Atomic bool watch_out;    /* watch_call is the control thread's */
	void *watch_event;         /* control thread */
	_Atomic unsigned n_homes;  /* regions of the device's memory. [mem] helpers */
	uint64_t watch_due_ns;     /* worker; 0: no time is set */
	struct kvx_gpu_maps *maps; /* control thread */
	uint8_t *scratch;          /* page-locked: control thread */
	void *control_stream;      /* control thread */
	uint64_t flush_base;       /* control thread; 0: none was asked for */
	struct kvx_gpu_flush flush;
	/* Bit sets of devices: peer access was asked for; it was granted. [reg] helper. */
	_Atomic uint32_t peers_tried, peers_direct;

	_Atomic unsigned n_eps; /* [up] helper, worker */
	bool opened;            /* control thread */
	void *lists;            /* of all flights; control thread */

	/* worker */
	_Atomic unsigned n_rkeys; /* loop */
	unsigned n_streams, next_stream;
	struct gpu_stream streams[GPU_MAX_STREAMS];
	struct gpu_flight flights[GPU_FLIGHTS];
	struct gpu_flight *free_flights;
	unsigned n_out; /* flights in flight */
	struct gpu_build build;
	void *kernel;              /* NULL: none */
	uint64_t gather_max_bytes; /* pieces up to this go by the kernel; 0: none do */
	bool batch;                /* the runtime takes batches */
	bool host_direct;          /* the device reaches page-locked memory by its address here */
	int timer_fd;

	/* [cut] helper */
	void *fence_events[GPU_MAX_STREAMS];

	_Atomic unsigned n_inside; /* threads that may be in the runtime, see gpu_dom_enter() */
	_Atomic bool lost, lost_begun;
	_Atomic int reset; /* enum gpu_reset: flights of a lost device are given back when DONE */
	_Atomic(const char *) lost_text;
	_Atomic int lost_code;
	bool lost_told;
	struct kvx_dom_counters counters;
};

/* Between the two a thread may call the runtime for this device; false: not any more. What was made
 * on the device goes with its reset, which waits (not for ever) until all have left. */
static inline bool gpu_dom_enter(struct kvx_dom *dom)
{
	atomic_fetch_add(&dom->n_inside, 1);
	if (!atomic_load(&dom->lost))
		return true;
	atomic_fetch_sub(&dom->n_inside, 1);
	return false;
}
static inline void gpu_dom_leave(struct kvx_dom *dom)
{
	atomic_fetch_sub(&dom->n_inside, 1);
}

/* gpu_lost.c */
int gpu_reset_prepare(struct kvx_dom *dom);
/* The device is used no more, and reset; text is static. Wakes the worker. Any thread. */
void gpu_dom_lose(struct kvx_dom *dom, int code, const char *text);
/* Waits for that, some seconds; false: it hangs. Not the worker thread. */
bool gpu_dom_wait_reset(struct kvx_dom *dom);

/* gpu_reg.c */
int gpu_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		struct kvx_mr **out_mr);
void gpu_mem_dereg(struct kvx_mr *mr);

/* gpu_mapping.c */
/* Maps the allocations of a region and tells it where they are. */
int gpu_mr_map(struct kvx_mr *mr, struct kvx_gpu_mem *gpu);
/* What gives back of an mr what its domain did for it, and frees it. Waits for that, not for ever.
 */
void gpu_mr_give_back(struct kvx_mr *mr);
/* gpu_pin.c */
int gpu_mr_pin(struct kvx_mr *mr, const struct kvx_mem *mem);
/* The thread that locks and unlocks so much host memory, and how long it may take. */
struct gpu_control *gpu_pin_control(const struct kvx_dom *dom, uint64_t len_bytes);
uint64_t gpu_pin_timeout_ns(const struct kvx_dom *dom, uint64_t len_bytes);
/* The calling thread may call the runtime for the domain: entered, and bound to the device. -ENODEV
 * or the runtime's error: it is not. */
int gpu_dom_enter_bound(struct kvx_dom *dom);
/* Takes the lock of host memory away: tried a few times. For who has entered the domain. 0 or
 * -errno: it stays locked. */
int gpu_dom_unpin(struct kvx_dom *dom, void *addr);
/* gpu_peer.c: this device is to reach the other one's memory directly, if it can. */
void gpu_dom_reach_peer(struct kvx_dom *dom, int peer);

/* gpu_key.c */
int gpu_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes);
int gpu_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey);
void gpu_rkey_free(struct kvx_rkey *rkey);

/* gpu_verify.c: control thread. 0; -EFAULT with the reason. */
struct gpu_look {
	uint64_t addr; /* of the mapping */
	uint8_t bytes[KVX_GPU_WITNESS_BYTES];
};
int gpu_verify(struct kvx_dom *dom, const struct gpu_look *looks, uint32_t n, struct kvx_why *why);

/* gpu_post.c */
/* It touches no memory of other devices any more. */
void gpu_flight_leave(struct gpu_flight *flight);
int gpu_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n);
/* What is left of the flight, which has landed and is on no stream, goes to this one. false:
 * nothing is, or it must not go any more: the flight is over. */
bool gpu_flight_go_on(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream);

/* gpu_flight.c */
/* Hands what is in dom->build to the stream. */
void gpu_flight_flush(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream);
/* And the event behind it: the flight is the stream's. */
void gpu_flight_send(struct kvx_dom *dom, struct gpu_flight *flight, struct gpu_stream *stream);

/* gpu_watch.c: worker. When it has to look again; 0: need not. */
uint64_t gpu_watch_tick_ns(struct kvx_dom *dom);
void gpu_watch(struct kvx_dom *dom);

/* gpu_progress.c */
int gpu_progress(struct kvx_dom *dom, struct kvx_tevent *events, unsigned max);
int gpu_arm(struct kvx_dom *dom);
int gpu_fence(struct kvx_ep *ep);

/* gpu_access.c */
extern const struct kvx_gpu_access gpu_access;

/* gpu_event.c: as in struct kvx_gpu_access */
int gpu_event_open_ipc(void *device, const uint8_t ipc[KVX_GPU_IPC_BYTES],
		       struct kvx_gpu_event **out_event);
int gpu_event_ready_ipc(struct kvx_gpu_event *event);
void gpu_event_close_ipc(struct kvx_gpu_event *event);
int gpu_event_query_ipc(struct kvx_gpu_event *event);

/* gpu_flush.c */
int gpu_flush_memory(void *device, struct kvx_gpu_flush *out_flush);
/* With the domain; control thread. */
void gpu_flush_unmake(struct kvx_dom *dom);

/* gpu_gather.c: fills kernel and gather_max_bytes. wanted < 0: by measurement. */
void gpu_gather_choose(struct kvx_dom *dom, int wanted);

#endif
