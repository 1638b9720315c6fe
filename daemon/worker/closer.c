/* The threads that close strangers' file descriptors: one for each user, each first in, first out,
 * one at a time. The loop gives and never waits; a thread touches nothing but what it was given. */
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

/* One thread and what waits for it. Freed by who of loop and thread is done last. */
struct closer_line {
	struct kvx_queue *todo;
	pthread_t thread;
	sem_t done;          /* everything is closed */
	_Atomic bool parted; /* loop and thread need each other no more; who comes second frees */
	_Atomic unsigned n_fds; /* that wait, or are being closed */
	/* the loop's */
	struct kvx_closer_user user;
	unsigned n_tabs; /* not yet destroyed */
};

struct closing_fd {
	struct kvx_queue_node node; /* first */
	int fd;
	bool is_conn;
	struct kvx_closer_tab *tab; /* a reference; NULL: nobody counts it */
};

struct kvx_closer_tab {
	struct closer_line *line;
	_Atomic unsigned n_refs;
	_Atomic unsigned n_fds;
};

struct kvx_closer {
	struct closer_line *lines[KVX_CLOSER_LINES]; /* the first one is nobody's and everybody's */
	unsigned n_lines;
};

static void line_free(struct closer_line *line)
{
	kvx_queue_destroy(line->todo);
	sem_destroy(&line->done);
	free(line);
}

static void tab_unref(struct kvx_closer_tab *tab)
{
	if (atomic_fetch_sub(&tab->n_refs, 1) == 1)
		free(tab);
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
	tab_unref(tab);
}

static void conn_discard_input(int fd)
{
	char buf[4096];
	for (unsigned i = 0; i < DISCARD_READS; i++)
		if (recv(fd, buf, sizeof(buf), MSG_DONTWAIT) <= 0)
			break;
}

static void *line_main(void *arg)
{
	static const struct linger at_once = {.l_onoff = 1, .l_linger = 0};
	struct closer_line *line = arg;
	struct kvx_queue_node *node;
	while ((node = kvx_queue_pop_wait(line->todo)) != NULL) {
		struct closing_fd *c = (struct closing_fd *)(void *)node;
		if (c->is_conn)
			conn_discard_input(c->fd);
		/* A socket of a client's making may be told to linger for as long as it likes. */
		setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
		close(c->fd);
		atomic_fetch_sub(&line->n_fds, 1);
		tab_take(c->tab);
		free(c);
	}
	sem_post(&line->done);
	if (atomic_exchange(&line->parted, true))
		line_free(line);
	return NULL;
}

static int line_open(struct closer_line **out_line)
{
	struct closer_line *line = calloc(1, sizeof(*line));
	if (line == NULL)
		return -ENOMEM;
	sem_init(&line->done, 0, 0);
	int err = kvx_queue_create(&line->todo);
	if (err < 0)
		goto err_free;
	err = kvx_thread_start(&line->thread, "kvx-close", line_main, line);
	if (err < 0)
		goto err_queue;
	*out_line = line;
	return 0;

err_queue:
	kvx_queue_destroy(line->todo);
err_free:
	sem_destroy(&line->done);
	free(line);
	return err;
}

static bool line_wait(struct closer_line *line, const struct timespec *until)
{
	int rc;
	do
		rc = sem_timedwait(&line->done, until);
	while (rc < 0 && errno == EINTR);
	return rc == 0;
}

/* false: its thread is left to itself. */
static bool line_close(struct closer_line *line, const struct timespec *until)
{
	pthread_t thread = line->thread; /* the line may be gone before it is detached */
	if (!line_wait(line, until) && !atomic_exchange(&line->parted, true)) {
		pthread_detach(thread);
		return false;
	}
	pthread_join(thread, NULL);
	line_free(line);
	return true;
}

/* ---- users */

static struct closer_line *line_find(const struct kvx_closer *closer,
				     const struct kvx_closer_user *user)
{
	for (unsigned i = 1; i < closer->n_lines; i++)
		if (closer->lines[i]->user.uid == user->uid &&
		    closer->lines[i]->user.tenant == user->tenant)
			return closer->lines[i];
	return NULL;
}

/* That of a user who is gone, or a new one. Without either, everybody's. */
static struct closer_line *line_get(struct kvx_closer *closer, const struct kvx_closer_user *user)
{
	struct closer_line *line = line_find(closer, user);
	for (unsigned i = 1; line == NULL && i < closer->n_lines; i++)
		if (closer->lines[i]->n_tabs == 0 && atomic_load(&closer->lines[i]->n_fds) == 0)
			line = closer->lines[i];
	if (line == NULL && closer->n_lines < KVX_CLOSER_LINES && line_open(&line) == 0)
		closer->lines[closer->n_lines++] = line;
	if (line == NULL)
		return closer->lines[0];
	line->user = *user;
	return line;
}

struct kvx_closer_tab *kvx_closer_tab_create(struct kvx_closer *closer,
					     const struct kvx_closer_user *user)
{
	struct kvx_closer_tab *tab = calloc(1, sizeof(*tab));
	if (tab == NULL)
		return NULL;
	atomic_init(&tab->n_refs, 1);
	tab->line = line_get(closer, user);
	tab->line->n_tabs++;
	return tab;
}

void kvx_closer_tab_destroy(struct kvx_closer_tab *tab)
{
	if (tab == NULL)
		return;
	tab->line->n_tabs--;
	tab_unref(tab);
}

unsigned kvx_closer_tab_count(const struct kvx_closer_tab *tab)
{
	return atomic_load(&tab->n_fds);
}

unsigned kvx_closer_user_count(const struct kvx_closer *closer, const struct kvx_closer_user *user)
{
	struct closer_line *line = line_find(closer, user);
	if (line == NULL && closer->n_lines == KVX_CLOSER_LINES)
		line = closer->lines[0]; /* which it would get */
	return line == NULL ? 0 : atomic_load(&line->n_fds);
}

/* ---- the whole */

int kvx_closer_open(struct kvx_closer **out_closer)
{
	struct kvx_closer *closer = calloc(1, sizeof(*closer));
	if (closer == NULL)
		return -ENOMEM;
	int err = line_open(&closer->lines[0]);
	if (err < 0) {
		free(closer);
		return err;
	}
	closer->n_lines = 1;
	*out_closer = closer;
	return 0;
}

void kvx_closer_close(struct kvx_closer *closer)
{
	struct timespec until;
	unsigned n_left = 0;
	if (closer == NULL)
		return;
	for (unsigned i = 0; i < closer->n_lines; i++)
		kvx_queue_close(closer->lines[i]->todo);
	clock_gettime(CLOCK_REALTIME, &until);
	until.tv_sec += CLOSE_WAIT_S;
	for (unsigned i = 0; i < closer->n_lines; i++)
		n_left += !line_close(closer->lines[i], &until);
	if (n_left > 0)
		kvx_warn("closer: a client's file descriptor cannot be closed, leaving it");
	free(closer);
}

/* tab NULL: not counted for anybody. */
static void closer_take(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd, bool is_conn)
{
	struct closer_line *line = tab != NULL ? tab->line : closer->lines[0];
	struct closing_fd *c = malloc(sizeof(*c));
	if (c == NULL) {
		close(fd);
		return;
	}
	*c = (struct closing_fd){.fd = fd, .is_conn = is_conn, .tab = tab};
	tab_add(tab);
	atomic_fetch_add(&line->n_fds, 1);
	kvx_queue_push(line->todo, &c->node);
}

void kvx_closer_give(struct kvx_closer *closer, int fd)
{
	closer_take(closer, NULL, fd, false);
}

void kvx_closer_give_on(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd)
{
	closer_take(closer, tab, fd, false);
}

/* Reads away what has come, up to the first message with fds: a look shows that there are some, and
 * leaves them where they are. true: nothing is left, and after shutdown() nothing more comes. */
static bool conn_is_empty(int fd)
{
	char buf[4096];
	for (unsigned i = 0; i < DISCARD_READS; i++) {
		struct iovec iov = {.iov_base = buf, .iov_len = sizeof(buf)};
		struct msghdr mh = {.msg_iov = &iov, .msg_iovlen = 1};
		ssize_t n = recvmsg(fd, &mh, MSG_PEEK | MSG_DONTWAIT);
		if (n == 0)
			return true;
		if (n < 0 || (mh.msg_flags & MSG_CTRUNC) != 0)
			return false;
		recv(fd, buf, (size_t)n, MSG_DONTWAIT);
	}
	return false;
}

void kvx_closer_give_conn(struct kvx_closer *closer, struct kvx_closer_tab *tab, int fd)
{
	shutdown(fd, SHUT_RDWR);
	if (conn_is_empty(fd))
		close(fd);
	else
		closer_take(closer, tab, fd, true);
}
