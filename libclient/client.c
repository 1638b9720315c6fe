/* A client from open to close: options, the guard against use after fork(), errors in words.
 * The user's thread; owns everything that hangs on struct kvxfer_client. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <utlist.h>

#define FORK_COOKIE 0x6b767866u
/* Larger than any version's struct: a wild struct_bytes is not followed into the caller's memory.
 */
#define OPTIONS_MAX_BYTES 4096u

static _Thread_local char open_error[KVX_CL_ERROR_BYTES];

const char *kvxfer_open_error(void)
{
	return open_error;
}

const char *kvxfer_client_error(const struct kvxfer_client *client)
{
	return client != NULL ? client->error : "";
}

int kvxfer_client_fd(const struct kvxfer_client *client)
{
	return client != NULL ? client->epoll : -EINVAL;
}

void kvxfer_client_limits(const struct kvxfer_client *client, struct kvxfer_limits *out_limits)
{
	if (client != NULL && out_limits != NULL)
		*out_limits = client->limits;
}

int kvx_cl_fail(struct kvxfer_client *client, int neg_errno, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(client->error, sizeof(client->error), fmt, args);
	va_end(args);
	return neg_errno;
}

uint64_t kvx_cl_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * UINT64_C(1000000000) + (uint64_t)ts.tv_nsec;
}

uint64_t kvx_cl_deadline_ns(const struct kvxfer_client *client)
{
	return kvx_cl_now_ns() + (uint64_t)client->timeout_ms * KVX_CL_MSEC;
}

/* ---- fork */

/* A page that reads as zero in a child. Without one (before Linux 4.14) the pid is compared. */
static void fork_guard_init(struct kvxfer_client *client)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	void *map;

	client->pid = getpid();
	map = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (map == MAP_FAILED)
		return;
	if (madvise(map, page, MADV_WIPEONFORK) != 0) {
		munmap(map, page);
		return;
	}
	client->fork_cookie = map;
	*client->fork_cookie = FORK_COOKIE;
}

static void fork_guard_fini(struct kvxfer_client *client)
{
	if (client->fork_cookie != NULL)
		munmap(client->fork_cookie, (size_t)sysconf(_SC_PAGESIZE));
}

bool kvx_cl_forked(const struct kvxfer_client *client)
{
	if (client->fork_cookie != NULL)
		return *(volatile uint32_t *)client->fork_cookie != FORK_COOKIE;
	return getpid() != client->pid;
}

int kvx_cl_enter_data(struct kvxfer_client *client)
{
	if (client == NULL)
		return -EINVAL;
	if (kvx_cl_forked(client))
		return kvx_cl_fail(client, -EOWNERDEAD,
				   "this client belongs to the process that opened it, not to its "
				   "forked child: open one here");
	if (client->state != KVX_CL_UP)
		return kvx_cl_fail(client, -ECONNRESET,
				   "the daemon is gone (%s): dispatch the events of its loss, then "
				   "call kvxfer_client_reconnect()",
				   client->lost_text);
	return 0;
}

int kvx_cl_enter_setup(struct kvxfer_client *client)
{
	if (client != NULL && client->in_callback)
		return kvx_cl_fail(client, -EBUSY,
				   "a call that waits for the daemon cannot be made from inside an "
				   "event callback: make it after dispatch has returned");
	return kvx_cl_enter_data(client);
}

/* ---- options */

int kvx_cl_copy_options(void *out, size_t out_bytes, const void *options, struct kvx_why *why)
{
	const uint8_t *bytes = options;
	size_t n;

	memcpy(&n, options, sizeof(n));
	if (n < sizeof(n) || n > OPTIONS_MAX_BYTES)
		return kvx_why(why, -EINVAL, "struct_bytes is %zu: set it to the struct's sizeof",
			       n);
	for (size_t i = out_bytes; i < n; i++)
		if (bytes[i] != 0)
			return kvx_why(why, -EINVAL,
				       "an option that this library (%s) does not know is set",
				       KVX_VERSION);
	memset(out, 0, out_bytes);
	memcpy(out, options, n < out_bytes ? n : out_bytes);
	return 0;
}

int kvx_cl_copy_name(char out[KVX_CL_NAME_BYTES], const char *name)
{
	size_t len = name != NULL ? strnlen(name, KVX_CL_NAME_BYTES) : 0;

	if (len == KVX_CL_NAME_BYTES)
		return -EINVAL;
	if (len > 0)
		memcpy(out, name, len);
	out[len] = '\0';
	return 0;
}

/* The system's socket; the one of a daemon that this user started, where that is the only one. */
static const char *default_socket(char *buf, size_t buf_bytes)
{
	const char *dir = secure_getenv("XDG_RUNTIME_DIR");
	int n;

	if (dir == NULL || dir[0] != '/' || access(KVX_CL_DEFAULT_SOCKET, F_OK) == 0 ||
	    errno != ENOENT)
		return KVX_CL_DEFAULT_SOCKET;
	n = snprintf(buf, buf_bytes, "%s/kvxferd.sock", dir);
	return n > 0 && (size_t)n < buf_bytes && access(buf, F_OK) == 0 ? buf
									: KVX_CL_DEFAULT_SOCKET;
}

static int client_set_options(struct kvxfer_client *client,
			      const struct kvxfer_client_options *options)
{
	struct kvxfer_client_options opts = {0};
	char users[sizeof(client->address.sun_path)];
	const char *path = NULL;
	struct kvx_why why;

	if (options != NULL && kvx_cl_copy_options(&opts, sizeof(opts), options, &why) < 0)
		return kvx_cl_fail(client, -EINVAL, "kvxfer_client_options: %s", why.text);
	if (opts.timeout_ms < 0 || opts.timeout_ms > KVX_CL_MAX_TIMEOUT_MS)
		return kvx_cl_fail(client, -EINVAL, "timeout_ms is %d: must be 0 (default) to %d",
				   opts.timeout_ms, KVX_CL_MAX_TIMEOUT_MS);
	client->timeout_ms = opts.timeout_ms > 0 ? opts.timeout_ms : KVX_CL_DEFAULT_TIMEOUT_MS;
	if (opts.name == NULL)
		snprintf(client->name, sizeof(client->name), "%s", program_invocation_short_name);
	else if (kvx_cl_copy_name(client->name, opts.name) < 0)
		return kvx_cl_fail(client, -EINVAL, "the client's name is longer than 64 bytes");
	path = opts.socket_path;
	if (path == NULL)
		path = secure_getenv("KVXFER_SOCKET");
	if (path == NULL || (opts.socket_path == NULL && path[0] == '\0'))
		path = default_socket(users, sizeof(users));
	return kvx_cl_set_address(client, path);
}

/* ---- open and close */

static int client_init_fds(struct kvxfer_client *client)
{
	client->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (client->epoll < 0)
		return kvx_cl_fail(client, -errno, "epoll_create1: %s", strerror(errno));
	client->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (client->wake < 0)
		return kvx_cl_fail(client, -errno, "eventfd: %s", strerror(errno));
	return kvx_cl_watch(client, EPOLL_CTL_ADD, client->wake, EPOLLIN);
}

/* fenced: nothing lands in the regions any more, so that their memory may be given back. */
static void client_free(struct kvxfer_client *client, bool fenced)
{
	while (client->imports != NULL)
		kvx_cl_import_destroy(client->imports);
	while (client->regions != NULL)
		kvx_cl_region_destroy(client->regions, fenced);
	kvx_cl_close_conn(client);
	kvx_cl_drop_requests(client);
	kvx_cl_drop_kept(client);
	kvx_cl_table_fini(&client->xfers);
	if (client->wake >= 0)
		close(client->wake);
	if (client->epoll >= 0)
		close(client->epoll);
	fork_guard_fini(client);
	free(client);
}

static int client_open(struct kvxfer_client *client, const struct kvxfer_client_options *options)
{
	int err;

	client->sock = client->pidfd = client->timer = client->epoll = client->wake = -1;
	client->state = KVX_CL_LOST;
	fork_guard_init(client);
	err = client_set_options(client, options);
	if (err < 0)
		return err;
	err = client_init_fds(client);
	if (err < 0)
		return err;
	return kvx_cl_connect(client, kvx_cl_deadline_ns(client));
}

int kvxfer_client_open(const struct kvxfer_client_options *options,
		       struct kvxfer_client **out_client)
{
	struct kvxfer_client *client;
	int err;

	open_error[0] = '\0';
	if (out_client == NULL) {
		snprintf(open_error, sizeof(open_error), "out_client is NULL");
		return -EINVAL;
	}
	client = calloc(1, sizeof(*client));
	if (client == NULL) {
		snprintf(open_error, sizeof(open_error), "out of memory");
		return -ENOMEM;
	}
	err = client_open(client, options);
	if (err < 0) {
		snprintf(open_error, sizeof(open_error), "%s", client->error);
		client_free(client, true);
		return err;
	}
	*out_client = client;
	return 0;
}

/* Has the daemon fenced the client's memory, or has its death done so? */
static bool client_goodbye(struct kvxfer_client *client)
{
	client->said_goodbye = client->state == KVX_CL_UP || client->state == KVX_CL_QUIT;
	kvx_cl_quit(client, KVXFER_CANCELLED, "the client was closed");
	return kvx_cl_wait_lost(client, kvx_cl_deadline_ns(client)) == 0;
}

void kvxfer_client_close(struct kvxfer_client *client)
{
	if (client == NULL)
		return;
	if (kvx_cl_forked(client)) {
		client_free(client, true);
		return;
	}
	if (client->in_callback) {
		kvx_cl_fail(client, -EBUSY, "a client cannot be closed inside an event callback");
		return;
	}
	client_free(client, client_goodbye(client));
}

/* ---- reconnect */

static int client_renew(struct kvxfer_client *client)
{
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
	int err;

	DL_FOREACH (client->regions, region) {
		err = kvx_cl_region_announce(region);
		if (err < 0)
			return err;
	}
	DL_FOREACH (client->imports, import_) {
		err = kvx_cl_import_renew(import_);
		if (err < 0)
			return err;
	}
	return 0;
}

int kvxfer_client_reconnect(struct kvxfer_client *client)
{
	uint64_t deadline_ns;
	int err;

	err = kvx_cl_enter_setup(client);
	if (err == 0)
		return kvx_cl_fail(client, -EALREADY, "the daemon is there");
	if (err != -ECONNRESET)
		return err;
	deadline_ns = kvx_cl_deadline_ns(client);
	if (kvx_cl_wait_lost(client, deadline_ns) < 0)
		return kvx_cl_fail(client, -ETIMEDOUT,
				   "the old daemon is not known to be gone yet: its process still "
				   "exists");
	if (client->loss_unread)
		return kvx_cl_fail(client, -EBUSY,
				   "the events of the daemon's loss have not been delivered: "
				   "dispatch them first");
	err = kvx_cl_connect(client, deadline_ns);
	if (err < 0)
		return err;
	err = client_renew(client);
	if (err < 0)
		kvx_cl_undo_connect(client);
	return err;
}
