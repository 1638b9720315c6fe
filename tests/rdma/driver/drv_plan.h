/* Which bytes a transfer moves, and who may use which cells of a zone. A zone is cut into cells of
 * 4 KiB; an extent is one op: it begins `edge` bytes into its first cell, and what is left of its
 * cells stays canary. */
#ifndef KVX_RDMA_DRV_PLAN_H
#define KVX_RDMA_DRV_PLAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kvxfer/client.h"

#define DRV_CELL  4096u
#define DRV_LARGE 65536u /* block size of the second plane */
/* Of every engine's region. Both planes cover all of it: drives name blocks by the cell. */
extern const struct kvxfer_layout drv_layout;
#define DRV_MAX_EXTENT (8u << 20)
#define DRV_MAX_EXTS   512u

struct drv_ext {
	uint32_t cell; /* of the zone */
	uint32_t len;
	uint32_t edge; /* 0 .. 4088, a multiple of 8 */
};
uint32_t drv_ext_cells(const struct drv_ext *ext);
uint64_t drv_ext_offset(const struct drv_ext *ext); /* from the start of the zone */

enum drv_form { DRV_FORM_OPS, DRV_FORM_BLOCKS, DRV_FORM_LARGE, DRV_FORM_STREAM };

struct drv_plan {
	uint64_t tag;
	uint64_t generation; /* of the descriptor that it was submitted with */
	uint32_t op;         /* enum kvxfer_op */
	uint32_t n;
	struct drv_ext exts[DRV_MAX_EXTS];
};
/* Writes what travels over the channel; length. buf has DRV_PLAN_MAX bytes. */
#define DRV_PLAN_MAX (24u + DRV_MAX_EXTS * 12u)
size_t drv_plan_pack(const struct drv_plan *plan, void *buf);
/* false: not a plan, or one that leaves a zone of n_cells cells. */
bool drv_plan_unpack(struct drv_plan *plan, const void *buf, size_t len, uint32_t n_cells);

/* Cells in use, one bit each. */
struct drv_cells {
	uint64_t *bits;
	uint32_t n, next, n_used;
};
void drv_cells_init(struct drv_cells *cells, uint32_t n);
void drv_cells_reset(struct drv_cells *cells);
void drv_cells_fini(struct drv_cells *cells);
/* A run of n free cells that begins at a multiple of align; UINT32_MAX: there is none. */
uint32_t drv_cells_take(struct drv_cells *cells, uint32_t n, uint32_t align);
void drv_cells_give(struct drv_cells *cells, uint32_t first, uint32_t n);

#endif
