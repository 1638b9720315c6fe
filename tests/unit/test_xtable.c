/* Unfinished transfers by number, against a plain array. */
#include "control/control_priv.h"

#include <criterion/criterion.h>
#include <stdlib.h>

#include "test_end.h"

#define N 5000

Test(xtable, finds_what_was_put_and_not_what_was_taken)
{
	struct kvx_xrec *recs = calloc(N, sizeof(*recs));
	struct kvx_xtable table = {0};
	unsigned i, n = 0;

	srand(7);
	for (i = 0; i < N; i++) {
		recs[i].number = 64ull * i + i % 3; /* grows, with gaps */
		cr_assert_eq(kvx_xtable_put(&table, &recs[i]), 0);
	}
	cr_assert_eq(table.n, N);
	for (i = 0; i < N; i++) {
		if (rand() % 2 == 0)
			continue;
		cr_assert_eq(kvx_xtable_take(&table, recs[i].number), &recs[i]);
		recs[i].import = (struct kvx_import *)&recs[i]; /* marks it as taken */
		n++;
	}
	cr_assert_eq(table.n, N - n);
	for (i = 0; i < N; i++)
		cr_assert_eq(kvx_xtable_find(&table, recs[i].number),
			     recs[i].import == NULL ? &recs[i] : NULL);
	for (i = 0; i < N; i++)
		kvx_xtable_take(&table, recs[i].number);
	kvx_xtable_fini(&table);
	free(recs);
	KVX_TEST_END();
}

Test(xtable, empty_one_has_nothing_and_costs_nothing)
{
	struct kvx_xtable table = {0};

	cr_assert_eq(kvx_xtable_find(&table, 1), NULL);
	cr_assert_eq(kvx_xtable_take(&table, 1), NULL);
	cr_assert_eq(table.buckets, NULL);
	kvx_xtable_fini(&table);
	KVX_TEST_END();
}
