/* Two engines, on one node or on two: most scenarios must hold on both, so they are written once
 * and run twice. */
#ifndef KVX_TEST_PAIR_H
#define KVX_TEST_PAIR_H

#include <stdbool.h>

#include "test_engine.h"
#include "test_node.h"

struct pair {
	bool cross;
	struct test_node node[2]; /* [1] only when cross */
	struct test_engine prefill, decode;
	struct kvxfer_import *to_decode;  /* decode's region, imported by prefill */
	struct kvxfer_import *to_prefill; /* prefill's region, imported by decode */
};

static inline struct test_node *pair_node(struct pair *p, int side)
{
	return &p->node[p->cross ? side : 0];
}

static inline const char *pair_transport(const struct pair *p)
{
	return p->cross ? "fabric" : "copy";
}

/* Prefill's region holds the pattern of seed 1, decode's the canary. */
static inline void pair_open(struct pair *p, bool cross, const char *const *sets, uint32_t n_planes,
			     uint32_t n_blocks, uint64_t block_bytes)
{
	p->cross = cross;
	test_node_start(&p->node[0], sets);
	if (cross)
		test_node_start(&p->node[1], sets);
	test_engine_open(&p->prefill, pair_node(p, 0), "prefill", n_planes, n_blocks, block_bytes,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	test_engine_open(&p->decode, pair_node(p, 1), "decode", n_planes, n_blocks, block_bytes,
			 KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE);
	test_fill(&p->prefill, 1);
	p->to_decode = test_engine_import(&p->prefill, &p->decode);
	p->to_prefill = test_engine_import(&p->decode, &p->prefill);
}

static inline void pair_close(struct pair *p)
{
	test_engine_close(&p->prefill);
	test_engine_close(&p->decode);
	test_node_fini(&p->node[0]);
	if (p->cross)
		test_node_fini(&p->node[1]);
}

/* A transfer between prefill (or decode) and the other, not yet submitted. */
static inline struct kvxfer_transfer pair_write(struct pair *p)
{
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t),
	    .op = KVXFER_WRITE,
	    .region = p->prefill.region,
	    .import_ = p->to_decode,
	};
	return t;
}

static inline struct kvxfer_transfer pair_read(struct pair *p)
{
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t),
	    .op = KVXFER_READ,
	    .region = p->decode.region,
	    .import_ = p->to_prefill,
	};
	return t;
}

#endif
