/* Asks vendors' libraries in a process of its own: one that crashes, hangs or exits takes nothing
 * else down. For a process that has one thread: kvxferctl, and kvxferd before it starts others. */
#ifndef KVX_CHILD_H
#define KVX_CHILD_H

#include <stddef.h>

enum kvx_child_end {
	KVX_CHILD_ANSWERED,
	KVX_CHILD_CRASHED,
	KVX_CHILD_HUNG,
	KVX_CHILD_FAILED, /* it ended with another exit status than 0 */
	KVX_CHILD_NOT_STARTED,
};

struct kvx_child {
	enum kvx_child_end end;
	int number;        /* CRASHED: the signal; FAILED: the exit status; NOT_STARTED: an errno */
	char words[16384]; /* what it wrote to standard output and standard error */
	/* ", and its process 1234 cannot be ended ...": it sleeps in the kernel, and was left
	 * behind (HUNG); "": it is gone. To follow what is said of the library. */
	char left[128];
};
#define KVX_CHILD_END_MS 2000u /* how long it may take to end, and once more when it is killed */

/* Runs body(fd, arg) in a child that ends with its return value as exit status; what it writes to
 * fd goes to buf, cut to buf_bytes - 1 and terminated. Ends after at most limit_ms and twice
 * KVX_CHILD_END_MS, whatever becomes of the child. */
void kvx_child_ask(int (*body)(int fd, void *arg), void *arg, unsigned limit_ms, char *buf,
		   size_t buf_bytes, struct kvx_child *out_child);
/* The last line of its words, without its end; "": none. Changes words. */
const char *kvx_child_last_line(struct kvx_child *child);

/* What is wrong with the library that it was to start, `name`, when it has not said so itself.
 * Fills buf and returns it. Changes words. */
const char *kvx_child_text(struct kvx_child *child, const char *name, char *buf, size_t buf_bytes);

#endif
