/* The unfinished transfers of a client by their number. Numbers only grow, so that their low bits
 * spread them evenly; the table never shrinks and a single transfer at a time costs no malloc. Owns
 * the buckets, not the records. Loop thread. */
#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "control/control_priv.h"

#define FIRST_BUCKETS 64u

static struct kvx_xrec **xtable_bucket(const struct kvx_xtable *table, uint64_t number)
{
	return &table->buckets[number & (table->n_buckets - 1)];
}

static int xtable_grow(struct kvx_xtable *table)
{
	struct kvx_xtable grown = {.n_buckets = table->n_buckets * 2, .n = table->n};
	struct kvx_xrec *rec;
	uint32_t i;

	if (grown.n_buckets == 0)
		grown.n_buckets = FIRST_BUCKETS;
	grown.buckets = calloc(grown.n_buckets, sizeof(struct kvx_xrec *));
	if (grown.buckets == NULL)
		return -ENOMEM;
	for (i = 0; i < table->n_buckets; i++) {
		while ((rec = table->buckets[i]) != NULL) {
			struct kvx_xrec **bucket = xtable_bucket(&grown, rec->number);

			table->buckets[i] = rec->next;
			rec->next = *bucket;
			*bucket = rec;
		}
	}
	free(table->buckets);
	*table = grown;
	return 0;
}

int kvx_xtable_put(struct kvx_xtable *table, struct kvx_xrec *rec)
{
	struct kvx_xrec **bucket;

	/* a full table is still correct: growing may fail once there is one */
	if (table->n >= table->n_buckets && xtable_grow(table) < 0 && table->buckets == NULL)
		return -ENOMEM;
	bucket = xtable_bucket(table, rec->number);
	rec->next = *bucket;
	*bucket = rec;
	table->n++;
	return 0;
}

struct kvx_xrec *kvx_xtable_find(const struct kvx_xtable *table, uint64_t number)
{
	struct kvx_xrec *rec;

	if (table->n == 0)
		return NULL;
	for (rec = *xtable_bucket(table, number); rec != NULL; rec = rec->next) {
		if (rec->number == number)
			return rec;
	}
	return NULL;
}

struct kvx_xrec *kvx_xtable_take(struct kvx_xtable *table, uint64_t number)
{
	struct kvx_xrec **link;

	if (table->n == 0)
		return NULL;
	for (link = xtable_bucket(table, number); *link != NULL; link = &(*link)->next) {
		struct kvx_xrec *rec = *link;

		if (rec->number == number) {
			*link = rec->next;
			table->n--;
			return rec;
		}
	}
	return NULL;
}

void kvx_xtable_fini(struct kvx_xtable *table)
{
	kvx_assert(table->n == 0);
	free(table->buckets);
	table->buckets = NULL;
	table->n_buckets = 0;
}
