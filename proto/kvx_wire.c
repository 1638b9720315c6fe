/* Frame headers and the ownership of a message's fds; the reader and the writer have a file each.
 * Pure but for close(2); the thread that owns the message. */
#include "proto/kvx_wire.h"

#include <unistd.h>

void kvx_wire_hdr_pack(const struct kvx_wire_hdr *hdr, uint8_t out[KVX_WIRE_HDR_BYTES])
{
	out[0] = (uint8_t)hdr->len_bytes;
	out[1] = (uint8_t)(hdr->len_bytes >> 8);
	out[2] = (uint8_t)(hdr->len_bytes >> 16);
	out[3] = (uint8_t)(hdr->len_bytes >> 24);
	out[4] = (uint8_t)hdr->type;
	out[5] = (uint8_t)(hdr->type >> 8);
	out[6] = (uint8_t)hdr->n_fds;
	out[7] = (uint8_t)(hdr->n_fds >> 8);
}

void kvx_wire_hdr_unpack(const uint8_t in[KVX_WIRE_HDR_BYTES], struct kvx_wire_hdr *out_hdr)
{
	out_hdr->len_bytes =
	    (uint32_t)in[0] | (uint32_t)in[1] << 8 | (uint32_t)in[2] << 16 | (uint32_t)in[3] << 24;
	out_hdr->type = (uint16_t)(in[4] | in[5] << 8);
	out_hdr->n_fds = (uint16_t)(in[6] | in[7] << 8);
}

int kvx_msg_take_fd(struct kvx_msg *msg, unsigned i)
{
	int fd;

	if (i >= msg->n_fds)
		return -1;
	fd = msg->fds[i];
	msg->fds[i] = -1;
	return fd;
}

void kvx_msg_fini(struct kvx_msg *msg)
{
	for (unsigned i = 0; i < msg->n_fds; i++)
		if (msg->fds[i] >= 0)
			close(msg->fds[i]);
	msg->n_fds = 0;
}
