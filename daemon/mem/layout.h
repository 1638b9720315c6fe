/* Layouts: how blocks lie in a region. Immutable once made. */
#ifndef KVX_LAYOUT_H
#define KVX_LAYOUT_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/kvx_err.h"

#define KVX_PLANE_NAME_BYTES 33 /* with the NUL */

struct kvx_plane {
	uint64_t offset;
	uint64_t block_stride;
	uint64_t block_bytes;
	uint32_t n_blocks;
	char name[KVX_PLANE_NAME_BYTES];
};
struct kvx_layout {
	uint32_t n_planes;
	struct kvx_plane planes[];
};

/* All planes zeroed. NULL: no memory. n_planes is bounded by the caller's limits. */
struct kvx_layout *kvx_layout_create(uint32_t n_planes);
void kvx_layout_destroy(struct kvx_layout *layout);
/* Checks every plane against a region of len bytes and fills n_blocks where it is 0. 0; -EINVAL
 * (zero block, stride < block), -ERANGE (leaves the region), with the plane and the numbers in
 * *why. No sum can wrap. */
int kvx_layout_check(struct kvx_layout *layout, uint64_t region_bytes, struct kvx_why *why);
/* Same number of planes with the same block_bytes each? 0 or -EMEDIUMTYPE with "plane 3 (k):
 * block_bytes 4096 here, 8192 there". */
int kvx_layout_compare(const struct kvx_layout *here, const struct kvx_layout *there,
		       struct kvx_why *why);

#endif
