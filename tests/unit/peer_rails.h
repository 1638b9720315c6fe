/* Transports for the rig's nodes, all of them the fake one underneath: "best", "fake", and "any",
 * which reaches memory of every kind. Each rail of each node can be told to fail in the ways that
 * devices do, and to refuse memory. And a transport of one GPU, for nodes that are to have one. One
 * thread. */
#ifndef KVX_PEER_RAILS_H
#define KVX_PEER_RAILS_H

#include <stdbool.h>
#include <stdint.h>

#include "one_gpu.h"
#include "transport/fake/fake.h"

#define RAIL_MAX 32

/* A rail of a node: one domain. */
struct test_rail {
	struct kvx_dom *dom;
	const struct kvx_transport_ops *ops;
	unsigned node;  /* 0: a, 1: b */
	unsigned index; /* as its name says */
	bool down;      /* listen() gives -ENETDOWN */
	bool cut;       /* connect() gives -EHOSTUNREACH */
	bool refuses;   /* mem_reg() gives -EOPNOTSUPP */
	unsigned n_listens, n_connects;
	struct kvx_dom_port port;
};

extern struct kvx_transport_ops test_best_ops, test_fake_ops, test_any_ops, test_gpu_ops;

void test_rails_init(void);
void test_rails_begin(unsigned node); /* whose domains are opened from now on */
/* The port is down, and the device says so; DEVICE_UP when it is up again. */
void test_rail_wait(struct test_rail *rail, bool waits);
struct test_rail *test_rail(const struct kvx_transport_ops *ops, unsigned node, unsigned index);

#endif
