/* What the tests of GPU memory share: a node of stand-in GPUs (or the real ones) with its daemon,
 * engines that are processes of their own, and what must be as before when all is over. */
#ifndef KVX_TEST_GPU_RIG_H
#define KVX_TEST_GPU_RIG_H

#include <sys/types.h>

#include "gpu_engine.h"
#include "standin.h"

#define RIG_WAIT_MS  20000
#define RIG_VRAM     (512ull << 20)
#define RIG_MAX_DESC (2 * KVXFER_DESCRIPTOR_MAX + 1)
#define RIG_LINE     (RIG_MAX_DESC + 64)

/* Makes the node of two devices. What only the stand-in can do is skipped, with the reason, on a
 * real GPU: false. */
bool rig_standin(void);
/* The same, or a real GPU: false when there is neither. */
bool rig_any(void);
void rig_end(void);
/* The second device; the first one where there is only one. */
int rig_second(void);

/* What is held on the GPUs, by all and by the daemon. Of real ones only how much is free. */
struct rig_base {
	struct standin_usage usage[2];
	struct standin_process daemon;
	size_t free_bytes[2];
	int64_t clients, regions, transfers;
	long fds; /* the daemon's */
};
void rig_measure(const struct test_node *node, struct rig_base *out_base);
/* Fails the test unless all is as it was: GPU memory and mappings to the byte (on real GPUs: free
 * memory, nearly), page-locked memory, streams, events, file descriptors; waits for it up to
 * RIG_WAIT_MS. */
void rig_expect_base(const struct test_node *node, const struct rig_base *before);
/* The stand-in has seen nothing that no program may do, and the daemon never blocked its loop. */
void rig_expect_good_manners(const struct test_node *node);

/* --- gpu_victim */

struct rig_victim {
	pid_t pid;
	int in, out;
	char desc[RIG_MAX_DESC]; /* hex; "": refused */
	char answer[RIG_LINE];   /* the last line */
};
struct rig_victim_conf {
	int dev;
	uint32_t n_planes, n_blocks;
	uint64_t block_bytes;
	uint8_t fill;
	const char *visible; /* CUDA_VISIBLE_DEVICES and HIP_VISIBLE_DEVICES; NULL: all */
	bool no_wait;        /* for its first line */
};
void rig_victim_start(struct rig_victim *v, const struct test_node *node,
		      const struct rig_victim_conf *conf);
/* Its next line, into answer; false: it has ended, or says nothing for that long. */
bool rig_victim_hear(struct rig_victim *v, int timeout_ms);
void rig_victim_say(struct rig_victim *v, const char *line);
/* Says and hears; fails the test when there is no answer. */
const char *rig_victim_ask(struct rig_victim *v, const char *line);
/* Signal 0: by the end of its input. */
void rig_victim_end(struct rig_victim *v, int signo);

void rig_hex(struct kvxfer_region *region, char out_hex[RIG_MAX_DESC]);
struct kvxfer_import *rig_import(struct test_engine *e, const char *hex);
void rig_sleep_ms(long ms);
long rig_now_ms(void);

#endif
