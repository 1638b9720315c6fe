/* Threads that close file descriptors of strangers. close(2) takes as long as they like: a TCP
 * socket lingers until its other end has read everything, a file system in user space is asked to
 * flush; and with a Unix socket go the descriptors in messages that nobody has read. The loop must
 * not wait for any of that, nor one user for what another one sent. */
#ifndef KVX_CLOSER_H
#define KVX_CLOSER_H

#include <stdint.h>
#include <sys/types.h>

#include "base/roles.h"

/* Threads at most. The first is for fds that are counted for nobody; users beyond the others share
 * it too. */
#define KVX_CLOSER_LINES 64u

struct kvx_closer;

/* Whose fds wait for each other, and for nobody else's. */
struct kvx_closer_user {
	uint32_t tenant;
	uid_t uid;
};

/* How many fds of one client wait to be closed: who gives them bounds that. Outlived by the fds on
 * it. Destroyed before the closer. */
struct kvx_closer_tab;
/* NULL: no memory */
struct kvx_closer_tab *kvx_closer_tab_create(struct kvx_closer *closer,
					     const struct kvx_closer_user *user) KVX_ON_LOOP;
void kvx_closer_tab_destroy(struct kvx_closer_tab *tab) KVX_ON_LOOP; /* NULL is fine */
unsigned kvx_closer_tab_count(const struct kvx_closer_tab *tab);
/* Of all clients of a user together, those that are gone included. */
unsigned kvx_closer_user_count(const struct kvx_closer *closer,
			       const struct kvx_closer_user *user) KVX_ON_LOOP;

int kvx_closer_open(struct kvx_closer **out_closer) KVX_ON_LOOP;
/* Closes what it was given before, but waits a second at most: what blocks longer is left to the
 * end of the process. NULL is fine. */
void kvx_closer_close(struct kvx_closer *closer) KVX_ON_LOOP;
/* Takes fd. Never fails; without memory it closes fd itself, now. */
void kvx_closer_give(struct kvx_closer *closer, int fd) KVX_ON_LOOP;
/* The same, counted. tab NULL: not counted. */
void kvx_closer_give_on(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd) KVX_ON_LOOP;
/* The same for a connected Unix socket; its other end sees the end of the stream at once. What it
 * has received is read away first: closing it with unread data would be seen as a reset. Without
 * fds in that nothing can block, and it is closed now: such sockets never add up. Those that carry
 * fds cannot either, for the kernel bounds what a user may have on its way (RLIMIT_NOFILE). */
void kvx_closer_give_conn(struct kvx_closer *closer, struct kvx_closer_tab *tab,
			  int fd) KVX_ON_LOOP;

#endif
