/* Region descriptors: versioned, fixed-size, little-endian bytes that name a region to other
 * clients anywhere. */
#ifndef KVX_DESC_H
#define KVX_DESC_H

#include <stddef.h>
#include <stdint.h>

#include "mem/region.h"

#define KVX_NODE_ID_BYTES   16
#define KVX_PEER_ADDR_BYTES 128 /* "host:port" with the NUL */
#define KVX_DESC_BYTES      224

struct kvx_desc {
	uint8_t node_id[KVX_NODE_ID_BYTES];
	uint64_t epoch;
	uint64_t region;
	uint64_t len_bytes;
	uint32_t access;
	uint32_t mem_kind;
	uint8_t token[KVX_TOKEN_BYTES];
	char addr[KVX_PEER_ADDR_BYTES]; /* where the owner's daemon listens for peers; "": it does
					   not */
};
/* Of a region here, but for addr: "". */
void kvx_desc_of(struct kvx_desc *out_desc, const struct kvx_region *region,
		 const uint8_t node_id[KVX_NODE_ID_BYTES], uint64_t epoch);
void kvx_desc_pack(const struct kvx_desc *desc,
		   uint8_t out[KVX_DESC_BYTES]); /* with magic, version and a checksum */
/* 0; -EINVAL: not a descriptor, damaged, or of another version (said in *why). */
int kvx_desc_unpack(const void *bytes, size_t len, struct kvx_desc *out_desc, struct kvx_why *why);

#endif
