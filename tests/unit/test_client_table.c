/* The table of outstanding transfers against a plain array. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdlib.h>

#include "fault_alloc.h"
#include "libclient/client_priv.h"
#include "test_end.h"

#define MAX_IDS 3000u

static void add(struct kvx_cl_table *table, uint64_t id)
{
	struct kvx_cl_xfer xfer = {.id = id, .tag = id * 3};

	cr_assert_eq(kvx_cl_table_reserve(table), 0);
	kvx_cl_table_add(table, &xfer);
}

Test(client_table, finds_what_is_in_and_nothing_else)
{
	struct kvx_cl_table table = {0};
	bool *in = calloc(MAX_IDS, sizeof(*in));
	struct kvx_cl_xfer out;
	uint32_t n = 0, next = 1;

	cr_assert_not_null(in);
	srand(1);
	while (next < MAX_IDS) {
		uint32_t id = 1 + (uint32_t)rand() % MAX_IDS;

		if (rand() % 3 != 0 || id >= next) {
			add(&table, next);
			in[next++] = true;
			n++;
		} else {
			cr_assert_eq(kvx_cl_table_take(&table, id, &out), in[id]);
			if (in[id]) {
				cr_assert_eq(out.id, id);
				cr_assert_eq(out.tag, id * 3);
				n--;
			}
			in[id] = false;
		}
		cr_assert_eq(table.n, n);
	}
	for (uint32_t id = 0; id < MAX_IDS + 10; id++) {
		struct kvx_cl_xfer *found = kvx_cl_table_find(&table, id);

		cr_assert_eq(found != NULL, id < MAX_IDS && in[id], "id %u", id);
		if (found != NULL)
			cr_assert_eq(found->tag, (uint64_t)id * 3);
	}
	kvx_cl_table_fini(&table);
	free(in);
	KVX_TEST_END();
}

Test(client_table, lines_up_in_order_of_ids)
{
	struct kvx_cl_table table = {0};
	struct kvx_cl_xfer out;

	for (uint64_t id = 1; id <= 1000; id++)
		add(&table, id * 1000003);
	for (uint64_t id = 1; id <= 1000; id += 2)
		cr_assert(kvx_cl_table_take(&table, id * 1000003, &out));
	kvx_cl_table_line_up(&table);
	cr_assert_eq(table.n, 500);
	for (uint32_t i = 0; i < table.n; i++)
		cr_assert_eq(table.slots[i].id, (uint64_t)(2 * i + 2) * 1000003);
	kvx_cl_table_clear(&table);
	cr_assert_eq(table.n, 0);
	cr_assert_null(kvx_cl_table_find(&table, 2 * 1000003));
	add(&table, 5);
	cr_assert_not_null(kvx_cl_table_find(&table, 5));
	kvx_cl_table_fini(&table);
	KVX_TEST_END();
}

Test(client_table, steady_state_allocates_nothing)
{
	struct kvx_cl_table table = {0};
	struct kvx_cl_xfer out;

	for (uint64_t id = 1; id <= 100; id++)
		add(&table, id);
	fault_alloc_arm(1);
	for (uint64_t id = 101; id <= 100000; id++) {
		cr_assert(kvx_cl_table_take(&table, id - 100, &out));
		add(&table, id);
	}
	cr_assert_not(fault_alloc_disarm());
	cr_assert_eq(table.n, 100);
	kvx_cl_table_fini(&table);
	KVX_TEST_END();
}

Test(client_table, out_of_memory_keeps_what_is_in)
{
	struct kvx_cl_table table = {0};

	for (uint64_t id = 1; id <= 32; id++)
		add(&table, id);
	fault_alloc_arm(1);
	cr_assert_eq(kvx_cl_table_reserve(&table), -ENOMEM);
	cr_assert(fault_alloc_disarm());
	for (uint64_t id = 1; id <= 32; id++)
		cr_assert_not_null(kvx_cl_table_find(&table, id));
	kvx_cl_table_fini(&table);
	KVX_TEST_END();
}
