/* What region->reg[dom_index] points to: a region as one transport domain knows it. Written by the
 * node when it registers a region, read by transfers (mr) and by peers (mkey). */
#ifndef KVX_REG_H
#define KVX_REG_H

#include <stddef.h>
#include <stdint.h>

#include "transport/transport.h"

struct kvx_reg {
	struct kvx_mr *mr;
	uint8_t *mkey; /* owned; heap, of exactly its length */
	size_t mkey_len;
};

#endif
