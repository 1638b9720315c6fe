/* Protobuf encoding of the data calls, by hand: straight from the caller's arrays into the frame,
 * without a message object in between. Pure. One function makes both the length and the bytes, so
 * that the two cannot differ; the tests decode the result with the generated code. */
#include "libclient/client_priv.h"

#include <assert.h>
#include <string.h>

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
	      "packed arrays are copied: needs a little-endian machine");

/* Wire types of protobuf. */
enum { WIRE_VARINT = 0, WIRE_FIXED64 = 1, WIRE_BYTES = 2, WIRE_FIXED32 = 5 };

/* Where the next byte goes; NULL while lengths are counted. */
struct sink {
	uint8_t *at;
	size_t n;
};

static void put_bytes(struct sink *sink, const void *data, size_t n)
{
	if (sink->at != NULL && n > 0)
		memcpy(sink->at + sink->n, data, n);
	sink->n += n;
}

static void put_varint(struct sink *sink, uint64_t v)
{
	uint8_t bytes[10];
	size_t n = 0;

	do {
		bytes[n++] = (uint8_t)((v & 0x7f) | (v > 0x7f ? 0x80 : 0));
		v >>= 7;
	} while (v > 0);
	put_bytes(sink, bytes, n);
}

static void put_tag(struct sink *sink, unsigned field, unsigned wire_type)
{
	put_varint(sink, field << 3 | wire_type);
}

/* proto3: a scalar that is 0 is not sent. */
static void put_u32(struct sink *sink, unsigned field, uint32_t v)
{
	if (v == 0)
		return;
	put_tag(sink, field, WIRE_VARINT);
	put_varint(sink, v);
}

static void put_fixed32(struct sink *sink, unsigned field, uint32_t v)
{
	if (v == 0)
		return;
	put_tag(sink, field, WIRE_FIXED32);
	put_bytes(sink, &v, sizeof(v));
}

static void put_fixed64(struct sink *sink, unsigned field, uint64_t v)
{
	if (v == 0)
		return;
	put_tag(sink, field, WIRE_FIXED64);
	put_bytes(sink, &v, sizeof(v));
}

/* Strings, bytes and packed arrays. */
static void put_blob(struct sink *sink, unsigned field, const void *data, size_t n)
{
	if (n == 0)
		return;
	put_tag(sink, field, WIRE_BYTES);
	put_varint(sink, n);
	put_bytes(sink, data, n);
}

static void put_slice_fields(struct sink *sink, const struct kvxfer_slice *slice)
{
	put_fixed64(sink, 1, slice->local_offset);
	put_fixed64(sink, 2, slice->remote_offset);
	put_fixed64(sink, 3, slice->bytes);
	put_fixed32(sink, 4, slice->count);
	put_fixed64(sink, 5, slice->local_stride);
	put_fixed64(sink, 6, slice->remote_stride);
}

static void put_blocks_fields(struct sink *sink, const struct kvxfer_blocks *blocks)
{
	size_t ids_bytes = (size_t)blocks->n_blocks * sizeof(uint32_t);

	put_u32(sink, 1, blocks->local_plane);
	put_u32(sink, 2, blocks->remote_plane);
	put_u32(sink, 3, blocks->n_planes);
	put_blob(sink, 4, blocks->local_blocks, ids_bytes);
	put_blob(sink, 5, blocks->remote_blocks, ids_bytes);
	if (blocks->slice != NULL) {
		struct sink inner = {0};

		put_slice_fields(&inner, blocks->slice);
		put_tag(sink, 6, WIRE_BYTES);
		put_varint(sink, inner.n);
		put_slice_fields(sink, blocks->slice);
	}
}

static void put_ops_fields(struct sink *sink, const struct kvx_cl_append *list)
{
	size_t bytes = (size_t)list->ops->n_ops * sizeof(uint64_t);

	put_blob(sink, 1, list->ops->local_offsets, bytes);
	put_blob(sink, 2, list->ops->remote_offsets, bytes);
	if (list->same_len != 0)
		put_blob(sink, 3, &list->same_len, sizeof(list->same_len));
	else
		put_blob(sink, 3, list->ops->lens, bytes);
}

/* The block list or the op list, as the sub-message that the two fields name. */
static void put_list(struct sink *sink, const struct kvx_cl_append *list, unsigned blocks_field,
		     unsigned ops_field)
{
	struct sink inner = {0};

	if (list->blocks != NULL) {
		put_blocks_fields(&inner, list->blocks);
		put_tag(sink, blocks_field, WIRE_BYTES);
		put_varint(sink, inner.n);
		put_blocks_fields(sink, list->blocks);
	} else if (list->ops != NULL) {
		put_ops_fields(&inner, list);
		put_tag(sink, ops_field, WIRE_BYTES);
		put_varint(sink, inner.n);
		put_ops_fields(sink, list);
	}
}

static void put_wait_fields(struct sink *sink, const struct kvxfer_wait *wait)
{
	put_u32(sink, 1, (uint32_t)wait->kind);
	put_fixed64(sink, 2, wait->region != NULL ? wait->region->id : 0);
	if (wait->kind == KVXFER_WAIT_EVENT) {
		put_blob(sink, 3, wait->event, sizeof(wait->event));
		return;
	}
	put_fixed64(sink, 4, wait->offset);
	put_fixed64(sink, 5, wait->value);
}

static void put_wait(struct sink *sink, const struct kvx_cl_append *list)
{
	struct sink inner = {0};

	if (list->wait == NULL)
		return;
	put_wait_fields(&inner, list->wait);
	put_tag(sink, 16, WIRE_BYTES);
	put_varint(sink, inner.n);
	put_wait_fields(sink, list->wait);
}

size_t kvx_cl_encode_submit(uint8_t *out, const struct kvxfer_transfer *transfer,
			    const struct kvx_cl_append *list)
{
	struct sink sink = {.at = out};

	put_fixed64(&sink, 1, list->xfer);
	put_u32(&sink, 2, (uint32_t)transfer->op);
	put_fixed64(&sink, 3, transfer->region->id);
	put_fixed64(&sink, 4, transfer->import_->id);
	put_fixed64(&sink, 5, transfer->tag);
	put_u32(&sink, 6, transfer->deadline_ms);
	if (transfer->require != NULL)
		put_blob(&sink, 7, transfer->require, strlen(transfer->require));
	put_blob(&sink, 8, transfer->payload, transfer->payload_bytes);
	put_u32(&sink, 9, transfer->streaming != 0);
	put_list(&sink, list, 10, 11);
	if (transfer->label != NULL)
		put_blob(&sink, 12, transfer->label, strlen(transfer->label));
	put_wait(&sink, list);
	return sink.n;
}

size_t kvx_cl_encode_append(uint8_t *out, const struct kvx_cl_append *list)
{
	struct sink sink = {.at = out};

	put_fixed64(&sink, 1, list->xfer);
	put_list(&sink, list, 2, 3);
	put_wait(&sink, list);
	return sink.n;
}

size_t kvx_cl_encode_seal(uint8_t *out, uint64_t xfer, const void *payload, size_t payload_bytes)
{
	struct sink sink = {.at = out};

	put_fixed64(&sink, 1, xfer);
	put_blob(&sink, 2, payload, payload_bytes);
	return sink.n;
}

size_t kvx_cl_encode_cancel(uint8_t *out, uint64_t xfer)
{
	struct sink sink = {.at = out};

	put_fixed64(&sink, 1, xfer);
	return sink.n;
}
