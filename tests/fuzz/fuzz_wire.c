/* Fuzzes the frame reader: whatever the bytes and however they are cut, the frames are the same as
 * those of a plain walk over all bytes, and an error stays an error. The first byte of the input
 * seeds the cuts. */
#include "proto/kvx_wire.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BODY  4096u
#define MANY_TYPE 3u /* its frames may carry many fds */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(int ok)
{
	if (!ok)
		abort();
}

/* The next frame of the plain walk: 1 with its body, 0 when incomplete, or the error. */
static int walk_next(const uint8_t *data, size_t size, size_t *at, struct kvx_wire_hdr *out_hdr)
{
	if (size - *at < KVX_WIRE_HDR_BYTES)
		return 0;
	kvx_wire_hdr_unpack(data + *at, out_hdr);
	if (out_hdr->len_bytes > MAX_BODY)
		return -EMSGSIZE;
	if (out_hdr->n_fds > (out_hdr->type == MANY_TYPE ? KVX_WIRE_MAX_FDS : KVX_WIRE_FEW_FDS))
		return -EPROTO;
	if (size - *at - KVX_WIRE_HDR_BYTES < out_hdr->len_bytes)
		return 0;
	if (out_hdr->n_fds > 0)
		return -EPROTO; /* none can come from memory */
	*at += KVX_WIRE_HDR_BYTES + out_hdr->len_bytes;
	return 1;
}

static int reader_drain(struct kvx_reader *reader, const uint8_t *data, size_t size, size_t *at)
{
	struct kvx_wire_hdr hdr;
	struct kvx_msg msg;
	int err;

	while ((err = kvx_reader_next(reader, &msg)) == 1) {
		check(walk_next(data, size, at, &hdr) == 1);
		check(msg.type == hdr.type && msg.len_bytes == hdr.len_bytes && msg.n_fds == 0);
		check(memcmp(msg.body, data + *at - hdr.len_bytes, hdr.len_bytes) == 0);
		kvx_msg_fini(&msg);
	}
	return err;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kvx_reader *reader;
	struct kvx_wire_hdr hdr;
	size_t at = 0, fed = 0;
	unsigned cut;
	int err = 0;

	if (size == 0)
		return 0;
	cut = data[0];
	data++;
	size--;
	check(kvx_reader_create(MAX_BODY, &reader) == 0);
	kvx_reader_allow_fds(reader, MANY_TYPE);
	while (fed < size && err == 0) {
		size_t n = 1 + cut % 61;

		cut = cut * 1103515245u + 12345u;
		if (n > size - fed)
			n = size - fed;
		check(kvx_reader_feed(reader, data + fed, n) == 0);
		fed += n;
		err = reader_drain(reader, data, size, &at);
	}
	check(err == 0 || kvx_reader_next(reader, &(struct kvx_msg){0}) == err);
	check(walk_next(data, fed, &at, &hdr) == err);
	kvx_reader_destroy(reader);
	return 0;
}
