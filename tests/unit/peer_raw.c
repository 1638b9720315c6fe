/* The peer by hand of peer_rig.h. */
#include "peer_rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

void rig_raw_open(struct peer_rig *rig, const struct rig_side *to, struct rig_raw *raw)
{
	raw->rig = rig;
	raw->fd = rig_connect(to);
	cr_assert_geq(raw->fd, 0);
	cr_assert_eq(kvx_reader_create(1u << 20, &raw->reader), 0);
}

void rig_raw_close(struct rig_raw *raw)
{
	kvx_reader_destroy(raw->reader);
	close(raw->fd);
}

void rig_raw_bytes(struct rig_raw *raw, const void *bytes, size_t len)
{
	cr_assert_eq(send(raw->fd, bytes, len, MSG_NOSIGNAL), (ssize_t)len);
}

void rig_raw_send(struct rig_raw *raw, uint16_t type, const void *message)
{
	uint8_t buf[8192 + KVX_WIRE_HDR_BYTES];
	size_t len = protobuf_c_message_get_packed_size(message);
	const struct kvx_wire_hdr hdr = {.len_bytes = (uint32_t)len, .type = type};

	cr_assert_leq(len, 8192);
	kvx_wire_hdr_pack(&hdr, buf);
	protobuf_c_message_pack(message, buf + KVX_WIRE_HDR_BYTES);
	rig_raw_bytes(raw, buf, len + KVX_WIRE_HDR_BYTES);
}

int rig_raw_recv(struct rig_raw *raw, uint8_t *buf, size_t size, size_t *out_len)
{
	struct kvx_msg msg;

	for (unsigned i = 0; i < 8000; i++) {
		int n;

		while ((n = kvx_reader_next(raw->reader, &msg)) == 1) {
			if (msg.type == KVXP__PEER_FRAME_TYPE__PEER_HEARTBEAT)
				continue;
			cr_assert_leq(msg.len_bytes, size);
			memcpy(buf, msg.body, msg.len_bytes);
			*out_len = msg.len_bytes;
			return msg.type;
		}
		cr_assert_eq(n, 0);
		n = kvx_reader_fill(raw->reader, raw->fd);
		if (n == 0 || (n < 0 && n != -EAGAIN))
			return 0;
		if (n == -EAGAIN)
			rig_turn(raw->rig);
	}
	return -1;
}

bool rig_raw_wait(struct rig_raw *raw, int type, uint8_t *buf, size_t size, size_t *out_len)
{
	for (unsigned i = 0; i < 100; i++) {
		int got = rig_raw_recv(raw, buf, size, out_len);

		if (got == type)
			return true;
		if (got <= 0)
			return false;
	}
	return false;
}

Kvxp__PeerHello rig_raw_hello_message(uint8_t *id16, uint64_t epoch)
{
	static char *transports[] = {(char *)"fake"};
	Kvxp__PeerHello hello = KVXP__PEER_HELLO__INIT;

	hello.version_min = 1;
	hello.version_max = 1;
	hello.node_id.data = id16;
	hello.node_id.len = 16;
	hello.epoch = epoch;
	hello.transports = transports;
	hello.n_transports = 1;
	hello.lost_ms = 300;
	return hello;
}

int rig_raw_hello(struct rig_raw *raw, uint8_t id, uint64_t epoch)
{
	uint8_t id16[16], buf[4096];
	Kvxp__PeerHello hello = rig_raw_hello_message(id16, epoch);
	size_t len;

	memset(id16, id, sizeof(id16));
	rig_raw_send(raw, KVXP__PEER_FRAME_TYPE__PEER_HELLO, &hello);
	return rig_raw_recv(raw, buf, sizeof(buf), &len);
}
