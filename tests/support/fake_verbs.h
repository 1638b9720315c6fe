/* A stand-in for libibverbs, linked by tests in place of it. It defines every ibv_ function that
 * the verbs backend uses and moves the bytes between the queue pairs of this process for real, with
 * the checks that a device makes (keys, protection domains, ranges, rights, states, paths) and the
 * error completions that follow from them. What a device cannot be made to do on purpose, a test
 * tells it to do here: failing and slow calls, partial posts, error completions, completions that
 * are held back, bytes that land late, asynchronous events.
 *
 * It also watches its user. What real verbs answer with lost completions, a hang or memory in ruins
 * is noted as a violation: queues that overflow or could, calls on what was destroyed, objects
 * destroyed out of order or never, waits that would not end. A test ends with FAKE_VERBS_END().
 *
 * Any thread. Its lock is no sanitizer's business: the library is built without ThreadSanitizer, so
 * that a lock in here does not order the threads of the code under test.
 *
 * Order of use: fake_verbs_reset(), change devices, then the code under test. */
#ifndef FAKE_VERBS_H
#define FAKE_VERBS_H

#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>

#define FAKE_VERBS_MAX_DEVS  8
#define FAKE_VERBS_MAX_PORTS 4
#define FAKE_VERBS_MAX_GIDS  8
#define FAKE_VERBS_MAX_SGE   32
#define FAKE_VERBS_INLINE    512

/* Calls that can fail, be slow and are counted. */
enum fake_verbs_fn {
	FV_GET_DEVICE_LIST,
	FV_OPEN_DEVICE,
	FV_CLOSE_DEVICE,
	FV_QUERY_DEVICE,
	FV_QUERY_PORT,
	FV_QUERY_GID,
	FV_ALLOC_PD,
	FV_DEALLOC_PD,
	FV_REG_MR,
	FV_REG_DMABUF_MR,
	FV_DEREG_MR,
	FV_CREATE_CHANNEL,
	FV_DESTROY_CHANNEL,
	FV_CREATE_CQ,
	FV_DESTROY_CQ,
	FV_NOTIFY_CQ,
	FV_POLL_CQ,
	FV_GET_CQ_EVENT,
	FV_CREATE_QP,
	FV_MODIFY_QP,
	FV_QUERY_QP,
	FV_DESTROY_QP,
	FV_POST_SEND,
	FV_GET_ASYNC_EVENT,
	FV_N_FNS
};

struct fake_verbs_port {
	struct ibv_port_attr attr;
	struct ibv_gid_entry gids[FAKE_VERBS_MAX_GIDS]; /* all-zero gid: no entry */
};
struct fake_verbs_dev {
	struct ibv_device dev; /* first */
	struct ibv_device_attr attr;
	struct fake_verbs_port ports[FAKE_VERBS_MAX_PORTS]; /* port 1 is [0] */
	unsigned cq_extra;   /* entries that a CQ gets beyond what was asked for */
	bool keeps_dead;     /* completions of a destroyed QP stay in the CQ, as on rxe */
	bool has_dmabuf;     /* ibv_reg_dmabuf_mr works; else EOPNOTSUPP */
	bool has_peermem;    /* memory of GPUs can be registered by address; else EFAULT */
	uint64_t dmabuf_off; /* a dma-buf shows memory that is so many bytes further on
				 (wraps around: before) */
	bool access_events;  /* a responder that refuses raises QP_ACCESS_ERR, as HCAs do */
	bool dies_silently;  /* DEVICE_FATAL flushes nothing: no completion comes any more */
	unsigned n_open;     /* contexts open */
	bool fatal;          /* DEVICE_FATAL was raised: nothing works any more */
};

/* Starts anew with one device "fake0": one active RoCE port, whose GIDs are a RoCE v1 and v2 pair
 * of a link-local address (0, 1) and of 10.0.0.1 (2, 3). */
void fake_verbs_reset(void);
/* One more device of that kind, with the next address. Before the code under test looks. */
struct fake_verbs_dev *fake_verbs_add(const char *name);
struct fake_verbs_dev *fake_verbs_dev(unsigned i);
void fake_verbs_remove_all(void); /* no devices at all */
/* A folder in place of /sys/class, made at the first call; ibv_device.ibdev_path of every device is
 * infiniband/NAME in it. */
const char *fake_verbs_sysfs(void);
/* name: below it, "infiniband/fake0/device/numa_node". */
void fake_verbs_sysfs_write(const char *name, const char *text);
/* What ibv_get_device_list() prints on stderr from now on, as libibverbs does; NULL: nothing. */
void fake_verbs_say(const char *words);
void fake_verbs_make_gid(struct ibv_gid_entry *entry, uint32_t index, const char *ip,
			 enum ibv_gid_type type); /* ip: "fe80::1", "10.0.0.1" */

/* --- faults of calls --- */

/* The nth call of fn from now (1: the next) fails with err, once; of any fallible call for
 * FV_N_FNS, which leaves out the destroying ones and polling. */
void fake_verbs_fail(enum fake_verbs_fn fn, unsigned nth, int err);
bool fake_verbs_fired(void); /* did it? Forgets the fault. */
/* Every call of fn fails with err until told otherwise (0). */
void fake_verbs_fail_all(enum fake_verbs_fn fn, int err);
void fake_verbs_delay(enum fake_verbs_fn fn, unsigned ms);
/* Every call of fn stands before it has done anything, until told otherwise; how many do. */
void fake_verbs_hang(enum fake_verbs_fn fn, bool on);
unsigned fake_verbs_hanging(enum fake_verbs_fn fn);
unsigned fake_verbs_calls(enum fake_verbs_fn fn);
/* The next post takes n work requests and fails with ENOMEM at the one after; UINT32_MAX: no. */
void fake_verbs_post_limit(unsigned n);

/* --- the wire --- */

enum fake_verbs_mode {
	FV_AT_ONCE, /* a work request is done when it is posted */
	FV_HELD,    /* only by fake_verbs_run() */
};
void fake_verbs_mode(enum fake_verbs_mode mode);
/* Moves at most n packets (work requests, unless they are cut) of all QPs in turn; how many. */
unsigned fake_verbs_run(unsigned n);
/* Moves one packet of a QP that the random number picks; false: nothing to move. */
bool fake_verbs_run_one(uint64_t random);
void fake_verbs_packet(uint32_t bytes); /* 0: work requests move as a whole */
/* A work request that reaches nobody waits that long for the other side (0 to begin with) before it
 * ends as RETRY_EXC; polling the CQ, or running the wire, tries again. */
void fake_verbs_retry(unsigned ms);
/* A thread that moves packets, as long as it runs: for FV_HELD. */
void fake_verbs_wire_start(uint64_t seed);
void fake_verbs_wire_stop(void);

/* Completions from now on are not shown by poll_cq until released. */
void fake_verbs_hold_completions(bool hold);
unsigned fake_verbs_release(unsigned n); /* how many were there to release */

enum fake_verbs_land { FV_LAND_NOTHING, FV_LAND_HALF, FV_LAND_ALL };
/* The nth work request moved from now ends with this error after that much of it has landed. */
void fake_verbs_break(unsigned nth, enum ibv_wc_status status, uint32_t vendor_err,
		      enum fake_verbs_land land);
bool fake_verbs_broken(void); /* did it? Forgets it. */

/* Late bytes: what was under way when a QP went to error is kept, and lands when told to (or when
 * the wire thread runs), unless the QP that receives it was destroyed or the memory was
 * deregistered. Returns the bytes that landed. */
void fake_verbs_late(bool on);
/* A network loses what it has not delivered within that time; 0 (to begin with): never. */
void fake_verbs_lifetime(unsigned ms);
uint64_t fake_verbs_land_late(void);
uint64_t fake_verbs_late_dropped(void); /* bytes that a fence kept from landing */

/* Off: nothing is copied, only completed: for measures of what is around it. */
void fake_verbs_copy(bool on);
/* Writes complete before they are visible, until a read passes through the same responder. */
void fake_verbs_lazy_writes(bool on);

/* --- memory of GPUs --- */

/* Who knows what is memory of a GPU in this process: GPUs are numbered from 1, 0 is none. The
 * functions must not call the stand-in. */
struct fake_verbs_gpus {
	unsigned (*of_fd)(int fd);
	/* out_bytes: where a device finds the bytes behind an address. */
	unsigned (*of_addr)(const void *addr, uint8_t **out_bytes);
};
void fake_verbs_set_gpus(const struct fake_verbs_gpus *gpus); /* NULL, to begin with: no GPUs */
/* What lands in memory of a GPU, by a write or as the answer to a read, is complete before it is
 * visible, until the same device reads any memory of the same GPU. Off: lands what waits. */
void fake_verbs_gpu_delay(bool on);
/* Work requests on memory of this GPU move no more, nor do those behind them; 0: none is so. */
void fake_verbs_gpu_mute(unsigned gpu);
uint64_t fake_verbs_gpu_waiting(void); /* bytes that are not visible yet */
unsigned fake_verbs_gpu_mrs(void);     /* registrations of memory of GPUs */

/* --- events --- */

unsigned fake_verbs_n_qps(void);
struct ibv_qp *fake_verbs_qp(unsigned i); /* live ones, oldest first */
struct ibv_cq *fake_verbs_cq(unsigned i);
/* QP_FATAL and QP_ACCESS_ERR put the QP in error first. */
void fake_verbs_raise_qp(struct ibv_qp *qp, enum ibv_event_type type);
/* Of a QP, or with CQ_ERR of a CQ, that the random number picks among the live ones; where others
 * make and destroy them meanwhile. */
void fake_verbs_raise_some(uint64_t random, enum ibv_event_type type);
void fake_verbs_raise_cq(struct ibv_cq *cq);             /* CQ_ERR: it delivers nothing any more */
void fake_verbs_raise_fatal(struct fake_verbs_dev *dev); /* DEVICE_FATAL */
/* PORT_ERR or PORT_ACTIVE with the port's state; others: the event alone. */
void fake_verbs_raise_port(struct fake_verbs_dev *dev, unsigned port, enum ibv_event_type type);
/* Traffic of a port goes nowhere and ends as RETRY_EXC, without any event. */
void fake_verbs_cut(struct fake_verbs_dev *dev, unsigned port, bool cut);

/* --- what was seen --- */

/* IBV_ACCESS_* that memory was registered with; of a key: 0 when it is none. */
unsigned fake_verbs_access(const struct ibv_mr *mr);
unsigned fake_verbs_access_of_key(uint32_t rkey);

struct fake_verbs_count {
	uint64_t posts, wrs, signaled, inlined, sges, reads, writes;
	uint64_t cqes, flushed, bytes; /* bytes: moved */
	unsigned contexts, pds, mrs, channels, cqs, qps;
	unsigned device_lists, unacked_events;
};
struct fake_verbs_count fake_verbs_count(void);

/* Work requests as posted, while tracing is on. */
struct fake_verbs_wr {
	unsigned post; /* number of the post_send call */
	uint32_t qp_num;
	enum ibv_wr_opcode opcode;
	unsigned flags;
	unsigned n_sge;
	uint64_t len_bytes;
	uint64_t remote_addr;
	uint32_t rkey;
};
void fake_verbs_trace(bool on); /* on: forgets what was traced */
unsigned fake_verbs_n_wrs(void);
struct fake_verbs_wr fake_verbs_wr(unsigned i);

/* From now on, calls that block (memory, queue pairs) are violations on this thread. */
void fake_verbs_no_blocking_here(bool on);

unsigned fake_verbs_n_violations(void);
const char *fake_verbs_violation(void); /* the first; "" */
/* Accepts the violations so far: for tests of this file. */
void fake_verbs_forgive(void);

/* Everything given back, nothing done wrong. Criterion tests only. */
#define FAKE_VERBS_END()                                                                           \
	do {                                                                                       \
		struct fake_verbs_count c_ = fake_verbs_count();                                   \
                                                                                                   \
		fake_verbs_wire_stop();                                                            \
		cr_assert_eq(fake_verbs_n_violations(), 0, "%s", fake_verbs_violation());          \
		cr_assert_eq(c_.qps, 0, "%u QPs left", c_.qps);                                    \
		cr_assert_eq(c_.cqs, 0, "%u CQs left", c_.cqs);                                    \
		cr_assert_eq(c_.channels, 0, "%u completion channels left", c_.channels);          \
		cr_assert_eq(c_.mrs, 0, "%u MRs left", c_.mrs);                                    \
		cr_assert_eq(c_.pds, 0, "%u PDs left", c_.pds);                                    \
		cr_assert_eq(c_.contexts, 0, "%u devices left open", c_.contexts);                 \
		cr_assert_eq(c_.device_lists, 0, "%u device lists left", c_.device_lists);         \
		cr_assert_eq(c_.unacked_events, 0, "%u events not acked", c_.unacked_events);      \
		fake_verbs_fini();                                                                 \
	} while (0)
void fake_verbs_fini(void); /* frees what reset made */

#endif
