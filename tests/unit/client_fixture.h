/* What tests of the client library begin with: a client of a fake daemon, a region, an import, and
 * a record of the events delivered. */
#ifndef KVX_CLIENT_FIXTURE_H
#define KVX_CLIENT_FIXTURE_H

#include <criterion/criterion.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "fake_daemon.h"
#include "kvxfer/client.h"

#define SEEN_MAX 512

struct seen_event {
	int type, status, scope, op;
	uint64_t transfer, tag, bytes;
	char text[128], transport[16], payload[32];
	size_t payload_bytes;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
};

struct seen {
	unsigned n;
	struct seen_event events[SEEN_MAX];
};

static inline void seen_event(struct kvxfer_client *client, const struct kvxfer_event *event,
			      void *arg)
{
	struct seen *seen = arg;
	struct seen_event *e = &seen->events[seen->n];

	cr_assert_lt(seen->n, SEEN_MAX);
	cr_assert_not_null(event->text);
	cr_assert_not_null(event->transport);
	seen->n++;
	*e = (struct seen_event){.type = event->type,
				 .status = event->status,
				 .scope = event->scope,
				 .op = event->op,
				 .transfer = event->transfer,
				 .tag = event->tag,
				 .bytes = event->bytes,
				 .payload_bytes = event->payload_bytes,
				 .region = event->region,
				 .import_ = event->import_};
	strncpy(e->text, event->text, sizeof(e->text) - 1);
	strncpy(e->transport, event->transport, sizeof(e->transport) - 1);
	if (event->payload != NULL && event->payload_bytes < sizeof(e->payload))
		memcpy(e->payload, event->payload, event->payload_bytes);
}

static inline int open_client(const struct fake_daemon *d, int timeout_ms,
			      struct kvxfer_client **out_client)
{
	struct kvxfer_client_options options = {.struct_bytes = sizeof(options),
						.socket_path = d->path,
						.name = "test",
						.timeout_ms = timeout_ms};

	return kvxfer_client_open(&options, out_client);
}

static inline struct kvxfer_client *open_or_fail(const struct fake_daemon *d, int timeout_ms)
{
	struct kvxfer_client *client;

	cr_assert_eq(open_client(d, timeout_ms, &client), 0, "%s", kvxfer_open_error());
	return client;
}

struct pair {
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
};

/* A started daemon's client with 1 MiB of region and an import. */
static inline struct pair open_pair(const struct fake_daemon *d, int timeout_ms)
{
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.name = "kv",
						.access = KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE};
	struct pair pair;

	pair.client = open_or_fail(d, timeout_ms);
	cr_assert_eq(kvxfer_region_alloc(pair.client, 1 << 20, &options, &pair.region), 0, "%s",
		     kvxfer_client_error(pair.client));
	cr_assert_eq(kvxfer_import_open(pair.client, "x", 1, NULL, &pair.import_), 0, "%s",
		     kvxfer_client_error(pair.client));
	return pair;
}

/* A daemon that answers by the hook (NULL: plainly), and its client. */
static inline struct pair start_pair(struct fake_daemon *d, fake_hook hook, void *arg,
				     int timeout_ms)
{
	fake_daemon_init(d);
	d->hook = hook;
	d->arg = arg;
	fake_daemon_start(d);
	return open_pair(d, timeout_ms);
}

static inline void stop_pair(struct fake_daemon *d, const struct pair *pair)
{
	kvxfer_client_close(pair->client);
	fake_daemon_stop(d);
}

/* The same with a client that has nothing. */
static inline struct kvxfer_client *start_client(struct fake_daemon *d, fake_hook hook, void *arg,
						 int timeout_ms)
{
	fake_daemon_init(d);
	d->hook = hook;
	d->arg = arg;
	fake_daemon_start(d);
	return open_or_fail(d, timeout_ms);
}

static inline void stop_client(struct fake_daemon *d, struct kvxfer_client *client)
{
	kvxfer_client_close(client);
	fake_daemon_stop(d);
}

/* One op of 4 KiB. */
static inline int submit_one(const struct pair *pair, uint64_t tag, uint64_t *out_transfer)
{
	const uint64_t zero = 0;
	struct kvxfer_ops ops = {
	    .n_ops = 1, .local_offsets = &zero, .remote_offsets = &zero, .len = 4096};
	struct kvxfer_transfer transfer = {.struct_bytes = sizeof(transfer),
					   .op = KVXFER_WRITE,
					   .region = pair->region,
					   .import_ = pair->import_,
					   .ops = &ops,
					   .tag = tag};

	return kvxfer_transfer_submit(pair->client, &transfer, out_transfer);
}

/* Waits until n events were seen in all. */
static inline void wait_events(struct kvxfer_client *client, struct seen *seen, unsigned n)
{
	while (seen->n < n)
		cr_assert_gt(kvxfer_client_wait(client, 5000, seen_event, seen), 0,
			     "%u of %u events came: %s", seen->n, n, kvxfer_client_error(client));
}

/* What the loss of the daemon is told as: the end of each transfer (the i-th has the tag 100 + i),
 * and the loss. */
static inline void assert_loss(const struct seen *seen, unsigned n_transfers, int status)
{
	cr_assert_eq(seen->n, n_transfers + 1);
	for (unsigned i = 0; i < n_transfers; i++) {
		cr_assert_eq(seen->events[i].type, KVXFER_EVENT_TERMINAL);
		cr_assert_eq(seen->events[i].status, KVXFER_DAEMON_LOST);
		cr_assert_eq(seen->events[i].scope, KVXFER_SCOPE_DAEMON);
		cr_assert_eq(seen->events[i].tag, 100 + i);
		cr_assert_eq(seen->events[i].op, KVXFER_WRITE);
		cr_assert_eq(seen->events[i].bytes, 0);
		if (i > 0)
			cr_assert_gt(seen->events[i].transfer, seen->events[i - 1].transfer);
	}
	cr_assert_eq(seen->events[n_transfers].type, KVXFER_EVENT_DAEMON_LOST);
	cr_assert_eq(seen->events[n_transfers].status, status);
	cr_assert_neq(seen->events[n_transfers].text[0], '\0');
}

static inline bool is_readable(int fd, int timeout_ms)
{
	struct pollfd pfd = {.fd = fd, .events = POLLIN};

	return poll(&pfd, 1, timeout_ms) == 1;
}

#endif
