/* An engine as integration tests need it: one client, one region with a layout, patterns that tell
 * every byte's origin, and waiting for one particular event. */
#ifndef KVX_TEST_ENGINE_H
#define KVX_TEST_ENGINE_H

#include <stdbool.h>
#include <stdint.h>

#include "kvxfer/client.h"
#include "test_node.h"

#define TEST_EVENTS 4096
#define TEST_CANARY 0xee

struct test_event {
	int type, status, op;
	uint64_t transfer, tag, bytes;
	char transport[16];
	char text[160];
	uint8_t payload[64];
	size_t payload_bytes;
	struct kvxfer_region *region;
	struct kvxfer_import *import_;
};

struct test_engine {
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	uint8_t *data;
	uint64_t bytes;
	uint32_t n_planes, n_blocks;
	uint64_t block_bytes;
	unsigned n_events; /* received and not yet taken */
	struct test_event events[TEST_EVENTS];
};

/* n_planes x n_blocks blocks of block_bytes, planes one after the other; access: enum kvxfer_access
 * bits. Fills the region with TEST_CANARY. */
void test_engine_open(struct test_engine *e, const struct test_node *node, const char *name,
		      uint32_t n_planes, uint32_t n_blocks, uint64_t block_bytes, uint32_t access);
void test_engine_close(struct test_engine *e);
/* Imports other's region into e. */
struct kvxfer_import *test_engine_import(struct test_engine *e, struct test_engine *other);

uint8_t *test_block(struct test_engine *e, uint32_t plane, uint32_t block);
/* Byte i of the pattern of (seed, plane, block). */
uint8_t test_pattern(uint64_t seed, uint32_t plane, uint32_t block, uint64_t i);
void test_fill(struct test_engine *e, uint64_t seed);
/* Does block `block` of `e` hold the pattern of block `from`? */
bool test_block_is(struct test_engine *e, uint64_t seed, uint32_t plane, uint32_t block,
		   uint32_t from);
bool test_block_is_canary(struct test_engine *e, uint32_t plane, uint32_t block);

/* Waits until an event of this type (and transfer or tag, unless 0) is there and takes it; fails
 * the test after timeout_ms. */
struct test_event test_wait(struct test_engine *e, int type, uint64_t transfer_or_tag,
			    int timeout_ms);
/* The same, but says false instead of failing. */
bool test_wait_maybe(struct test_engine *e, int type, uint64_t transfer_or_tag, int timeout_ms,
		     struct test_event *out_event);
/* Number of events of a type (and transfer or tag) received and not taken. */
unsigned test_count(const struct test_engine *e, int type, uint64_t transfer_or_tag);

#endif
