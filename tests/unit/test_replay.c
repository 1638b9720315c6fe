/* The replay's trace reader and its pool with a prefix cache. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "replay.h"
#include "test_end.h"

/* Loads a trace from text; gives the result of the load. */
static int load(const char *text, uint32_t max, struct kvx_trace *out_trace)
{
	char path[] = "/tmp/kvx-trace-XXXXXX";
	int fd = mkstemp(path), rc;

	cr_assert_geq(fd, 0);
	cr_assert_eq(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
	rc = kvx_trace_load(path, max, out_trace);
	unlink(path);
	return rc;
}

Test(trace, good_lines_are_read)
{
	struct kvx_trace trace;

	cr_assert_eq(load("{\"timestamp\": 0, \"input_length\": 513, \"output_length\": 9, "
			  "\"hash_ids\": [4, 5]}\n\n"
			  "{\"hash_ids\": [4], \"input_length\": 512, \"timestamp\": 27.5}",
			  10, &trace),
		     0);
	cr_assert_eq(trace.n_requests, 2);
	cr_assert_eq(trace.requests[0].tokens, 513);
	cr_assert_eq(trace.requests[1].first_hash, 2);
	cr_assert_eq(trace.hashes[2], 4);
	cr_assert_float_eq(trace.requests[1].at_ms, 27.5, 1e-9);
	kvx_trace_fini(&trace);
	KVX_TEST_END();
}

Test(trace, no_more_requests_than_asked_for)
{
	struct kvx_trace trace;
	const char *line = "{\"timestamp\": 0, \"input_length\": 1, \"hash_ids\": [1]}\n";
	char text[512] = "";

	for (unsigned i = 0; i < 4; i++)
		strcat(text, line);
	cr_assert_eq(load(text, 3, &trace), 0);
	cr_assert_eq(trace.n_requests, 3);
	kvx_trace_fini(&trace);
	KVX_TEST_END();
}

Test(trace, what_is_no_request_is_refused)
{
	static const char *const bad[] = {
	    "",
	    "{\"timestamp\": 0",
	    "[]",
	    "{} {}",
	    "{\"timestamp\": 0, \"input_length\": 1, \"hash_ids\": [1]} x",
	    "{\"timestamp\": -1, \"input_length\": 1, \"hash_ids\": [1]}",
	    "{\"timestamp\": \"0\", \"input_length\": 1, \"hash_ids\": [1]}",
	    "{\"timestamp\": 0, \"input_length\": 0, \"hash_ids\": []}",
	    "{\"timestamp\": 0, \"input_length\": 1e30, \"hash_ids\": [1]}",
	    "{\"timestamp\": 0, \"input_length\": 9999999999, \"hash_ids\": [1]}",
	    "{\"timestamp\": 0, \"input_length\": 600, \"hash_ids\": [1]}",
	    "{\"timestamp\": 0, \"input_length\": 5, \"hash_ids\": [1, 2]}",
	    "{\"timestamp\": 0, \"input_length\": 5, \"hash_ids\": [\"1\"]}",
	    "{\"timestamp\": 0, \"input_length\": 5, \"hash_ids\": [-1]}",
	    "{\"timestamp\": 0, \"input_length\": 5}",
	    "{\"timestamp\": 0, \"input_length\": 5, \"hash_ids\": [1], \"output_length\": \"x\"}",
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		struct kvx_trace trace;

		cr_assert_lt(load(bad[i], 10, &trace), 0, "accepted: %s", bad[i]);
	}
	KVX_TEST_END();
}

Test(pool, cached_entries_are_found_and_the_oldest_goes_first)
{
	struct kvx_pool pool;
	struct kvx_entry *a, *b, *c;
	bool is_new;

	kvx_pool_init(&pool, 10, 1);
	a = kvx_pool_take(&pool, 1, 4, &is_new);
	cr_assert(is_new);
	b = kvx_pool_take(&pool, 2, 4, &is_new);
	a->ready = b->ready = true;
	kvx_pool_release(&pool, a, true);
	kvx_pool_release(&pool, b, true);
	cr_assert_eq(kvx_pool_take(&pool, 1, 4, &is_new), a, "still there");
	cr_assert_not(is_new);
	kvx_pool_release(&pool, a, true);
	c = kvx_pool_take(&pool, 3, 5, &is_new);
	cr_assert_not_null(c);
	cr_assert_eq(kvx_pool_take(&pool, 1, 4, &is_new), a);
	cr_assert_not(is_new, "2 was older and went");
	cr_assert_null(kvx_pool_take(&pool, 2, 4, &is_new), "all room is pinned");
	kvx_pool_fini(&pool);
	KVX_TEST_END();
}

Test(pool, blocks_are_never_in_two_entries)
{
	struct kvx_pool pool;
	struct kvx_random random = {.state = 8};
	struct kvx_entry *held[6] = {0};

	kvx_pool_init(&pool, 40, 2);
	for (unsigned round = 0; round < 5000; round++) {
		unsigned i = (unsigned)kvx_random_below(&random, 6);
		uint8_t used[40] = {0};
		struct kvx_entry *entry;
		bool is_new;

		if (held[i]) {
			held[i]->ready = kvx_random_below(&random, 4) > 0;
			kvx_pool_release(&pool, held[i], kvx_random_below(&random, 4) > 0);
			held[i] = NULL;
		} else {
			uint64_t key = 1 + kvx_random_below(&random, 20);

			held[i] = kvx_pool_take(&pool, key, (uint32_t)(1 + key % 9), &is_new);
		}
		for (uint32_t k = 0; k < pool.n_free; k++)
			used[pool.free_blocks[k]]++;
		for (entry = pool.entries; entry; entry = entry->hh.next)
			for (uint32_t k = 0; k < entry->n_blocks; k++)
				used[entry->blocks[k]]++;
		for (unsigned k = 0; k < 40; k++)
			cr_assert_eq(used[k], 1, "round %u: block %u is in %u places", round, k,
				     used[k]);
	}
	kvx_pool_fini(&pool);
	KVX_TEST_END();
}
