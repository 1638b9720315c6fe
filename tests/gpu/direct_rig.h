/* What the tests of two nodes with RDMA share: the program direct_daemons, which is both daemons,
 * and what it is told. One thread. */
#ifndef KVX_TEST_DIRECT_RIG_H
#define KVX_TEST_DIRECT_RIG_H

#include "gpu_rig.h"

struct direct_rig {
	char dir[32];
	struct test_node nodes[2]; /* only their sockets */
	pid_t pid;
	int mark_fd, ack_fd;
};

/* Makes the two GPUs, starts the daemons and tells them those marks. transports: how they reach
 * each other, as the configuration has it; NULL: "verbs". False: a real GPU, which RDMA devices
 * that are stand-ins do not reach; the test is skipped. */
bool direct_start(struct direct_rig *d, const char *transports, const char *marks);
/* One letter after the other, see direct_daemons.c; gives the last answer. */
char direct_tell(struct direct_rig *d, const char *marks);
/* Waits for their end, and fails the test when something was not given back or done wrong. */
void direct_stop(struct direct_rig *d);

#endif
