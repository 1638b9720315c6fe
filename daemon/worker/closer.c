/* The thread that closes strangers' file descriptors: first in, first out, one at a time. The loop
 * gives and never waits; the thread touches nothing but what it was given. */
#include "worker/closer.h"

#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/log.h"
#include "base/queue.h"
#include "base/thread.h"
#include "worker/worker_priv.h"

#define CLOSE_WAIT_S  1
#define DISCARD_READS 256 /* of 4 KiB: more than a socket buffer holds */

struct closing_fd {
	struct kvx_queue_node node; /* first */
	int fd;
	bool is_conn;
	struct kvx_closer_tab *tab; /* a reference; NULL: nobody counts it */
};

struct kvx_closer_tab {
	_Atomic unsigned n_refs;
	_Atomic unsigned n_fds;
};

struct kvx_closer {
	struct kvx_queue *todo;
	pthread_t thread;
	sem_t done;          /* everything is closed */
	_Atomic bool parted; /* loop and thread need each other no more; who comes second frees */
};

static void closer_free(struct kvx_closer *closer)
{
	kvx_queue_destroy(closer->todo);
	sem_destroy(&closer->done);
	free(closer);
}

struct kvx_closer_tab *kvx_closer_tab_create(void)
{
	struct kvx_closer_tab *tab = calloc(1, sizeof(*tab));
	if (tab != NULL)
		atomic_init(&tab->n_refs, 1);
	return tab;
}

void kvx_closer_tab_unref(struct kvx_closer_tab *tab)
{
	if (tab != NULL && atomic_fetch_sub(&tab->n_refs, 1) == 1)
		free(tab);
}

unsigned kvx_closer_tab_count(const struct kvx_closer_tab *tab)
{
	return atomic_load(&tab->n_fds);
}

static void tab_add(struct kvx_closer_tab *tab)
{
	if (tab == NULL)
		return;
	atomic_fetch_add(&tab->n_refs, 1);
	atomic_fetch_add(&tab->n_fds, 1);
}

static void tab_take(struct kvx_closer_tab *tab)
{
	if (tab == NULL)
		return;
	atomic_fetch_sub(&tab->n_fds, 1);
	kvx_closer_tab_unref(tab);
}

static void conn_discard_input(int fd)
{
	char buf[4096];
	for (unsigned i = 0; i < DISCARD_READS; i++)
		if (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) <= 0)
			break;
}

static void *closer_main(void *arg)
{
	static const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
	struct kvx_closer *closer = arg;
	struct kvx_queue_node *node;
	while ((node = kvx_queue_pop_wait(closer->todo)) != NULL) {
		struct closing_fd *c = (struct closing_fd *)(void *)node;
		if (c->is_conn)
			conn_discard_input(c->fd);
		/* A socket of a client's making may be told to linger for as long as it likes. */
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(c->fd);
		tab_take(c->tab);
		free(c);
	}
	sem_post(&closer->done);
	if (atomic_exchange(&closer->parted, true))
		closer_free(closer);
	return NULL;
}

int kvx_closer_open(struct kvx_closer **out_closer)
{
	struct kvx_closer *closer = calloc(1, sizeof(*closer));
	if (closer == NULL)
		return -ENOMEM;
	sem_init(&closer->done, 0, 0);
	int err = kvx_queue_create(&closer->todo);
	if (err < 0)
		goto err_free;
	err = kvx_thread_start(&closer->thread, "kvx-close", closer_main, closer);
	if (err < 0)
		goto err_queue;
	*out_closer = closer;
	return 0;

err_queue:
	kvx_queue_destroy(closer->todo);
err_free:
	sem_destroy(&closer->done);
	free(closer);
	return err;
}

static bool closer_wait(struct kvx_closer *closer)
{
	struct timespec until;
	int rc;
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += CLOSE_WAIT_S;
	do
		rc = sem_timedwait(&closer->done, &until);
	while (rc < 0 && errno == EINTR);
	return rc == 0;
}

void kvx_closer_close(struct kvx_closer *closer)
{
	if (closer == NULL)
		return;
	pthread_t thread = closer->thread; /* the closer may be gone before it is detached */
	kvx_queue_close(closer->todo);
	if (!closer_wait(closer) && !atomic_exchange(&closer->parted, true)) {
		kvx_warn("closer: a client's file descriptor cannot be closed, leaving it");
		pthread_detach(thread);
		return;
	}
	pthread_join(thread, NULL);
	closer_free(closer);
}

static void closer_take(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd, bool is_conn)
{
	struct closing_fd *c = malloc(sizeof(*c));
	if (c == NULL) {
		close(fd);
		return;
	}
	*c = (struct closing_fd){.fd = fd, .is_conn = is_conn, .tab = tab};
	tab_add(tab);
	kvx_queue_push(closer->todo, &c->node);
}

void kvx_closer_give(struct kvx_closer *closer, int fd)
{
	closer_take(closer, NULL, fd, false);
}

void kvx_closer_give_on(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd)
{
	closer_take(closer, tab, fd, false);
}

void kvx_closer_give_conn(struct kvx_closer *closer, int fd)
{
	shutdown(fd, SHUT_RDWR);
	closer_take(closer, NULL, fd, true);
}
