/* Checks of what a transfer asks for, before it becomes part of its plan: every span lies in both
 * regions, and no sum wraps. Pure: in time of the lists, not of the bytes or planes x blocks. */
#ifndef KVX_PLAN_CHECK_H
#define KVX_PLAN_CHECK_H

#include "xfer/plan.h"

/* 0, and how many bytes the list asks for; errors as of kvx_plan_add_*(). */
int plan_check_blocks(const struct kvx_plan_side *local, const struct kvx_plan_side *remote,
		      const struct kvx_block_list *list, uint64_t *out_bytes, struct kvx_why *why);
int plan_check_ops(const struct kvx_plan_side *local, const struct kvx_plan_side *remote,
		   const struct kvx_op_list *list, uint64_t *out_bytes, struct kvx_why *why);
int plan_too_big(struct kvx_why *why); /* a sum would wrap: -ERANGE */

#endif
