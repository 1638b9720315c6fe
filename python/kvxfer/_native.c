/* SPDX-License-Identifier: Apache-2.0 */
/* What the Python package needs beside the client library: events as an array instead of
 * callbacks (no Python code runs inside dispatch), and block ids of any integer type as uint32_t.
 * Compiled into kvxfer._native by build_cffi.py. Callers hold the client's lock. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <kvxfer/client.h>

/* clang-format off */
/* CDEF */
struct kvxpy_event {
	int type;
	int status;
	int scope;
	int vendor_code;
	int op;
	uint64_t transfer;
	uint64_t tag;
	uint64_t bytes;
	uintptr_t region;
	uintptr_t import_;
	uint64_t submit_ns;
	uint64_t first_ns;
	uint64_t last_ns;
	uint64_t end_ns;
	char transport[32];
	char *text;    /* malloc'd; NULL: "" */
	char *payload; /* malloc'd; NULL: none */
	size_t payload_bytes;
};

struct kvxpy_events {
	struct kvxpy_event *items;
	size_t n;
	size_t room;
	size_t lost; /* events there was no memory for */
};

int kvxpy_poll(struct kvxfer_client *client, struct kvxpy_events *events);
void kvxpy_events_clear(struct kvxpy_events *events);
void kvxpy_events_free(struct kvxpy_events *events);
int64_t kvxpy_ids(uintptr_t from, int item_bytes, int is_signed, int64_t stride_bytes, uint32_t n,
		  uint32_t *out_ids);
int64_t kvxpy_offsets(uintptr_t from, int item_bytes, int is_signed, int64_t stride_bytes,
		      uint32_t n, uint64_t *out_offsets);
/* END CDEF */
/* clang-format on */

static char *copy_bytes(const void *from, size_t len)
{
	char *to = malloc(len + 1);

	if (to != NULL) {
		memcpy(to, from, len);
		to[len] = '\0';
	}
	return to;
}

static int events_grow(struct kvxpy_events *events)
{
	size_t room = events->room > 0 ? 2 * events->room : 16;
	struct kvxpy_event *items;

	if (events->n < events->room)
		return 0;
	items = realloc(events->items, room * sizeof(*items));
	if (items == NULL)
		return -1;
	events->items = items;
	events->room = room;
	return 0;
}

static void on_event(struct kvxfer_client *client, const struct kvxfer_event *e, void *arg)
{
	struct kvxpy_events *events = arg;
	struct kvxpy_event *to;

	(void)client;
	if (events_grow(events) < 0) {
		events->lost++;
		return;
	}
	to = &events->items[events->n];
	*to = (struct kvxpy_event){
	    .type = e->type,
	    .status = e->status,
	    .scope = e->scope,
	    .vendor_code = e->vendor_code,
	    .op = e->op,
	    .transfer = e->transfer,
	    .tag = e->tag,
	    .bytes = e->bytes,
	    .region = (uintptr_t)e->region,
	    .import_ = (uintptr_t)e->import_,
	    .submit_ns = e->submit_ns,
	    .first_ns = e->first_ns,
	    .last_ns = e->last_ns,
	    .end_ns = e->end_ns,
	    .payload_bytes = e->payload_bytes,
	};
	if (e->transport != NULL)
		strncpy(to->transport, e->transport, sizeof(to->transport) - 1);
	if (e->text != NULL && e->text[0] != '\0')
		to->text = copy_bytes(e->text, strlen(e->text)); /* without memory: no text */
	if (e->payload_bytes > 0) {
		to->payload = copy_bytes(e->payload, e->payload_bytes);
		if (to->payload == NULL) {
			free(to->text);
			events->lost++;
			return;
		}
	}
	events->n++;
}

/* As kvxfer_client_dispatch(); the events are added to the array. */
int kvxpy_poll(struct kvxfer_client *client, struct kvxpy_events *events)
{
	return kvxfer_client_dispatch(client, on_event, events);
}

void kvxpy_events_clear(struct kvxpy_events *events)
{
	for (size_t i = 0; i < events->n; i++) {
		free(events->items[i].text);
		free(events->items[i].payload);
	}
	events->n = 0;
}

void kvxpy_events_free(struct kvxpy_events *events)
{
	kvxpy_events_clear(events);
	free(events->items);
	events->items = NULL;
	events->room = 0;
}

/* Item i as a number that is not negative; -1: it is. Too large for int64_t counts as negative. */
static int64_t item_get(const char *at, int item_bytes, int is_signed)
{
	union {
		int8_t i8;
		int16_t i16;
		int32_t i32;
		int64_t i64;
		uint8_t u8;
		uint16_t u16;
		uint32_t u32;
	} item;

	memcpy(&item, at, (size_t)item_bytes);
	switch (item_bytes) {
	case 1:
		return is_signed ? item.i8 : (int64_t)item.u8;
	case 2:
		return is_signed ? item.i16 : (int64_t)item.u16;
	case 4:
		return is_signed ? item.i32 : (int64_t)item.u32;
	default:
		return item.i64;
	}
}

/* Copies n integers to ids. Returns -1, or the index of the first that is no block id. */
int64_t kvxpy_ids(uintptr_t from, int item_bytes, int is_signed, int64_t stride_bytes, uint32_t n,
		  uint32_t *out_ids)
{
	const char *at = (const char *)from;

	for (uint32_t i = 0; i < n; i++, at += stride_bytes) {
		int64_t id = item_get(at, item_bytes, is_signed);

		if (id < 0 || id > UINT32_MAX)
			return i;
		out_ids[i] = (uint32_t)id;
	}
	return -1;
}

/* As kvxpy_ids(), for offsets and lengths. */
int64_t kvxpy_offsets(uintptr_t from, int item_bytes, int is_signed, int64_t stride_bytes,
		      uint32_t n, uint64_t *out_offsets)
{
	const char *at = (const char *)from;

	for (uint32_t i = 0; i < n; i++, at += stride_bytes) {
		int64_t offset = item_get(at, item_bytes, is_signed);

		if (offset < 0)
			return i;
		out_offsets[i] = (uint64_t)offset;
	}
	return -1;
}
