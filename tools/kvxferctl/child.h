/* Asks vendors' libraries in a process of its own: one that crashes, hangs or exits takes nothing
 * else down. One thread. */
#ifndef KVX_CHILD_H
#define KVX_CHILD_H

#include <stddef.h>

enum kvx_child_end { KVX_CHILD_ANSWERED, KVX_CHILD_CRASHED, KVX_CHILD_HUNG, KVX_CHILD_FAILED };

struct kvx_child {
	enum kvx_child_end end;
	int number; /* CRASHED: the signal; FAILED: its exit status, or an errno when it was not
		       started */
	char words[256]; /* the last line of what it wrote to standard error; "" */
};

/* Runs body(fd, arg) in a child that ends with its return value as exit status; what it writes to
 * fd goes to buf, cut to buf_bytes - 1 and terminated. Ends after at most limit_ms. */
void kvx_child_ask(int (*body)(int fd, void *arg), void *arg, unsigned limit_ms, char *buf,
		   size_t buf_bytes, struct kvx_child *out_child);

#endif
