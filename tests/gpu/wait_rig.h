/* What the tests of transfers that wait share: a daemon, an engine that writes with the kernels of
 * a stream, and one that it writes to. The kernels are copies on a stream of the stand-in runtime.
 * One rig in a process, as each test has one of its own; one thread. */
#ifndef KVX_TEST_WAIT_RIG_H
#define KVX_TEST_WAIT_RIG_H

#include "gpu_rig.h"

#define PLANES 16
#define BLOCKS 8
#define BLOCK  8192u

struct wait_rig {
	struct test_node node;
	struct gpu_engine prefill, decode;
	struct kvxfer_import *to_decode;
	void *stream;
	uint8_t *staged; /* page-locked: what the kernels write, PLANES planes */
};
extern struct wait_rig rig;

/* Devices of prefill and decode; -1: host memory. False: skipped, see rig_standin(). */
bool wait_begin(const char *const *sets, int dev_a, int dev_b);
/* On a real GPU, too; decode has the second one where there are two. */
bool wait_begin_any(int dev_a);
void wait_end(void);

/* What kernel `seed` writes as plane p. */
void wait_stage(uint64_t seed, uint32_t p);
/* The kernel of a layer: one op of the stream for each block. */
void wait_launch(uint32_t p);

/* An event of prefill's, and how a transfer waits for it. */
void *wait_event_make(struct kvxfer_wait *out_wait);
/* One that is recorded on the stream, while device 0 stands still until standin_stall(0, false). */
void *wait_event_held(struct kvxfer_wait *out_wait);
/* The same behind kernel `seed` of plane 0. */
void *wait_kernel_held(uint64_t seed, struct kvxfer_wait *out_wait);

/* All blocks of planes [from, from + n). */
struct kvxfer_blocks wait_planes(uint32_t from, uint32_t n);
/* Writes them to decode; NULL: to be appended. deadline_ms 0: none. */
uint64_t wait_submit(const struct kvxfer_blocks *blocks, const struct kvxfer_wait *wait,
		     uint32_t deadline_ms);
struct test_event wait_expect_end(uint64_t id, int status);
/* Planes [from, from + n) are those of the kernel. */
void wait_expect_arrived(uint64_t seed, uint32_t from, uint32_t n);
void wait_expect_untouched(void);
/* Until so many lists wait, as the daemon says. */
void wait_until_waiting(int64_t n);

#endif
