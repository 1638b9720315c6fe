/* A real kvxferd for integration tests: started in its own directory, stopped or killed by its pid.
 */
#ifndef KVX_TEST_NODE_H
#define KVX_TEST_NODE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvxfer/client.h"

struct test_node {
	pid_t pid; /* 0: not running */
	char dir[64];
	char socket[96];
	char log[96];
	char node_id[33];
};

/* Starts kvxferd ($KVXFERD) on a fresh directory, with --set for each of sets (NULL-terminated, or
 * NULL), listening for peers on a free loopback port, and waits until it answers. Fails the test
 * when it does not. The daemon dies with the test process. */
void test_node_start(struct test_node *node, const char *const *sets);
/* The same, with another limit than 20 s for its answer. */
void test_node_start_within(struct test_node *node, const char *const *sets, long limit_ms);
/* Starts it again on the same directory and socket, after a stop or a kill. */
void test_node_restart(struct test_node *node, const char *const *sets);
/* SIGTERM; fails the test unless it exits 0 within 15 s. Prints its log when the test has
 * KVX_TEST_VERBOSE set. */
void test_node_stop(struct test_node *node);
/* Sends a signal; SIGKILL also waits for the end. */
void test_node_signal(struct test_node *node, int signo);
/* Stops it (unless it is dead already) and removes the directory. */
void test_node_fini(struct test_node *node);

/* Runs a program to its end; gives its exit status (or 128 + signal) and what it wrote to stdout
 * and stderr. */
int test_run(const char *const *argv, char *out, size_t out_bytes);

/* Opens a client of the node; fails the test on error. timeout_ms 0: default. */
struct kvxfer_client *test_node_client(const struct test_node *node, const char *name);

/* A number out of the node's answer to a query, by dotted path ("counters.xfers_ok"); -1 when it is
 * not there. */
int64_t test_node_number(const struct test_node *node, const char *verb, const char *path);
/* Waits up to timeout_ms for that number to be `want`; returns the last value seen. */
int64_t test_node_wait_number(const struct test_node *node, const char *verb, const char *path,
			      int64_t want, int timeout_ms);

/* What a daemon must have back after a storm. */
struct test_node_base {
	long fds;
	long maps; /* lines of /proc/PID/maps */
	long rss_kib;
	int64_t clients, regions, transfers;
};
void test_node_measure(const struct test_node *node, struct test_node_base *out_base);
/* After it: gives the daemon up to 3 s to close what it has more fds than before for. */
void test_node_measure_after(const struct test_node *node, const struct test_node_base *before,
			     struct test_node_base *out_base);
long test_count_fds(pid_t pid); /* open in a process */

#endif
