/* What fuzz_peer_frame.c feeds: a node with its peers and one region, on the fake transport and in
 * virtual time, and another node that only has endpoints and a region. One thread. */
#ifndef KVX_FUZZ_PEER_NODE_H
#define KVX_FUZZ_PEER_NODE_H

#include "transport/fake/fake.h"
#include "xfer/peer_priv.h"

#define LEN   65536u
#define RAILS 2u

struct fuzz_peer_node {
	uv_loop_t loop;
	struct kvx_fake_script script;
	struct kvx_timers *timers;
	struct kvx_node *node, *other; /* the other one only has an endpoint and a region */
	struct kvx_peers *peers;
	struct kvx_region *region, *theirs;
	struct kvx_ep *their_eps[RAILS];
	unsigned n_region_events, n_answers, n_ends, n_found;
	struct kvx_target *target;
	uint8_t their_addrs[RAILS][KVX_TRANSPORT_ADDR_MAX];
	size_t their_addr_lens[RAILS];
};
extern struct fuzz_peer_node f; /* made once, by LLVMFuzzerInitialize() */

/* Everything turns until nothing happens, then so much time passes. */
void turn(uint64_t ns) KVX_ON_LOOP;
void turns(unsigned n) KVX_ON_LOOP; /* n ms */
/* To an endpoint of the other node on each rail of the better transport. */
void other_command(enum kvx_work_kind kind) KVX_ON_LOOP;

#endif
