/* The transfers without a terminal event yet, by id. Open addressing with linear probing and
 * deletion by shifting back, so that nothing is allocated while the number of outstanding transfers
 * does not exceed what it once was. One thread: the client's. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_SLOTS 64u

static uint32_t table_slot(const struct kvx_cl_table *table, uint64_t id)
{
	return (uint32_t)((id * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (table->n_slots - 1);
}

static void slots_put(const struct kvx_cl_table *table, const struct kvx_cl_xfer *xfer)
{
	uint32_t i = table_slot(table, xfer->id);

	while (table->slots[i].id != 0)
		i = (i + 1) & (table->n_slots - 1);
	table->slots[i] = *xfer;
}

int kvx_cl_table_reserve(struct kvx_cl_table *table)
{
	struct kvx_cl_table grown = {0};

	if (table->n < table->n_slots / 2)
		return 0;
	if (table->n_slots > UINT32_MAX / 4)
		return -ENOMEM;
	grown.n_slots = table->n_slots > 0 ? table->n_slots * 2 : FIRST_SLOTS;
	grown.slots = calloc(grown.n_slots, sizeof(*grown.slots));
	if (grown.slots == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < table->n_slots; i++)
		if (table->slots[i].id != 0)
			slots_put(&grown, &table->slots[i]);
	grown.n = table->n;
	free(table->slots);
	*table = grown;
	return 0;
}

void kvx_cl_table_add(struct kvx_cl_table *table, const struct kvx_cl_xfer *xfer)
{
	slots_put(table, xfer);
	table->n++;
}

struct kvx_cl_xfer *kvx_cl_table_find(const struct kvx_cl_table *table, uint64_t id)
{
	if (id == 0 || table->n == 0)
		return NULL;
	for (uint32_t i = table_slot(table, id); table->slots[i].id != 0;
	     i = (i + 1) & (table->n_slots - 1))
		if (table->slots[i].id == id)
			return &table->slots[i];
	return NULL;
}

/* Fills the hole with the entries behind it that would not be found across it. */
static void slots_close_hole(const struct kvx_cl_table *table, uint32_t hole)
{
	uint32_t mask = table->n_slots - 1;

	for (uint32_t i = (hole + 1) & mask; table->slots[i].id != 0; i = (i + 1) & mask) {
		uint32_t home = table_slot(table, table->slots[i].id);

		if (((i - home) & mask) < ((i - hole) & mask))
			continue;
		table->slots[hole] = table->slots[i];
		hole = i;
	}
	table->slots[hole].id = 0;
}

bool kvx_cl_table_take(struct kvx_cl_table *table, uint64_t id, struct kvx_cl_xfer *out_xfer)
{
	struct kvx_cl_xfer *xfer = kvx_cl_table_find(table, id);

	if (xfer == NULL)
		return false;
	*out_xfer = *xfer;
	slots_close_hole(table, (uint32_t)(xfer - table->slots));
	table->n--;
	return true;
}

static int xfer_compare(const void *a, const void *b)
{
	const struct kvx_cl_xfer *x = a, *y = b;

	return (x->id > y->id) - (x->id < y->id);
}

void kvx_cl_table_line_up(struct kvx_cl_table *table)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < table->n_slots; i++)
		if (table->slots[i].id != 0)
			table->slots[n++] = table->slots[i];
	if (n > 0)
		qsort(table->slots, n, sizeof(*table->slots), xfer_compare);
}

void kvx_cl_table_clear(struct kvx_cl_table *table)
{
	if (table->slots != NULL)
		memset(table->slots, 0, table->n_slots * sizeof(*table->slots));
	table->n = 0;
}

void kvx_cl_table_fini(struct kvx_cl_table *table)
{
	free(table->slots);
	*table = (struct kvx_cl_table){0};
}
