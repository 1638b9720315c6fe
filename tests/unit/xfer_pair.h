/* Two clients on one node of the rig: Alice's region is the local side of every transfer, Bob's the
 * remote one. */
#ifndef KVX_XFER_PAIR_H
#define KVX_XFER_PAIR_H

#include "node_rig.h"

#define MIB   (1u << 20)
#define ALICE 11
#define BOB   22

struct pair {
	struct node_rig rig;
	struct kvx_region *local, *remote;
	struct kvx_target *target;
	struct kvx_xfer_req req; /* a WRITE by Alice: change it, then rig_submit() */
};
extern struct pair pair;

/* After rig_init(&pair.rig): starts the node; both regions have `bytes` bytes. */
void pair_open(uint64_t bytes);
void pair_close(void);
struct kvx_xfers *pair_xfers(void);
/* The i-th terminal event came, with this status, and a text exactly when it failed. */
void pair_expect_end(unsigned i, int status);

#endif
