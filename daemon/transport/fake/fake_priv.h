/* What the parts of the fake transport share: domains and eps (fake.c), memory and keys
 * (fake_mem.c), the movement of ops in virtual time (fake_link.c), what lands after a fence
 * (fake_late.c), what tests do to it (fake_script.c), and the table of the calls that can be held
 * (fake_blocking.c). */
#ifndef KVX_FAKE_PRIV_H
#define KVX_FAKE_PRIV_H

#include <pthread.h>

#include "transport/fake/fake.h"

#define FAKE_NAME_MAGIC 0x6b7666616b653031ull /* of addresses and mkeys */

/* An address or an mkey. */
struct fake_name {
	uint64_t magic;
	uint64_t dom;
	uint64_t id; /* of the ep or mr */
};

struct kvx_mr {
	struct kvx_dom *dom;
	uint8_t *addr;
	uint64_t len_bytes;
	uint64_t id; /* 0: deregistered, kept for rkeys and open ops */
	uint32_t tenant;
	uint32_t rights;
	unsigned n_refs;
	pthread_t maker; /* with gates */
	struct kvx_mr *prev, *next;
};

struct kvx_rkey {
	struct kvx_mr *mr;
	struct kvx_fake_script *script;
};

enum fake_op_state {
	FAKE_OP_OPEN,    /* not landed */
	FAKE_OP_LANDED,  /* to be reported */
	FAKE_OP_DROPPED, /* will not be reported but by a fence */
};

struct fake_op {
	struct kvx_op op;
	struct kvx_mr *remote;
	uint64_t due_ns;
	uint64_t nth; /* count over the script */
	enum fake_op_state state;
	int status;
};

enum fake_ep_state { FAKE_EP_LOOPBACK, FAKE_EP_CONNECTING, FAKE_EP_UP, FAKE_EP_DOWN };

struct kvx_ep {
	struct kvx_dom *dom;
	struct kvx_ep *prev, *next;
	uint64_t id;
	uint32_t tenant;
	enum fake_ep_state state;
	bool fenced;
	unsigned n_calls; /* gates: how many run now that exclude each other */
	bool fencing;     /* gates: a fence() has begun */
	int down_status;
	bool tell_up, tell_down; /* events to give */
	uint64_t peer_id;        /* 0: loopback */
	uint64_t up_ns;          /* CONNECTING: when it will be known */
	uint64_t link_free_ns;   /* when the link has sent what it has */
	uint64_t last_due_ns;
	uint64_t lease_ns;
	unsigned n_ops;     /* in ops[] */
	unsigned queue_ops; /* of ops[] */
	struct fake_op ops[];
};

struct kvx_dom {
	struct kvx_fake_script *script;
	struct kvx_dom *prev, *next;
	uint64_t id;
	unsigned rail;
	uint64_t rng;
	bool lost, tell_lost, tell_up;
	pthread_t owner; /* gates: the thread that opened it */
	struct kvx_ep *eps;
	struct kvx_mr *mrs;
};

/* fake_mem.c: the table's, and an end of a reference. */
int fake_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		 struct kvx_mr **out_mr);
void fake_mem_dereg(struct kvx_mr *mr);
int fake_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes);
int fake_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey);
void fake_rkey_free(struct kvx_rkey *rkey);
void fake_mr_unref(struct kvx_mr *mr);

/* NULL: not there (any more). */
struct kvx_ep *fake_ep_find(const struct kvx_fake_script *script, uint64_t id);
/* The other end of a connected ep, if it is there and not fenced. */
struct kvx_ep *fake_ep_peer(const struct kvx_ep *ep);
void fake_ep_add_op(struct kvx_ep *ep, const struct kvx_op *op);
/* Everything open ends with status; none of it lands any more. */
void fake_ep_cut(struct kvx_ep *ep, int status);
void fake_ep_lose(struct kvx_ep *ep, int status);
/* Counts a call; the scripted -errno when it is the one that fails. */
int fake_script_call(struct kvx_fake_script *script, enum kvx_fake_slot slot);
/* Lets what is due at script->now_ns happen in this domain. */
void fake_dom_settle(struct kvx_dom *dom);
uint64_t fake_next_ns(const struct kvx_fake_script *script);
void fake_device_lose(struct kvx_fake_script *script, struct kvx_dom *dom);

/* What an ep that is being fenced has under way goes on without it. */
void fake_late_keep(struct kvx_ep *ep);
void fake_late_settle(struct kvx_fake_script *script);
uint64_t fake_late_next_ns(const struct kvx_fake_script *script);
void fake_late_forget(struct kvx_fake_script *script, const struct kvx_dom *dom);

/* May the op happen? 0 or -errno. */
int fake_op_check(const struct kvx_ep *ep, const struct fake_op *fop);

/* Fills events of this ep; returns the new number in use. */
unsigned fake_ep_report(struct kvx_ep *ep, struct kvx_tevent *events, unsigned n, unsigned max);

#endif
