/* Descriptors: see desc.h. Pure packing and unpacking of bytes that come from other processes and
 * other nodes: nothing here trusts them. A checksum catches damage (truncated copies, text
 * conversions); it is no protection, the token is. Any thread. */
#include "xfer/desc.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#define DESC_MAGIC   "KVXD"
#define DESC_VERSION 1

/* The bytes: all little-endian, no padding. */
struct desc_wire {
	char magic[4];
	uint16_t version;
	uint16_t size_bytes;
	uint8_t node_id[KVX_NODE_ID_BYTES];
	uint64_t epoch;
	uint64_t region;
	uint64_t len_bytes;
	uint32_t access;
	uint32_t mem_kind;
	uint8_t token[KVX_TOKEN_BYTES];
	char addr[KVX_PEER_ADDR_BYTES];
	uint8_t reserved[16]; /* zero */
	uint64_t checksum;    /* of everything before it */
};
static_assert(sizeof(struct desc_wire) == KVX_DESC_BYTES, "descriptor size is wire format");
static_assert(offsetof(struct desc_wire, token) == 56, "descriptor layout is wire format");
static_assert(offsetof(struct desc_wire, checksum) == 216, "descriptor layout is wire format");

/* FNV-1a, 64 bits. */
static uint64_t desc_checksum(const struct desc_wire *wire)
{
	const uint8_t *bytes = (const uint8_t *)wire;
	uint64_t sum = 0xcbf29ce484222325ull;
	for (size_t i = 0; i < offsetof(struct desc_wire, checksum); i++)
		sum = (sum ^ bytes[i]) * 0x100000001b3ull;
	return sum;
}

void kvx_desc_of(struct kvx_desc *out_desc, const struct kvx_region *region,
		 const uint8_t node_id[KVX_NODE_ID_BYTES], uint64_t epoch)
{
	*out_desc = (struct kvx_desc){
	    .epoch = epoch,
	    .region = region->id,
	    .len_bytes = region->mem.len_bytes,
	    .access = region->access,
	    .mem_kind = region->mem.ops->kind,
	};
	memcpy(out_desc->node_id, node_id, KVX_NODE_ID_BYTES);
	memcpy(out_desc->token, region->token, sizeof(out_desc->token));
}

void kvx_desc_pack(const struct kvx_desc *desc, uint8_t out[KVX_DESC_BYTES])
{
	struct desc_wire wire;
	memset(&wire, 0, sizeof(wire));
	memcpy(wire.magic, DESC_MAGIC, sizeof(wire.magic));
	wire.version = htole16(DESC_VERSION);
	wire.size_bytes = htole16(KVX_DESC_BYTES);
	memcpy(wire.node_id, desc->node_id, sizeof(wire.node_id));
	wire.epoch = htole64(desc->epoch);
	wire.region = htole64(desc->region);
	wire.len_bytes = htole64(desc->len_bytes);
	wire.access = htole32(desc->access);
	wire.mem_kind = htole32(desc->mem_kind);
	memcpy(wire.token, desc->token, sizeof(wire.token));
	memcpy(wire.addr, desc->addr, strnlen(desc->addr, sizeof(wire.addr) - 1));
	wire.checksum = htole64(desc_checksum(&wire));
	memcpy(out, &wire, sizeof(wire));
}

int kvx_desc_unpack(const void *bytes, size_t len, struct kvx_desc *out_desc, struct kvx_why *why)
{
	struct desc_wire wire;
	if (len < sizeof(wire.magic) + sizeof(wire.version) ||
	    memcmp(bytes, DESC_MAGIC, sizeof(wire.magic)) != 0)
		return kvx_why(why, -EINVAL,
			       "these %zu bytes are not a region descriptor: pass on exactly what "
			       "the export gave",
			       len);
	uint16_t version;
	memcpy(&version, (const uint8_t *)bytes + sizeof(wire.magic), sizeof(version));
	if (le16toh(version) != DESC_VERSION)
		return kvx_why(why, -EINVAL,
			       "descriptor of version %u, this daemon reads version %u: run the "
			       "same release on both nodes",
			       le16toh(version), DESC_VERSION);
	if (len != sizeof(wire))
		return kvx_why(why, -EINVAL, "descriptor of %zu bytes instead of %zu: it was cut",
			       len, sizeof(wire));
	memcpy(&wire, bytes, sizeof(wire));
	if (le64toh(wire.checksum) != desc_checksum(&wire))
		return kvx_why(why, -EINVAL, "damaged descriptor: its checksum is wrong");
	if (le16toh(wire.size_bytes) != sizeof(wire) ||
	    memchr(wire.addr, '\0', sizeof(wire.addr)) == NULL || le64toh(wire.region) == 0 ||
	    le64toh(wire.len_bytes) == 0)
		return kvx_why(why, -EINVAL, "malformed descriptor: its fields contradict");
	memset(out_desc, 0, sizeof(*out_desc));
	memcpy(out_desc->node_id, wire.node_id, sizeof(wire.node_id));
	out_desc->epoch = le64toh(wire.epoch);
	out_desc->region = le64toh(wire.region);
	out_desc->len_bytes = le64toh(wire.len_bytes);
	out_desc->access = le32toh(wire.access);
	out_desc->mem_kind = le32toh(wire.mem_kind);
	memcpy(out_desc->token, wire.token, sizeof(wire.token));
	memcpy(out_desc->addr, wire.addr, sizeof(wire.addr));
	return 0;
}
