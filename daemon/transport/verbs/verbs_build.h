/* From ops to chains of work requests (verbs_build.c), and the chains that are open on a queue pair
 * (verbs_chain.h): both pure. Data thread. */
#ifndef KVX_VERBS_BUILD_H
#define KVX_VERBS_BUILD_H

#include <stdint.h>

#include <infiniband/verbs.h>

#include "transport/transport.h"

#define VERBS_OP_WRS     4u   /* pieces of one op, beyond post_batch, for which there is room */
#define VERBS_MAX_OP_WRS 256u /* pieces of one op, where the send queue has room for them */

struct verbs_flush;

/* What one chain may be. Fixed when the domain is opened. */
struct verbs_build_limits {
	uint32_t max_wrs;      /* of a chain, without its flush: post_batch */
	uint32_t op_wrs;       /* of one op, which may make a chain longer; at least
				  max_wrs + VERBS_OP_WRS */
	uint32_t max_sge;      /* of a work request */
	uint32_t inline_bytes; /* writes up to this size are inlined; 0: none */
	uint64_t max_op_bytes; /* longest op; no work request is longer either */
	uint64_t chain_bytes;  /* a chain that has as many takes no further op */
};

/* A chain being built; scratch of the domain [data]. wrs[] are linked already. */
struct verbs_build {
	struct verbs_build_limits limits;
	struct ibv_send_wr *wrs; /* op_wrs + 1 */
	struct ibv_sge *sges;    /* max_sge for each of them */
	const uint8_t **hosts;   /* beside sges, of short ops only: where the CPU finds it */
	uint64_t *wr_bytes;      /* beside wrs */
	uint8_t *inlined;        /* inline_bytes for each of wrs */
	uint32_t n_wrs;          /* in use */
	uint32_t n_ops;          /* that they carry */
	uint32_t n_gathered;     /* of them, those that share a work request */
	uint64_t bytes;
	uint64_t shortest; /* of the ops, in bytes */
};

/* Allocates (n arrays for these limits) and frees. */
int verbs_build_init(struct verbs_build *build, const struct verbs_build_limits *limits);
void verbs_build_fini(struct verbs_build *build);
/* Builds one chain of the first of these ops, at most room work requests: those of one kind and
 * cookie, flushed in one way. Returns how many ops it has (build->n_ops); 0: the first one cannot
 * be posted (*out_status -EINVAL, -ERANGE, -EACCES; -EMSGSIZE: in too many pieces) or finds no room
 * (*out_status 0). The work requests have no wr_id and no flags yet. */
unsigned verbs_build_chain(struct verbs_build *build, const struct kvx_ep *ep,
			   const struct kvx_op *ops, unsigned n, uint32_t room, int *out_status);
/* Puts the data of short writes into their work requests, reading client memory. Returns how many;
 * none when the memory is not there. */
unsigned verbs_build_inline(struct verbs_build *build);

struct verbs_chain {
	uint64_t cookie;
	uint64_t bytes;
	uint32_t n_ops; /* 0: a proof read */
	uint32_t n_wrs;
	/* Reads into GPU memory: done once this one's read number `need` is. NULL: nothing more. */
	struct verbs_flush *flush;
	uint64_t need;
};

/* Chains open on one queue pair, oldest first: a ring of sq_depth. A chain's number counts up;
 * together with ep index and generation it is the wr_id of all its work requests. [data] */
struct verbs_fifo {
	struct verbs_chain *ring; /* mask + 1 entries */
	uint32_t mask;
	/* Chain numbers, wrapping: [tail, head) are open; of them [tail, seen) have completed and
	 * wait for a flush, their own or that of one before them. */
	uint32_t head, seen, tail;
	uint32_t depth; /* work requests that fit into the send queue */
	uint32_t wrs_open;
	uint64_t bytes_open;
};

#endif
