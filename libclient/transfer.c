/* Data calls: checked here for form, encoded into the sending queue, sent as far as the socket
 * takes it. The user's thread, also inside event callbacks. Whether a transfer may do what it names
 * only the daemon knows; its answer is the terminal event. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <string.h>

/* ---- checks of form */

static int slice_check(struct kvxfer_client *client, const struct kvxfer_slice *slice)
{
	if (slice->bytes == 0 || slice->count == 0)
		return kvx_cl_fail(client, -EINVAL, "slice: bytes and count must not be 0");
	if (slice->count > 1 &&
	    (slice->local_stride < slice->bytes || slice->remote_stride < slice->bytes))
		return kvx_cl_fail(client, -EINVAL, "slice: a stride is less than bytes");
	return 0;
}

static int blocks_check(struct kvxfer_client *client, const struct kvxfer_blocks *blocks)
{
	if (blocks->n_planes == 0 || blocks->n_planes > UINT32_MAX - blocks->local_plane ||
	    blocks->n_planes > UINT32_MAX - blocks->remote_plane)
		return kvx_cl_fail(client, -EINVAL, "blocks: bad range of planes");
	if (blocks->n_blocks == 0 || blocks->local_blocks == NULL || blocks->remote_blocks == NULL)
		return kvx_cl_fail(client, -EINVAL, "blocks: no block ids");
	if (blocks->n_blocks > client->limits.max_blocks)
		return kvx_cl_fail(client, -EMSGSIZE, "%u blocks: the daemon's limit is %u",
				   blocks->n_blocks, client->limits.max_blocks);
	return blocks->slice != NULL ? slice_check(client, blocks->slice) : 0;
}

/* *out_same: the length of all ops when it is one; else 0. */
static int lens_check(struct kvxfer_client *client, const struct kvxfer_ops *ops,
		      uint64_t *out_same)
{
	uint64_t first, differ = 0, zeros = 0;

	if (ops->lens == NULL) {
		*out_same = ops->len;
		return ops->len > 0 ? 0 : kvx_cl_fail(client, -EINVAL, "ops: len is 0");
	}
	first = ops->lens[0];
	for (uint32_t i = 0; i < ops->n_ops; i++) {
		differ |= ops->lens[i] ^ first;
		zeros += ops->lens[i] == 0;
	}
	if (zeros > 0)
		return kvx_cl_fail(client, -EINVAL, "ops: a length is 0");
	*out_same = differ == 0 ? first : 0;
	return 0;
}

static int ops_check(struct kvxfer_client *client, const struct kvxfer_ops *ops, uint64_t *out_same)
{
	if (ops->n_ops == 0 || ops->local_offsets == NULL || ops->remote_offsets == NULL)
		return kvx_cl_fail(client, -EINVAL, "ops: none");
	if (ops->n_ops > client->limits.max_ops)
		return kvx_cl_fail(client, -EMSGSIZE, "%u ops: the daemon's limit is %u",
				   ops->n_ops, client->limits.max_ops);
	return lens_check(client, ops, out_same);
}

static int list_check(struct kvxfer_client *client, struct kvx_cl_append *list)
{
	if (list->blocks != NULL && list->ops != NULL)
		return kvx_cl_fail(client, -EINVAL, "both blocks and ops: pass one of them");
	if (list->blocks != NULL)
		return blocks_check(client, list->blocks);
	if (list->ops != NULL)
		return ops_check(client, list->ops, &list->same_len);
	return 0;
}

static int payload_check(struct kvxfer_client *client, const void *payload, size_t payload_bytes)
{
	if (payload == NULL && payload_bytes > 0)
		return kvx_cl_fail(client, -EINVAL, "payload is NULL");
	if (payload_bytes > client->limits.max_payload_bytes)
		return kvx_cl_fail(client, -EMSGSIZE, "payload of %zu bytes: the limit is %u",
				   payload_bytes, client->limits.max_payload_bytes);
	return 0;
}

static int sides_check(struct kvxfer_client *client, const struct kvxfer_transfer *t)
{
	if (t->op != KVXFER_READ && t->op != KVXFER_WRITE)
		return kvx_cl_fail(client, -EINVAL, "op is %d: must be KVXFER_READ or KVXFER_WRITE",
				   t->op);
	if (t->region == NULL || t->import_ == NULL)
		return kvx_cl_fail(client, -EINVAL, "region or import_ is NULL");
	if (t->region->client != client || t->import_->client != client)
		return kvx_cl_fail(client, -EINVAL, "region or import_ is of another client");
	if (t->import_->finding)
		return kvx_cl_fail(client, -EAGAIN,
				   "the import is not up yet: wait for KVXFER_EVENT_IMPORT_UP");
	if (t->import_->id == 0)
		return kvx_cl_fail(client, -EINVAL, "the import was lost: close it");
	return 0;
}

static int transfer_check(struct kvxfer_client *client, const struct kvxfer_transfer *t,
			  struct kvx_cl_append *list)
{
	int err = sides_check(client, t);

	if (err < 0)
		return err;
	if (t->streaming != 0 && t->streaming != 1)
		return kvx_cl_fail(client, -EINVAL, "streaming is %d: must be 0 or 1",
				   t->streaming);
	if (t->streaming == 0 && t->blocks == NULL && t->ops == NULL)
		return kvx_cl_fail(client, -EINVAL, "neither blocks nor ops");
	if (t->require != NULL &&
	    (t->require[0] == '\0' ||
	     strnlen(t->require, KVX_CL_TRANSPORT_BYTES) == KVX_CL_TRANSPORT_BYTES))
		return kvx_cl_fail(client, -EINVAL, "require is not the name of a transport");
	if (t->label != NULL && strnlen(t->label, KVXFER_LABEL_MAX + 1) > KVXFER_LABEL_MAX)
		return kvx_cl_fail(client, -EINVAL, "the label is longer than %d bytes",
				   KVXFER_LABEL_MAX);
	err = payload_check(client, t->payload, t->payload_bytes);
	if (err < 0)
		return err;
	list->blocks = t->blocks;
	list->ops = t->ops;
	return list_check(client, list);
}

/* ---- sending */

static int transfer_send(struct kvxfer_client *client, const struct kvxfer_transfer *t,
			 struct kvx_cl_append *list, uint64_t *out_transfer)
{
	struct kvx_cl_xfer xfer = {.id = client->last_xfer + 1,
				   .tag = t->tag,
				   .op = (uint8_t)t->op,
				   .open = t->streaming != 0};
	uint8_t *body;
	size_t bytes;
	int err;

	if (kvx_cl_table_reserve(&client->xfers) < 0)
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	list->xfer = xfer.id;
	bytes = kvx_cl_encode_submit(NULL, t, list);
	err = kvx_cl_reserve(client, KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT, bytes, &body);
	if (err < 0)
		return err;
	kvx_cl_encode_submit(body, t, list);
	kvx_cl_table_add(&client->xfers, &xfer);
	client->last_xfer = xfer.id;
	kvx_cl_flush(client);
	if (out_transfer != NULL)
		*out_transfer = xfer.id;
	return 0;
}

int kvxfer_transfer_submit(struct kvxfer_client *client, const struct kvxfer_transfer *transfer,
			   uint64_t *out_transfer)
{
	struct kvx_cl_append list = {0};
	struct kvxfer_transfer t;
	struct kvxfer_wait wait;
	struct kvx_why why;
	int err;

	err = kvx_cl_enter_data(client);
	if (err < 0)
		return err;
	if (transfer == NULL)
		return kvx_cl_fail(client, -EINVAL, "transfer is NULL");
	if (kvx_cl_copy_options(&t, sizeof(t), transfer, &why) < 0)
		return kvx_cl_fail(client, -EINVAL, "kvxfer_transfer: %s", why.text);
	err = transfer_check(client, &t, &list);
	if (err == 0)
		err = kvx_cl_wait_take(client, t.wait, &wait, &list.wait);
	if (err < 0)
		return err;
	if (list.wait != NULL && list.blocks == NULL && list.ops == NULL)
		return kvx_cl_fail(client, -EINVAL, "wait without blocks or ops that it is for");
	return transfer_send(client, &t, &list, out_transfer);
}

/* Enters a data call on a transfer that is unfinished and to which appends may follow. */
static int enter_open(struct kvxfer_client *client, uint64_t id, struct kvx_cl_xfer **out_xfer)
{
	struct kvx_cl_xfer *xfer;
	int err;

	err = kvx_cl_enter_data(client);
	if (err < 0)
		return err;
	xfer = kvx_cl_table_find(&client->xfers, id);
	if (xfer == NULL)
		return kvx_cl_fail(client, -ENOENT, "transfer %llu has ended, or never was",
				   (unsigned long long)id);
	if (!xfer->open)
		return kvx_cl_fail(client, -ENOENT, "transfer %llu is not streaming, or sealed",
				   (unsigned long long)id);
	*out_xfer = xfer;
	return 0;
}

int kvxfer_transfer_append(struct kvxfer_client *client, uint64_t transfer,
			   const struct kvxfer_blocks *blocks, const struct kvxfer_ops *ops)
{
	return kvxfer_transfer_append_after(client, transfer, blocks, ops, NULL);
}

int kvxfer_transfer_append_after(struct kvxfer_client *client, uint64_t transfer,
				 const struct kvxfer_blocks *blocks, const struct kvxfer_ops *ops,
				 const struct kvxfer_wait *wait)
{
	struct kvx_cl_append list = {.xfer = transfer, .blocks = blocks, .ops = ops};
	struct kvxfer_wait copy;
	struct kvx_cl_xfer *xfer;
	uint8_t *body;
	int err;

	err = enter_open(client, transfer, &xfer);
	if (err < 0)
		return err;
	if (blocks == NULL && ops == NULL)
		return kvx_cl_fail(client, -EINVAL, "neither blocks nor ops");
	err = list_check(client, &list);
	if (err == 0)
		err = kvx_cl_wait_take(client, wait, &copy, &list.wait);
	if (err < 0)
		return err;
	err = kvx_cl_reserve(client, KVXP__FRAME_TYPE__FRAME_XFER_APPEND,
			     kvx_cl_encode_append(NULL, &list), &body);
	if (err < 0)
		return err;
	kvx_cl_encode_append(body, &list);
	kvx_cl_flush(client);
	return 0;
}

int kvxfer_transfer_seal(struct kvxfer_client *client, uint64_t transfer, const void *payload,
			 size_t payload_bytes)
{
	struct kvx_cl_xfer *xfer = NULL;
	uint8_t *body;
	int err;

	err = enter_open(client, transfer, &xfer);
	if (err < 0)
		return err;
	err = payload_check(client, payload, payload_bytes);
	if (err < 0)
		return err;
	err = kvx_cl_reserve(client, KVXP__FRAME_TYPE__FRAME_XFER_SEAL,
			     kvx_cl_encode_seal(NULL, transfer, payload, payload_bytes), &body);
	if (err < 0)
		return err;
	kvx_cl_encode_seal(body, transfer, payload, payload_bytes);
	xfer->open = false;
	kvx_cl_flush(client);
	return 0;
}

int kvxfer_transfer_cancel(struct kvxfer_client *client, uint64_t transfer)
{
	uint8_t *body;
	int err;

	err = kvx_cl_enter_data(client);
	if (err < 0)
		return err;
	if (kvx_cl_table_find(&client->xfers, transfer) == NULL)
		return kvx_cl_fail(client, -ENOENT, "transfer %llu has ended, or never was",
				   (unsigned long long)transfer);
	err = kvx_cl_reserve(client, KVXP__FRAME_TYPE__FRAME_XFER_CANCEL,
			     kvx_cl_encode_cancel(NULL, transfer), &body);
	if (err < 0)
		return err;
	kvx_cl_encode_cancel(body, transfer);
	kvx_cl_flush(client);
	return 0;
}
