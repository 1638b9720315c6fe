/* Inside the verbs stand-in: its objects and the one lock that guards them all. Functions named
 * fv_* without a comment of their own are called with the lock held. */
#ifndef FAKE_VERBS_PRIV_H
#define FAKE_VERBS_PRIV_H

#include "fake_verbs.h"

#define FV_MAX_KEYS  4096
#define FV_MAX_TRACE 65536
#define FV_MAX_LATE  4096

/* The beginning of every object: dead ones are kept (and poisoned in spirit) so that a call on one
 * is noticed and not undefined. */
enum fv_kind { FV_K_PD = 1, FV_K_MR, FV_K_CHANNEL, FV_K_CQ, FV_K_QP, FV_K_CTX };
struct fv_object {
	enum fv_kind kind;
	bool dead;
	struct fv_object *next; /* of all objects ever made, newest first */
};

struct fv_ctx {
	struct fv_object obj;
	struct fake_verbs_dev *dev;
	struct ibv_async_event events[256];
	unsigned events_head, events_tail; /* queued and not fetched */
	unsigned n_children;               /* PDs, CQs, channels */
	struct verbs_context verbs;        /* last field of it: what the user sees */
};
struct fv_pd {
	struct ibv_pd pd; /* first */
	struct fv_object obj;
	unsigned n_users;
};
struct fv_mr {
	struct ibv_mr mr; /* first */
	struct fv_object obj;
	uint64_t iova;
	uint8_t *bytes;
	int access;
	unsigned gpu; /* whose memory it is; 0: the host's */
	void *map;    /* dma-buf: our mapping of it */
	size_t map_len;
};
struct fv_channel {
	struct ibv_comp_channel channel; /* first */
	struct fv_object obj;
	struct ibv_cq *events[256];
	unsigned head, tail;
};

struct fv_qp;
struct fv_cqe {
	struct ibv_wc wc;
	struct fv_qp *qp;
	uint64_t wqe; /* its number on the send queue */
};
struct fv_cq {
	struct ibv_cq cq; /* first */
	struct fv_object obj;
	struct fv_cqe *ring; /* cq.cqe entries */
	uint64_t head, tail; /* head: pushed; tail: polled */
	uint64_t shown;      /* pushed and not held back */
	bool armed, broken;
	unsigned n_qps;
	uint64_t n_open_wrs; /* posted and not retired, of all its QPs */
	uint64_t n_stale;    /* in the ring, of QPs that are gone */
	unsigned events_got; /* completion events fetched from the channel */
	unsigned async_got;
};

struct fv_wqe {
	uint64_t wr_id;
	uint64_t remote_addr;
	enum ibv_wr_opcode opcode;
	unsigned flags;
	uint32_t rkey;
	uint32_t n_sge;
	uint64_t len;
	uint64_t moved;
	uint64_t tried_ns; /* when it first reached nobody; 0: not yet */
	struct ibv_sge sge[FAKE_VERBS_MAX_SGE];
	uint8_t inlined[FAKE_VERBS_INLINE];
};
struct fv_qp {
	struct ibv_qp qp; /* first */
	struct fv_object obj;
	struct ibv_qp_cap cap;
	struct ibv_qp_attr attr;
	bool sig_all;
	struct fv_wqe *sq;   /* cap.max_send_wr entries */
	uint64_t posted;     /* number of the next to be posted */
	uint64_t moving;     /* next to be moved */
	uint64_t retired;    /* all before it have been seen complete */
	struct fv_qp *other; /* found by path and number; NULL: not yet */
	unsigned async_got;
};

static inline struct fv_qp *fv_qp_of(struct fv_object *obj)
{
	return (struct fv_qp *)((uint8_t *)obj - offsetof(struct fv_qp, obj));
}

/* Bytes that have left their place and not landed. */
struct fv_late {
	struct fv_qp *qp; /* that receives them */
	struct fv_mr *mr; /* that they go to */
	uint8_t *to;
	uint8_t *bytes;
	uint64_t len;
	bool lazy; /* complete and not yet visible */
	uint64_t born_ns;
};

struct fv_fault {
	enum fake_verbs_fn fn;
	unsigned left; /* 0: none */
	int err;
	bool fired;
};
struct fv_break {
	unsigned left;
	enum ibv_wc_status status;
	uint32_t vendor_err;
	enum fake_verbs_land land;
	bool fired;
};

struct fv_state {
	struct fake_verbs_dev devs[FAKE_VERBS_MAX_DEVS];
	unsigned n_devs;
	struct fv_object *objects;
	struct fv_mr *keys[FV_MAX_KEYS];
	unsigned n_keys;
	uint32_t next_qpn, next_tag;
	struct fv_fault fault;
	struct fv_break brk;
	unsigned delay_ms[FV_N_FNS];
	bool hangs[FV_N_FNS];
	unsigned n_hanging[FV_N_FNS];
	int fail_all[FV_N_FNS]; /* 0: they do not */
	unsigned calls[FV_N_FNS];
	unsigned post_limit;
	enum fake_verbs_mode mode;
	uint32_t packet_bytes;
	uint64_t retry_ns;
	uint64_t lifetime_ns;
	bool hold_completions, late_on, lazy_on, copies_not, gpu_delay;
	unsigned mute_gpu; /* 0: none */
	const struct fake_verbs_gpus *gpus;
	bool cut[FAKE_VERBS_MAX_DEVS][FAKE_VERBS_MAX_PORTS];
	struct fv_late late[FV_MAX_LATE];
	unsigned n_late;
	uint64_t late_dropped;
	struct fake_verbs_count count;
	bool tracing;
	struct fake_verbs_wr *trace; /* FV_MAX_TRACE of them */
	unsigned n_trace;
	unsigned n_violations;
	char violation[256];
	const char *words; /* NULL: none */
	unsigned turn;     /* whose packet is next */
};
extern struct fv_state fv;

void fv_lock(void);   /* without it held */
void fv_unlock(void); /* with it */
/* Counts a call, waits as told, then takes the lock; returns the error that it is to fail with, or
 * 0. Without the lock; holds it on return. */
int fv_enter(enum fake_verbs_fn fn);
/* Leaves, with errno set; for functions that return pointers. */
void *fv_leave_null(int err);
int fv_leave(int err);
void fv_violate(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Adds to the objects; dead: notes a violation and returns false. */
void fv_object_init(struct fv_object *obj, enum fv_kind kind);
bool fv_alive(const struct fv_object *obj, enum fv_kind kind, const char *what);
void fv_object_end(struct fv_object *obj);

struct fv_ctx *fv_ctx_of(struct ibv_context *context);
struct fake_verbs_dev *fv_dev_of(struct ibv_context *context);
unsigned fv_dev_index(const struct fake_verbs_dev *dev);
void fv_event_push(struct fv_ctx *ctx, const struct ibv_async_event *event);
/* Takes back the events of an object that is going: type 0 QPs, 1 CQs. */
void fv_events_purge(struct fv_ctx *ctx, const void *element);
/* Event fds that count one up and one down, as those of a device become readable: past the
 * sanitizers' eyes too. */
int fv_fd_open(void); /* or -1, errno */
void fv_fd_close(int fd);
void fv_fd_add(int fd);
void fv_fd_take(int fd);
/* Gives the lock up until done(arg), for two seconds at most; false: in vain. */
bool fv_wait(bool (*done)(void *arg), void *arg);

struct fv_mr *fv_key_find(uint32_t key, bool remote);
/* Copies bytes past the sanitizers' eyes, as a device does. */
void fv_dma(uint8_t *to, const uint8_t *from, uint64_t len);

void fv_cq_push(struct fv_qp *qp, uint64_t wqe, enum ibv_wc_status status, uint32_t vendor_err);
void fv_cq_drop_qp(struct fv_cq *cq, struct fv_qp *qp);

int fv_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad_wr);
int fv_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad_wr);
int fv_poll_cq(struct ibv_cq *cq, int n, struct ibv_wc *wc);
int fv_req_notify_cq(struct ibv_cq *cq, int solicited_only);
void fv_qp_fail(struct fv_qp *qp); /* to the error state: flushes */
bool fv_qp_step(struct fv_qp *qp); /* moves one packet */
void fv_cq_step(struct fv_cq *cq); /* what waits on QPs of a CQ */
/* The fence: what has not landed at it by now never does. */
void fv_wire_forget_qp(struct fv_qp *qp);
void fv_wire_forget_mr(struct fv_mr *mr);
/* Takes bytes to their place: now, or as the rest of `late` says. */
enum fv_when { FV_NOW, FV_LAZY, FV_LATE };
void fv_carry(const struct fv_late *packet, const uint8_t *from, enum fv_when when);
void fv_late_free(struct fv_late *late);
uint64_t fv_now_ns(void);
/* Lands the lazy writes that wait at a QP or for an MR (both NULL: all). */
void fv_land_lazy(const struct fv_qp *qp, const struct fv_mr *mr);
/* A device reads this memory; by an RDMA read that a QP answers, or (NULL) to send it. */
void fv_land_before_read(const struct fv_qp *responder, const struct fv_mr *mr);

#endif
