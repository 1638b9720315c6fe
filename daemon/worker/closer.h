/* A thread that closes file descriptors of strangers. close(2) takes as long as they like: a TCP
 * socket lingers until its other end has read everything, a file system in user space is asked to
 * flush; and with a Unix socket go the descriptors in messages that nobody has read. The loop must
 * not wait for any of that. */
#ifndef KVX_CLOSER_H
#define KVX_CLOSER_H

#include "base/roles.h"

struct kvx_closer;

/* How many fds of one client wait to be closed: who gives them bounds that. Lives until its last
 * user, be it the closer, is done with it. */
struct kvx_closer_tab;
struct kvx_closer_tab *kvx_closer_tab_create(void);    /* NULL: no memory */
void kvx_closer_tab_unref(struct kvx_closer_tab *tab); /* NULL is fine */
unsigned kvx_closer_tab_count(const struct kvx_closer_tab *tab);

int kvx_closer_open(struct kvx_closer **out_closer) KVX_ON_LOOP;
/* Closes what it was given before, but waits a second at most: what blocks longer is left to the
 * end of the process. NULL is fine. */
void kvx_closer_close(struct kvx_closer *closer) KVX_ON_LOOP;
/* Takes fd. Never fails; without memory it closes fd itself, now. */
void kvx_closer_give(struct kvx_closer *closer, int fd) KVX_ON_LOOP;
/* The same, counted. tab NULL: not counted. */
void kvx_closer_give_on(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd) KVX_ON_LOOP;
/* The same for a connected Unix socket. What it has received is read away first: closing it with
 * unread data makes the other end see a reset instead of the end of the stream, which it sees at
 * once. */
void kvx_closer_give_conn(struct kvx_closer *closer, int fd) KVX_ON_LOOP;

#endif
