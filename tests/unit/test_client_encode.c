/* The hand-written encoder against the generated decoder: whatever a data call is given comes out
 * of protobuf-c as it went in. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "libclient/client_priv.h"
#include "test_end.h"
#include "test_rng.h"

#define MAX_OPS 700u

/* Mostly small, sometimes 0, sometimes anything. */
static uint64_t rng_value(void)
{
	switch (rng() % 4) {
	case 0:
		return 0;
	case 1:
		return rng() % 200;
	case 2:
		return rng() & 0xffffffff;
	default:
		return rng();
	}
}

struct input {
	struct kvxfer_transfer transfer;
	struct kvx_cl_append list;
	struct kvxfer_blocks blocks;
	struct kvxfer_slice slice;
	struct kvxfer_ops ops;
	struct kvxfer_region region;
	struct kvxfer_import import_;
	struct kvxfer_wait wait;
	uint32_t ids[2][MAX_OPS];
	uint64_t offsets[3][MAX_OPS];
	uint8_t payload[KVXFER_PAYLOAD_MAX];
};

static void input_fill_lists(struct input *in)
{
	uint32_t n = 1 + (uint32_t)(rng() % MAX_OPS);

	for (uint32_t i = 0; i < n; i++) {
		in->ids[0][i] = (uint32_t)rng_value();
		in->ids[1][i] = (uint32_t)rng_value();
		for (unsigned j = 0; j < 3; j++)
			in->offsets[j][i] = rng_value();
	}
	in->slice = (struct kvxfer_slice){rng_value(),           rng_value(), rng_value(),
					  (uint32_t)rng_value(), rng_value(), rng_value()};
	in->blocks = (struct kvxfer_blocks){
	    .local_plane = (uint32_t)rng_value(),
	    .remote_plane = (uint32_t)rng_value(),
	    .n_planes = (uint32_t)rng_value(),
	    .n_blocks = n,
	    .local_blocks = in->ids[0],
	    .remote_blocks = in->ids[1],
	    .slice = rng() % 2 == 0 ? &in->slice : NULL,
	};
	in->ops = (struct kvxfer_ops){.n_ops = n,
				      .local_offsets = in->offsets[0],
				      .remote_offsets = in->offsets[1],
				      .lens = in->offsets[2]};
	in->list.same_len = rng() % 2 == 0 ? 1 + rng() % 10000 : 0;
}

static void input_fill_wait(struct input *in)
{
	in->wait = (struct kvxfer_wait){
	    .kind = rng() % 2 == 0 ? KVXFER_WAIT_EVENT : KVXFER_WAIT_FLAG,
	    .region = rng() % 2 == 0 ? &in->region : NULL,
	};
	if (in->wait.kind == KVXFER_WAIT_EVENT) {
		memset(in->wait.event, (int)rng(), sizeof(in->wait.event));
	} else {
		in->wait.offset = rng_value();
		in->wait.value = rng_value();
	}
	in->list.wait = rng() % 2 == 0 ? &in->wait : NULL;
}

static void input_fill(struct input *in)
{
	unsigned kind = (unsigned)(rng() % 3);

	memset(&in->list, 0, sizeof(in->list));
	input_fill_lists(in);
	input_fill_wait(in);
	in->list.xfer = 1 + rng_value() / 2;
	in->list.blocks = kind == 0 ? &in->blocks : NULL;
	in->list.ops = kind == 1 ? &in->ops : NULL;
	in->region.id = rng_value();
	in->import_.id = rng_value();
	memset(in->payload, (int)rng(), sizeof(in->payload));
	in->transfer = (struct kvxfer_transfer){
	    .op = rng() % 2 == 0 ? KVXFER_READ : KVXFER_WRITE,
	    .region = &in->region,
	    .import_ = &in->import_,
	    .tag = rng_value(),
	    .payload = in->payload,
	    .payload_bytes = rng() % (KVXFER_PAYLOAD_MAX + 1),
	    .deadline_ms = (uint32_t)rng_value(),
	    .require = rng() % 2 == 0 ? "fabric" : NULL,
	    .streaming = (int)(rng() % 2),
	};
}

static void assert_same_blocks(const struct kvxfer_blocks *in, const Kvxp__BlockList *out)
{
	cr_assert_not_null(out);
	cr_assert_eq(out->local_plane, in->local_plane);
	cr_assert_eq(out->remote_plane, in->remote_plane);
	cr_assert_eq(out->n_planes, in->n_planes);
	cr_assert_eq(out->n_local_blocks, in->n_blocks);
	cr_assert_eq(out->n_remote_blocks, in->n_blocks);
	cr_assert_arr_eq(out->local_blocks, in->local_blocks, in->n_blocks * sizeof(uint32_t));
	cr_assert_arr_eq(out->remote_blocks, in->remote_blocks, in->n_blocks * sizeof(uint32_t));
	cr_assert_eq(out->slice != NULL, in->slice != NULL);
	if (in->slice == NULL)
		return;
	cr_assert_eq(out->slice->local_offset, in->slice->local_offset);
	cr_assert_eq(out->slice->remote_offset, in->slice->remote_offset);
	cr_assert_eq(out->slice->bytes, in->slice->bytes);
	cr_assert_eq(out->slice->count, in->slice->count);
	cr_assert_eq(out->slice->local_stride, in->slice->local_stride);
	cr_assert_eq(out->slice->remote_stride, in->slice->remote_stride);
}

static void assert_same_ops(const struct kvx_cl_append *in, const Kvxp__OpList *out)
{
	size_t bytes = in->ops->n_ops * sizeof(uint64_t);

	cr_assert_not_null(out);
	cr_assert_eq(out->n_local_offsets, in->ops->n_ops);
	cr_assert_eq(out->n_remote_offsets, in->ops->n_ops);
	cr_assert_arr_eq(out->local_offsets, in->ops->local_offsets, bytes);
	cr_assert_arr_eq(out->remote_offsets, in->ops->remote_offsets, bytes);
	cr_assert_eq(out->n_lens, in->same_len != 0 ? 1 : in->ops->n_ops);
	if (in->same_len != 0)
		cr_assert_eq(out->lens[0], in->same_len);
	else
		cr_assert_arr_eq(out->lens, in->ops->lens, bytes);
}

static void assert_same_lists(const struct kvx_cl_append *in, const Kvxp__BlockList *blocks,
			      const Kvxp__OpList *ops)
{
	if (in->blocks != NULL)
		assert_same_blocks(in->blocks, blocks);
	else
		cr_assert_null(blocks);
	if (in->ops != NULL)
		assert_same_ops(in, ops);
	else
		cr_assert_null(ops);
}

static void assert_same_wait(const struct kvx_cl_append *in, const Kvxp__Wait *out)
{
	const struct kvxfer_wait *wait = in->wait;

	cr_assert_eq(out != NULL, wait != NULL);
	if (wait == NULL)
		return;
	cr_assert_eq((int)out->kind, wait->kind);
	cr_assert_eq(out->region, wait->region != NULL ? wait->region->id : 0);
	cr_assert_eq(out->offset, wait->offset);
	cr_assert_eq(out->value, wait->value);
	cr_assert_eq(out->event.len, wait->kind == KVXFER_WAIT_EVENT ? sizeof(wait->event) : 0);
	if (out->event.len > 0)
		cr_assert_arr_eq(out->event.data, wait->event, out->event.len);
}

/* A buffer of exactly the announced length: a byte too many is seen by AddressSanitizer. */
static uint8_t *encode_submit(const struct input *in, size_t *out_bytes)
{
	size_t bytes = kvx_cl_encode_submit(NULL, &in->transfer, &in->list);
	uint8_t *body = malloc(bytes);

	cr_assert_not_null(body);
	cr_assert_eq(kvx_cl_encode_submit(body, &in->transfer, &in->list), bytes);
	*out_bytes = bytes;
	return body;
}

Test(client_encode, submit_decodes_to_what_was_given)
{
	struct input *in = calloc(1, sizeof(*in));

	cr_assert_not_null(in);
	rng_state = 42;
	for (int i = 0; i < 2000; i++) {
		Kvxp__XferSubmit *out;
		uint8_t *body;
		size_t bytes;

		input_fill(in);
		body = encode_submit(in, &bytes);
		out = kvxp__xfer_submit__unpack(NULL, bytes, body);
		cr_assert_not_null(out, "round %d cannot be decoded", i);
		cr_assert_eq(out->xfer, in->list.xfer);
		cr_assert_eq((int)out->op, in->transfer.op);
		cr_assert_eq(out->region, in->region.id);
		cr_assert_eq(out->import, in->import_.id);
		cr_assert_eq(out->tag, in->transfer.tag);
		cr_assert_eq(out->deadline_ms, in->transfer.deadline_ms);
		cr_assert_str_eq(out->require, in->transfer.require != NULL ? "fabric" : "");
		cr_assert_eq(out->payload.len, in->transfer.payload_bytes);
		if (out->payload.len > 0)
			cr_assert_arr_eq(out->payload.data, in->payload, out->payload.len);
		cr_assert_eq(out->streaming, in->transfer.streaming);
		assert_same_lists(&in->list, out->blocks, out->ops);
		assert_same_wait(&in->list, out->wait);
		kvxp__xfer_submit__free_unpacked(out, NULL);
		free(body);
	}
	free(in);
	KVX_TEST_END();
}

Test(client_encode, submit_is_what_protobuf_c_would_make)
{
	struct input *in = calloc(1, sizeof(*in));

	cr_assert_not_null(in);
	rng_state = 7;
	for (int i = 0; i < 500; i++) {
		Kvxp__XferSubmit *out;
		uint8_t *body, *again;
		size_t bytes;

		input_fill(in);
		body = encode_submit(in, &bytes);
		out = kvxp__xfer_submit__unpack(NULL, bytes, body);
		cr_assert_not_null(out);
		cr_assert_eq(kvxp__xfer_submit__get_packed_size(out), bytes);
		again = malloc(bytes);
		cr_assert_not_null(again);
		kvxp__xfer_submit__pack(out, again);
		cr_assert_arr_eq(again, body, bytes);
		kvxp__xfer_submit__free_unpacked(out, NULL);
		free(again);
		free(body);
	}
	free(in);
	KVX_TEST_END();
}

Test(client_encode, append_decodes_to_what_was_given)
{
	struct input *in = calloc(1, sizeof(*in));

	cr_assert_not_null(in);
	rng_state = 99;
	for (int i = 0; i < 500; i++) {
		Kvxp__XferAppend *out;
		uint8_t *body;
		size_t bytes;

		input_fill(in);
		bytes = kvx_cl_encode_append(NULL, &in->list);
		body = malloc(bytes);
		cr_assert_not_null(body);
		cr_assert_eq(kvx_cl_encode_append(body, &in->list), bytes);
		out = kvxp__xfer_append__unpack(NULL, bytes, body);
		cr_assert_not_null(out);
		cr_assert_eq(out->xfer, in->list.xfer);
		assert_same_lists(&in->list, out->blocks, out->ops);
		assert_same_wait(&in->list, out->wait);
		kvxp__xfer_append__free_unpacked(out, NULL);
		free(body);
	}
	free(in);
	KVX_TEST_END();
}

Test(client_encode, seal_and_cancel_decode)
{
	uint8_t body[64];
	size_t bytes = kvx_cl_encode_seal(body, 77, "ready", 5);
	Kvxp__XferSeal *seal = kvxp__xfer_seal__unpack(NULL, bytes, body);
	Kvxp__XferCancel *cancel;

	cr_assert_not_null(seal);
	cr_assert_eq(seal->xfer, 77);
	cr_assert_eq(seal->payload.len, 5);
	cr_assert_arr_eq(seal->payload.data, "ready", 5);
	kvxp__xfer_seal__free_unpacked(seal, NULL);
	bytes = kvx_cl_encode_cancel(body, 78);
	cancel = kvxp__xfer_cancel__unpack(NULL, bytes, body);
	cr_assert_not_null(cancel);
	cr_assert_eq(cancel->xfer, 78);
	kvxp__xfer_cancel__free_unpacked(cancel, NULL);
	KVX_TEST_END();
}
