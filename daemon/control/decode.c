/* The one path from a client's bytes to the daemon's own structs: unpacking into the arena, then
 * checks and borrowing. Called by the handlers on the loop, and by tests. It decides nothing about
 * regions or transfers and keeps nothing. */
#include "control/decode.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "control/control_priv.h"

#define ARENA_SLACK_BYTES     (64u * 1024)
#define ARENA_BYTES_PER_PLANE 256u

void *kvx_client_decode(struct kvx_client *client, const ProtobufCMessageDescriptor *type,
			const struct kvx_msg *msg)
{
	struct kvx_control *control = client->control;
	/* Packed arrays unpack into their own size; planes into more than they are. */
	size_t limit = ARENA_SLACK_BYTES + 2 * (size_t)msg->len_bytes +
		       (size_t)control->conf.config->planes * ARENA_BYTES_PER_PLANE;
	ProtobufCMessage *message;

	kvx_arena_reset(control->arena, limit);
	message = protobuf_c_message_unpack(type, kvx_arena_allocator(control->arena),
					    msg->len_bytes, msg->body);
	if (message != NULL)
		return message;
	control->stats.bad_frames++;
	if (kvx_arena_is_exhausted(control->arena))
		kvx_client_fail(client, -EMSGSIZE, "frame %u: unpacks into more than %zu bytes",
				msg->type, limit);
	else
		kvx_client_fail(client, -EPROTO, "frame %u: %u bytes that are not a %s", msg->type,
				msg->len_bytes, type->short_name);
	return NULL;
}

static int decode_slice(const Kvxp__Slice *pb, struct kvx_slice *out, struct kvx_why *why)
{
	if (pb->bytes == 0 || pb->count == 0)
		return kvx_why(why, -EINVAL,
			       "slice: bytes %" PRIu64 ", count %" PRIu32
			       ": both must be more than 0",
			       pb->bytes, pb->count);
	*out = (struct kvx_slice){
	    .local_offset = pb->local_offset,
	    .remote_offset = pb->remote_offset,
	    .bytes = pb->bytes,
	    .local_stride = pb->local_stride,
	    .remote_stride = pb->remote_stride,
	    .count = pb->count,
	};
	return 0;
}

int kvx_decode_blocks(const struct kvx_config *config, const Kvxp__BlockList *pb,
		      struct kvx_block_list *out_list, struct kvx_slice *out_slice,
		      struct kvx_why *why)
{
	if (pb->n_local_blocks > config->blocks || pb->n_remote_blocks > config->blocks)
		return kvx_why(why, -EMSGSIZE,
			       "%zu block ids, at most %" PRIu32
			       " per list are allowed ([limits] blocks): split the transfer",
			       pb->n_local_blocks > pb->n_remote_blocks ? pb->n_local_blocks
									: pb->n_remote_blocks,
			       config->blocks);
	if (pb->n_local_blocks != pb->n_remote_blocks)
		return kvx_why(why, -EINVAL, "%zu local block ids, but %zu remote ones",
			       pb->n_local_blocks, pb->n_remote_blocks);
	if (pb->n_local_blocks == 0 || pb->n_planes == 0)
		return kvx_why(why, -EINVAL, "empty block list: %zu blocks of %" PRIu32 " planes",
			       pb->n_local_blocks, pb->n_planes);
	if (pb->slice != NULL) {
		int err = decode_slice(pb->slice, out_slice, why);

		if (err < 0)
			return err;
	}
	*out_list = (struct kvx_block_list){
	    .local_plane = pb->local_plane,
	    .remote_plane = pb->remote_plane,
	    .n_planes = pb->n_planes,
	    .n_blocks = (uint32_t)pb->n_local_blocks,
	    .local_blocks = pb->local_blocks,
	    .remote_blocks = pb->remote_blocks,
	    .slice = pb->slice != NULL ? out_slice : NULL,
	};
	return 0;
}

int kvx_decode_ops(const struct kvx_config *config, const Kvxp__OpList *pb,
		   struct kvx_op_list *out_list, struct kvx_why *why)
{
	size_t n = pb->n_local_offsets;

	if (n > config->ops || pb->n_remote_offsets > config->ops || pb->n_lens > config->ops)
		return kvx_why(why, -EMSGSIZE,
			       "%zu ops, at most %" PRIu32
			       " per request are allowed ([limits] ops): split the transfer",
			       n > pb->n_remote_offsets ? n : pb->n_remote_offsets, config->ops);
	if (n != pb->n_remote_offsets)
		return kvx_why(why, -EINVAL, "%zu local offsets, but %zu remote ones", n,
			       pb->n_remote_offsets);
	if (n == 0)
		return kvx_why(why, -EINVAL, "empty op list");
	if (pb->n_lens != n && pb->n_lens != 1)
		return kvx_why(why, -EINVAL, "%zu lengths for %zu ops: one each, or one for all",
			       pb->n_lens, n);
	*out_list = (struct kvx_op_list){
	    .n_ops = (uint32_t)n,
	    .n_lens = (uint32_t)pb->n_lens,
	    .local_offsets = pb->local_offsets,
	    .remote_offsets = pb->remote_offsets,
	    .lens = pb->lens,
	};
	return 0;
}

int kvx_decode_lists(const struct kvx_config *config, const Kvxp__BlockList *blocks,
		     const Kvxp__OpList *ops, bool may_be_empty,
		     struct kvx_decoded_lists *out_lists, struct kvx_why *why)
{
	int err = 0;

	out_lists->blocks = NULL;
	out_lists->ops = NULL;
	if (blocks != NULL && ops != NULL)
		return kvx_why(why, -EINVAL, "a block list and an op list: give one of them");
	if (blocks == NULL && ops == NULL && !may_be_empty)
		return kvx_why(why, -EINVAL, "neither a block list nor an op list");
	if (blocks != NULL) {
		err = kvx_decode_blocks(config, blocks, &out_lists->block_list, &out_lists->slice,
					why);
		out_lists->blocks = &out_lists->block_list;
	} else if (ops != NULL) {
		err = kvx_decode_ops(config, ops, &out_lists->op_list, why);
		out_lists->ops = &out_lists->op_list;
	}
	return err;
}

int kvx_decode_wait(const Kvxp__Wait *pb, struct kvx_wait *out_wait, uint64_t *out_region,
		    struct kvx_why *why)
{
	memset(out_wait, 0, sizeof(*out_wait));
	*out_region = 0;
	if (pb == NULL)
		return 0;
	switch (pb->kind) {
	case KVXP__WAIT_KIND__WAIT_EVENT:
		if (pb->event.len != KVX_GPU_IPC_BYTES)
			return kvx_why(why, -EINVAL, "wait: an event of %zu bytes, it has %d",
				       pb->event.len, KVX_GPU_IPC_BYTES);
		out_wait->kind = KVX_WAIT_EVENT;
		out_wait->event = pb->event.data;
		break;
	case KVXP__WAIT_KIND__WAIT_FLAG:
		if (pb->region == 0)
			return kvx_why(why, -EINVAL,
				       "wait: a flag must name the region that it is in");
		out_wait->kind = KVX_WAIT_FLAG;
		out_wait->offset = pb->offset;
		out_wait->value = pb->value;
		break;
	default:
		return kvx_why(why, -EINVAL, "wait: kind %d: must be 1 (event) or 2 (flag)",
			       (int)pb->kind);
	}
	*out_region = pb->region;
	return 0;
}

uint64_t kvx_decoded_bytes(const struct kvx_decoded_lists *lists)
{
	if (lists->blocks != NULL)
		return 2ull * lists->blocks->n_blocks * sizeof(uint32_t);
	if (lists->ops != NULL)
		return (2ull * lists->ops->n_ops + lists->ops->n_lens) * sizeof(uint64_t);
	return 0;
}

static int decode_plane(const Kvxp__Plane *pb, uint32_t index, struct kvx_plane *out,
			struct kvx_why *why)
{
	char what[32];

	snprintf(what, sizeof(what), "name of plane %" PRIu32, index);
	out->offset = pb->offset;
	out->block_stride = pb->block_stride;
	out->block_bytes = pb->block_bytes;
	out->n_blocks = pb->n_blocks;
	return kvx_decode_text(pb->name, what, out->name, sizeof(out->name), why);
}

int kvx_decode_layout(const struct kvx_config *config, const Kvxp__Layout *pb, uint64_t len_bytes,
		      struct kvx_layout **out_layout, struct kvx_why *why)
{
	struct kvx_layout *layout;
	uint32_t i;
	int err = 0;

	if (pb == NULL || pb->n_planes == 0) {
		*out_layout = NULL;
		return 0;
	}
	if (pb->n_planes > config->planes)
		return kvx_why(why, -EMSGSIZE,
			       "%zu planes, at most %" PRIu32 " are allowed ([limits] planes)",
			       pb->n_planes, config->planes);
	layout = kvx_layout_create((uint32_t)pb->n_planes);
	if (layout == NULL)
		return kvx_why(why, -ENOMEM, "no memory for a layout of %zu planes", pb->n_planes);
	for (i = 0; err == 0 && i < layout->n_planes; i++)
		err = decode_plane(pb->planes[i], i, &layout->planes[i], why);
	if (err == 0)
		err = kvx_layout_check(layout, len_bytes, why);
	if (err < 0) {
		kvx_layout_destroy(layout);
		return err;
	}
	*out_layout = layout;
	return 0;
}

int kvx_decode_payload(const ProtobufCBinaryData *data, struct kvx_why *why)
{
	if (data->len > KVX_PAYLOAD_MAX)
		return kvx_why(why, -EMSGSIZE, "payload of %zu bytes, at most %u are allowed",
			       data->len, KVX_PAYLOAD_MAX);
	return 0;
}

/* Length of the UTF-8 sequence at s; 0: it is none, or a control character. */
static size_t text_sequence(const unsigned char *s)
{
	size_t n = 0;
	size_t i;

	if (s[0] >= 0x20 && s[0] < 0x7f)
		return 1;
	if (s[0] >= 0xc3 && s[0] < 0xe0) /* c2 80..9f are controls: the rest of c2 is no loss */
		n = 2;
	else if (s[0] >= 0xe1 && s[0] < 0xf0 && s[0] != 0xed) /* no overlong forms, no surrogates */
		n = 3;
	else if (s[0] >= 0xf1 && s[0] < 0xf4)
		n = 4;
	for (i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	}
	return n;
}

int kvx_decode_publish(const char *name, struct kvx_why *why)
{
	size_t n = 0;

	while (name[n] >= '!' && name[n] <= '~' && n < KVX_PUBLISH_BYTES)
		n++;
	if (name[n] == '\0' && n > 0 && n < KVX_PUBLISH_BYTES)
		return 0;
	return kvx_why(why, -EINVAL,
		       "a published name has 1 to %d characters of printable ASCII, none of them "
		       "blank",
		       KVX_PUBLISH_BYTES - 1);
}

int kvx_decode_text(const char *text, const char *what, char *out, size_t out_bytes,
		    struct kvx_why *why)
{
	const unsigned char *s = (const unsigned char *)text;
	size_t len = strlen(text);
	size_t i = 0;

	if (len >= out_bytes)
		return kvx_why(why, -EINVAL, "%s is %zu bytes long, at most %zu are allowed", what,
			       len, out_bytes - 1);
	while (i < len) {
		size_t n = text_sequence(s + i);

		if (n == 0) {
			out[i++] = '?';
			continue;
		}
		memcpy(out + i, s + i, n);
		i += n;
	}
	out[len] = '\0';
	return 0;
}
