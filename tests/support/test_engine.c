/* One engine of an integration test. */
#include "test_engine.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static long now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

void test_engine_open(struct test_engine *e, const struct test_node *node, const char *name,
		      uint32_t n_planes, uint32_t n_blocks, uint64_t block_bytes, uint32_t access)
{
	struct kvxfer_plane *planes = calloc(n_planes, sizeof(*planes));
	struct kvxfer_layout layout = {planes, n_planes};
	struct kvxfer_region_options opt = {
	    .struct_bytes = sizeof(opt),
	    .name = name,
	    .access = access,
	    .layout = &layout,
	};

	memset(e, 0, sizeof(*e));
	e->client = test_node_client(node, name);
	e->n_planes = n_planes;
	e->n_blocks = n_blocks;
	e->block_bytes = block_bytes;
	e->bytes = kvxfer_layout_mla(0, n_planes, n_blocks, block_bytes, planes);
	cr_assert_neq(e->bytes, 0);
	cr_assert_eq(kvxfer_region_alloc(e->client, e->bytes, &opt, &e->region), 0, "%s",
		     kvxfer_client_error(e->client));
	e->data = kvxfer_region_data(e->region);
	memset(e->data, TEST_CANARY, e->bytes);
	free(planes);
}

void test_engine_close(struct test_engine *e)
{
	kvxfer_client_close(e->client);
	memset(e, 0, sizeof(*e));
}

struct kvxfer_import *test_engine_import(struct test_engine *e, struct test_engine *other)
{
	uint8_t desc[KVXFER_DESCRIPTOR_MAX];
	struct kvxfer_import *import_ = NULL;
	int len = kvxfer_region_export(other->region, desc, sizeof(desc));
	int rc;

	cr_assert_gt(len, 0, "export: %s", kvxfer_client_error(other->client));
	rc = kvxfer_import_open(e->client, desc, (size_t)len, NULL, &import_);
	cr_assert_eq(rc, 0, "import: %d %s", rc, kvxfer_client_error(e->client));
	return import_;
}

uint8_t *test_block(struct test_engine *e, uint32_t plane, uint32_t block)
{
	return e->data + ((uint64_t)plane * e->n_blocks + block) * e->block_bytes;
}

uint8_t test_pattern(uint64_t seed, uint32_t plane, uint32_t block, uint64_t i)
{
	uint64_t x =
	    seed * 0x9e3779b97f4a7c15ull ^ (uint64_t)plane << 40 ^ (uint64_t)block << 20 ^ i >> 3;

	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 29;
	x *= 0x94d049bb133111ebull;
	return (uint8_t)(x >> (8 * (i & 7)));
}

void test_fill(struct test_engine *e, uint64_t seed)
{
	for (uint32_t p = 0; p < e->n_planes; p++)
		for (uint32_t b = 0; b < e->n_blocks; b++)
			for (uint64_t i = 0; i < e->block_bytes; i++)
				test_block(e, p, b)[i] = test_pattern(seed, p, b, i);
}

bool test_block_is(struct test_engine *e, uint64_t seed, uint32_t plane, uint32_t block,
		   uint32_t from)
{
	const uint8_t *data = test_block(e, plane, block);

	for (uint64_t i = 0; i < e->block_bytes; i++)
		if (data[i] != test_pattern(seed, plane, from, i))
			return false;
	return true;
}

bool test_block_is_canary(struct test_engine *e, uint32_t plane, uint32_t block)
{
	const uint8_t *data = test_block(e, plane, block);

	/* Equal to itself one byte on: all bytes are like the first. */
	return data[0] == TEST_CANARY && memcmp(data, data + 1, e->block_bytes - 1) == 0;
}

static void keep_event(struct kvxfer_client *client, const struct kvxfer_event *ev, void *arg)
{
	struct test_engine *e = arg;
	struct test_event *t = &e->events[e->n_events];

	(void)client;
	cr_assert_lt(e->n_events, TEST_EVENTS);
	memset(t, 0, sizeof(*t));
	t->type = ev->type;
	t->status = ev->status;
	t->op = ev->op;
	t->transfer = ev->transfer;
	t->tag = ev->tag;
	t->bytes = ev->bytes;
	t->region = ev->region;
	t->import_ = ev->import_;
	t->payload_bytes = ev->payload_bytes;
	if (ev->payload_bytes > 0)
		memcpy(t->payload, ev->payload,
		       ev->payload_bytes < sizeof(t->payload) ? ev->payload_bytes
							      : sizeof(t->payload));
	strncpy(t->transport, ev->transport, sizeof(t->transport) - 1);
	strncpy(t->text, ev->text, sizeof(t->text) - 1);
	e->n_events++;
}

static bool event_is(const struct test_event *t, int type, uint64_t id)
{
	return t->type == type &&
	       (id == 0 || id == (type == KVXFER_EVENT_TERMINAL ? t->transfer : t->tag));
}

unsigned test_count(const struct test_engine *e, int type, uint64_t transfer_or_tag)
{
	unsigned n = 0;

	for (unsigned i = 0; i < e->n_events; i++)
		n += event_is(&e->events[i], type, transfer_or_tag);
	return n;
}

bool test_wait_maybe(struct test_engine *e, int type, uint64_t transfer_or_tag, int timeout_ms,
		     struct test_event *out_event)
{
	long end = now_ms() + timeout_ms;
	unsigned seen = 0;

	for (;;) {
		long left = end - now_ms();
		int rc;

		for (; seen < e->n_events; seen++) {
			if (!event_is(&e->events[seen], type, transfer_or_tag))
				continue;
			*out_event = e->events[seen];
			e->n_events--;
			memmove(&e->events[seen], &e->events[seen + 1],
				(e->n_events - seen) * sizeof(e->events[0]));
			return true;
		}
		if (left < 0)
			return false;
		rc = kvxfer_client_wait(e->client, (int)left, keep_event, e);
		if (rc < 0)
			return false;
	}
}

struct test_event test_wait(struct test_engine *e, int type, uint64_t transfer_or_tag,
			    int timeout_ms)
{
	struct test_event event;
	bool there = test_wait_maybe(e, type, transfer_or_tag, timeout_ms, &event);

	cr_assert(there, "no event of type %d for %llu within %d ms", type,
		  (unsigned long long)transfer_or_tag, timeout_ms);
	return event;
}
