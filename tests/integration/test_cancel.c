/* Ends that are not success: cancel, deadline, unregister, in the middle of transfers. After the
 * terminal event the destination is the engine's again: canaries written then must stay. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "pair.h"

#define WAIT_MS  10000
#define N_BLOCKS 256

static uint32_t all_blocks[N_BLOCKS];
static const struct kvxfer_blocks everything = {
    .n_planes = 4, .n_blocks = N_BLOCKS, .local_blocks = all_blocks, .remote_blocks = all_blocks};

static void open_big(struct pair *p, bool cross, const char *const *sets)
{
	for (uint32_t i = 0; i < N_BLOCKS; i++)
		all_blocks[i] = (i * 37) % N_BLOCKS;
	pair_open(p, cross, sets, 4, N_BLOCKS, 65536);
}

static void sleep_us(long us)
{
	struct timespec ts = {us / 1000000, us % 1000000 * 1000};

	nanosleep(&ts, NULL);
}

static void cancel_storm(bool cross)
{
	enum { ROUNDS = 150 };
	static struct pair p;
	unsigned cancelled = 0, done = 0;

	open_big(&p, cross, NULL);
	srand(7);
	for (int round = 0; round < ROUNDS; round++) {
		struct kvxfer_transfer t = round & 1 ? pair_write(&p) : pair_read(&p);
		struct test_engine *e = round & 1 ? &p.prefill : &p.decode;
		struct test_event ev;
		uint64_t id = 0;
		int rc;

		t.blocks = &everything;
		t.tag = (uint64_t)round + 1;
		cr_assert_eq(kvxfer_transfer_submit(e->client, &t, &id), 0);
		sleep_us(rand() % 6000);
		rc = kvxfer_transfer_cancel(e->client, id);
		cr_assert(rc == 0 || rc == -ENOENT);
		ev = test_wait(e, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
		cr_assert(ev.status == KVXFER_OK || ev.status == KVXFER_CANCELLED, "%s",
			  kvxfer_status_name(ev.status));
		*(ev.status == KVXFER_OK ? &done : &cancelled) += 1;
		memset(p.decode.data, TEST_CANARY, p.decode.bytes);
		sleep_us(2000);
		for (uint32_t b = 0; b < N_BLOCKS; b++)
			cr_assert(test_block_is_canary(&p.decode, b & 3, b),
				  "late bytes in round %d", round);
		ev = test_wait(e == &p.prefill ? &p.decode : &p.prefill, KVXFER_EVENT_ARRIVAL,
			       t.tag, WAIT_MS);
		cr_assert_eq(test_count(e, KVXFER_EVENT_TERMINAL, id), 0,
			     "a second terminal event");
	}
	fprintf(stderr, "# cancel storm: %u cancelled, %u done before the cancel\n", cancelled,
		done);
	cr_assert_gt(cancelled, 0);
	pair_close(&p);
}

Test(cancel, storm_leaves_no_late_bytes_same_node)
{
	cancel_storm(false);
}

Test(cancel, storm_leaves_no_late_bytes_two_nodes)
{
	cancel_storm(true);
}

static void streaming_deadline(bool cross)
{
	static struct pair p;
	struct kvxfer_transfer t;
	struct test_event ev;
	uint64_t id = 0;

	open_big(&p, cross, NULL);
	t = pair_write(&p);
	t.streaming = 1;
	t.deadline_ms = 200;
	t.tag = 5;
	cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
	cr_assert_eq(kvxfer_transfer_append(p.prefill.client, id, &everything, NULL), 0);
	ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_DEADLINE, "%s", ev.text);
	ev = test_wait(&p.decode, KVXFER_EVENT_ARRIVAL, 5, WAIT_MS);
	cr_assert_eq(ev.status, KVXFER_DEADLINE, "the other engine hears %s",
		     kvxfer_status_name(ev.status));
	pair_close(&p);
}

Test(cancel, unsealed_stream_ends_at_its_deadline_same_node)
{
	streaming_deadline(false);
}

Test(cancel, unsealed_stream_ends_at_its_deadline_two_nodes)
{
	streaming_deadline(true);
}

/* The owner takes its memory back while others write into it: unregister returns, and nothing lands
 * after. */
static void unregister_under_load(bool cross)
{
	static struct pair p;
	struct test_event ev;
	uint64_t ids[16];

	open_big(&p, cross, NULL);
	for (int i = 0; i < 16; i++) {
		struct kvxfer_transfer t = pair_write(&p);

		t.blocks = &everything;
		t.tag = (uint64_t)i + 1;
		cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &ids[i]), 0);
	}
	sleep_us(3000);
	cr_assert_eq(kvxfer_region_unregister(p.decode.region), 0, "%s",
		     kvxfer_client_error(p.decode.client));
	for (int i = 0; i < 16; i++) {
		ev = test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, ids[i], WAIT_MS);
		cr_assert(ev.status == KVXFER_OK || ev.status == KVXFER_REGION_LOST, "%s: %s",
			  kvxfer_status_name(ev.status), ev.text);
	}
	ev = test_wait(&p.prefill, KVXFER_EVENT_IMPORT_LOST, 0, WAIT_MS);
	cr_assert_eq(ev.import_, p.to_decode);
	cr_assert_eq(
	    test_node_wait_number(pair_node(&p, 1), "status", "regions", cross ? 0 : 1, WAIT_MS),
	    cross ? 0 : 1);
	pair_close(&p);
}

Test(cancel, unregister_under_load_same_node)
{
	unregister_under_load(false);
}

Test(cancel, unregister_under_load_two_nodes)
{
	unregister_under_load(true);
}

/* The engine maps the memory itself, so it can watch it after the region is gone. */
static void unregister_fences(bool cross)
{
	enum { ROUNDS = 12 };
	const uint64_t bytes = 4ull * N_BLOCKS * 65536;
	static struct pair p;

	open_big(&p, cross, NULL);
	for (int round = 0; round < ROUNDS; round++) {
		struct kvxfer_region_options opt = {.struct_bytes = sizeof(opt),
						    .access = KVXFER_ACCESS_WRITE};
		uint64_t off = 0;
		struct kvxfer_ops ops = {
		    .n_ops = 1, .local_offsets = &off, .remote_offsets = &off, .len = bytes};
		struct kvxfer_transfer t = pair_write(&p);
		uint8_t desc[KVXFER_DESCRIPTOR_MAX];
		struct kvxfer_region *region;
		struct kvxfer_import *import_;
		int fd = memfd_create("watched", MFD_CLOEXEC | MFD_ALLOW_SEALING);
		uint8_t *map;
		uint64_t id;
		int len;

		cr_assert_eq(ftruncate(fd, (off_t)bytes), 0);
		map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
		cr_assert_neq(map, MAP_FAILED);
		memset(map, TEST_CANARY, bytes);
		cr_assert_eq(kvxfer_region_register(p.decode.client, fd, 0, bytes, &opt, &region),
			     0, "%s", kvxfer_client_error(p.decode.client));
		close(fd);
		len = kvxfer_region_export(region, desc, sizeof(desc));
		cr_assert_eq(
		    kvxfer_import_open(p.prefill.client, desc, (size_t)len, NULL, &import_), 0);
		t.import_ = import_;
		t.ops = &ops;
		cr_assert_eq(kvxfer_transfer_submit(p.prefill.client, &t, &id), 0);
		sleep_us(500 + 700 * round);
		cr_assert_eq(kvxfer_region_unregister(region), 0);
		memset(map, TEST_CANARY, bytes);
		sleep_us(5000);
		cr_assert_eq(map[0], TEST_CANARY, "late bytes");
		cr_assert_eq(memcmp(map, map + 1, bytes - 1), 0, "late bytes");
		test_wait(&p.prefill, KVXFER_EVENT_TERMINAL, id, WAIT_MS);
		munmap(map, bytes);
		cr_assert_eq(kvxfer_import_close(import_), 0);
	}
	pair_close(&p);
}

Test(cancel, after_unregister_nothing_lands_same_node)
{
	unregister_fences(false);
}

Test(cancel, after_unregister_nothing_lands_two_nodes)
{
	unregister_fences(true);
}
