/* Clients that misbehave: bad frames, other versions, silence, thousands of them, events never
 * read. The others go on. */
#include <criterion/criterion.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"
#include "test_raw.h"

#define WAIT_MS 10000

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void hello(struct test_raw *raw, uint32_t min, uint32_t max)
{
	Kvxp__Hello msg = KVXP__HELLO__INIT;

	msg.version_min = min;
	msg.version_max = max;
	test_raw_send(raw, KVXP__FRAME_TYPE__FRAME_HELLO, &msg.base, NULL, 0);
}

Test(clients, hello_versions_overlap_or_are_refused)
{
	struct test_node node;
	struct test_raw raw;
	uint8_t body[4096];
	char text[256];
	size_t len;

	test_node_start(&node, NULL);
	test_raw_connect(&raw, &node);
	hello(&raw, 1, 7);
	cr_assert_eq(test_raw_recv(&raw, 5000, body, sizeof(body), &len),
		     KVXP__FRAME_TYPE__FRAME_HELLO_REPLY);
	Kvxp__HelloReply *reply = kvxp__hello_reply__unpack(NULL, len, body);
	cr_assert_eq(reply->version, 1);
	kvxp__hello_reply__free_unpacked(reply, NULL);
	test_raw_close(&raw);
	test_raw_connect(&raw, &node);
	hello(&raw, 2, 7);
	cr_assert_eq(test_raw_error(&raw, text, sizeof(text)), KVXFER_VERSION);
	cr_assert(strstr(text, "2") != NULL && strstr(text, "7") != NULL &&
		      strstr(text, "1") != NULL,
		  "%s", text);
	test_raw_close(&raw);
	test_node_fini(&node);
}

Test(clients, bad_frames_end_their_connection_only)
{
	struct test_node node;
	struct test_node_base before, after;
	struct kvxfer_client *good;
	struct test_raw raw;
	char text[256];
	static const uint8_t garbage[64] = "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
	uint8_t huge[8] = {0xff, 0xff, 0xff, 0x7f, 20, 0, 0, 0};
	uint8_t bad_body[8 + 5] = {5, 0, 0, 0, 20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff};
	uint8_t no_fds[8] = {0, 0, 0, 0, 10, 0, 9, 0};

	test_node_start(&node, NULL);
	test_node_measure(&node, &before);
	good = test_node_client(&node, "good");
	test_raw_connect(&raw, &node);
	test_raw_send_bytes(&raw, garbage, sizeof(garbage));
	cr_assert(test_raw_closed(&raw, 5000));
	test_raw_close(&raw);
	struct {
		const uint8_t *bytes;
		size_t len;
	} cases[] = {{huge, 8}, {bad_body, 13}, {no_fds, 8}};
	for (int i = 0; i < 3; i++) {
		test_raw_open(&raw, &node);
		test_raw_send_bytes(&raw, cases[i].bytes, cases[i].len);
		test_raw_error(&raw, text, sizeof(text));
		cr_expect_neq(text[0], '\0', "case %d gives no reason", i);
		test_raw_close(&raw);
	}
	/* A first frame that is no HELLO. */
	test_raw_connect(&raw, &node);
	test_raw_send(&raw, KVXP__FRAME_TYPE__FRAME_QUERY, NULL, NULL, 0);
	test_raw_error(&raw, text, sizeof(text));
	test_raw_close(&raw);
	char *json = NULL;
	cr_assert_eq(kvxfer_client_query(good, "status", NULL, &json), 0);
	free(json);
	kvxfer_client_close(good);
	test_node_measure_after(&node, &before, &after);
	cr_assert_eq(after.fds, before.fds);
	test_node_fini(&node);
}

/* Transfer numbers must increase: a client that uses one twice is lying. */
Test(clients, transfer_number_used_twice_is_a_protocol_error)
{
	struct test_node node;
	struct test_raw raw;
	char text[256];

	test_node_start(&node, NULL);
	test_raw_open(&raw, &node);
	Kvxp__XferSubmit submit = KVXP__XFER_SUBMIT__INIT;
	submit.xfer = 5;
	submit.op = KVXP__OP__OP_READ;
	test_raw_send(&raw, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &submit.base, NULL, 0);
	test_raw_send(&raw, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, &submit.base, NULL, 0);
	cr_assert_eq(test_raw_error(&raw, text, sizeof(text)), KVXFER_PROTOCOL, "%s", text);
	test_raw_close(&raw);
	test_node_fini(&node);
}

/* 10,000 connections: up to the limit they are served, beyond it refused by name; others work all
 * the while. */
Test(clients, ten_thousand_connections, .timeout = 240)
{
	enum { N = 10000, LIMIT = 500 };
	const char *sets[] = {"limits.clients=500", NULL};
	static struct pair p;
	static struct pollfd fds[N];
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct test_node_base before, after;
	struct rlimit lim;
	unsigned refused = 0;
	long t0;

	getrlimit(RLIMIT_NOFILE, &lim);
	if (lim.rlim_max < N + 100)
		cr_skip_test("RLIMIT_NOFILE is %llu", (unsigned long long)lim.rlim_max);
	lim.rlim_cur = lim.rlim_max;
	setrlimit(RLIMIT_NOFILE, &lim);
	pair_open(&p, false, sets, 1, 4, 4096);
	test_node_measure(&p.node[0], &before);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", p.node[0].socket);
	t0 = now_ms();
	for (int i = 0; i < N; i++) {
		fds[i].fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
		cr_assert_geq(fds[i].fd, 0, "%s", strerror(errno));
		fds[i].events = POLLIN;
		cr_assert_eq(connect(fds[i].fd, (struct sockaddr *)&addr, sizeof(addr)), 0, "%s",
			     strerror(errno));
		if (i % 1000 == 999) {
			uint32_t block = 1;
			struct kvxfer_blocks blocks = {.n_planes = 1,
						       .n_blocks = 1,
						       .local_blocks = &block,
						       .remote_blocks = &block};
			struct kvxfer_transfer t = pair_write(&p);
			uint64_t id = 0;

			t.blocks = &blocks;
			cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
			cr_assert_eq(
			    test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS).status,
			    KVXFER_OK);
		}
	}
	while (refused < N - LIMIT && now_ms() - t0 < 60000) {
		refused = 0;
		poll(fds, N, 100);
		for (int i = 0; i < N; i++) {
			char byte;

			refused += (fds[i].revents & POLLIN) &&
				   recv(fds[i].fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) >= 0;
		}
	}
	fprintf(stderr, "# %u of %d refused after %ld ms\n", refused, N, now_ms() - t0);
	cr_assert_geq(refused, N - LIMIT);
	for (int i = 0; i < N; i++)
		close(fds[i].fd);
	test_node_measure_after(&p.node[0], &before, &after);
	cr_assert_eq(after.fds, before.fds, "fds: %ld before, %ld after", before.fds, after.fds);
	pair_close(&p);
}

/* A client that never reads its events is cut off when they exceed the limit; the writer is not
 * held up. */
Test(clients, slow_reader_is_cut_off_and_hurts_nobody, .timeout = 240)
{
	const char *sets[] = {"limits.events_bytes=64K", NULL};
	static struct pair p;
	uint32_t block = 1;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	static char payload[4000];
	unsigned ended = 0;

	pair_open(&p, false, sets, 1, 4, 4096);
	for (int i = 0; i < 2000; i++) {
		struct kvxfer_transfer t = pair_write(&p);
		struct test_event ev;
		uint64_t id = 0;

		t.blocks = &blocks;
		t.payload = payload;
		t.payload_bytes = sizeof(payload);
		cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
		ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
		ended++;
		if (ev.status != KVXFER_OK)
			break;
	}
	cr_assert_lt(ended, 2000, "the reader was never cut off");
	cr_assert_eq(test_node_wait_number(&p.node[0], "status", "clients", 2, WAIT_MS), 2);
	test_wait(&p.prefill, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
	kvxfer_client_close(p.decode.client);
	test_engine_close(&p.prefill);
	test_node_fini(&p.node[0]);
}

/* Counted page by page: VmRSS in /proc/PID/status may be off by what each CPU has not added yet. */
static long rss_kib(const struct test_node *node)
{
	char path[64], line[256];
	long rss = -1;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/smaps_rollup", (int)node->pid);
	f = fopen(path, "re");
	cr_assert_neq(f, NULL);
	while (fgets(line, sizeof(line), f) != NULL && sscanf(line, "Rss: %ld kB", &rss) != 1)
		;
	fclose(f);
	cr_assert_geq(rss, 0, "%s has no Rss", path);
	return rss;
}

Test(clients, hundred_idle_clients_fit_into_40_mib)
{
	enum { N = 100 };
	struct kvxfer_client *clients[N];
	struct test_node node;
	long rss;

	test_node_start(&node, NULL);
	for (int i = 0; i < N; i++)
		clients[i] = test_node_client(&node, "idle");
	rss = rss_kib(&node);
	fprintf(stderr, "# RSS %ld KiB with %d clients\n", rss, N);
	if (getenv("KVX_SANITIZED") == NULL)
		cr_assert_lt(rss, 40 * 1024);
	for (int i = 0; i < N; i++)
		kvxfer_client_close(clients[i]);
	test_node_fini(&node);
}

/* Nothing grows with the number of transfers. */
Test(clients, nothing_grows_over_many_transfers, .timeout = 280)
{
	enum { WARM = 20000, N = 200000, DEPTH = 64 };
	static struct pair p;
	uint32_t block = 1;
	struct kvxfer_blocks blocks = {
	    .n_planes = 1, .n_blocks = 1, .local_blocks = &block, .remote_blocks = &block};
	const char *asked = getenv("KVX_TRANSFERS"); /* for a longer run */
	unsigned total = asked != NULL                     ? (unsigned)atoi(asked)
			 : getenv("KVX_SANITIZED") != NULL ? 2 * WARM
							   : N;
	unsigned submitted = 0, ended = 0;
	long before = 0;

	pair_open(&p, false, NULL, 1, 4, 256);
	while (ended < total) {
		while (submitted < total && submitted - ended < DEPTH) {
			struct kvxfer_transfer t = pair_write(&p);

			t.blocks = &blocks;
			cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, NULL), 0);
			submitted++;
		}
		cr_assert_eq(test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, 0, WAIT_MS).status,
			     KVXFER_OK);
		ended++;
		if (ended % 64 == 0) {
			struct test_event ev;

			while (test_wait_maybe(&p.decode, KVXFER_EVENT_ARRIVAL, 0, 0, &ev))
				;
		}
		if (ended == WARM)
			before = rss_kib(&p.node[0]);
	}
	long after = rss_kib(&p.node[0]);
	fprintf(stderr, "# RSS %ld KiB after %d transfers, %ld after %u\n", before, WARM, after,
		total);
	if (getenv("KVX_SANITIZED") == NULL)
		cr_assert_leq(after, before + 512);
	pair_close(&p);
}
