/* From unpacked messages to what the layers below take: every count, length and combination is
 * checked here, once, against the limits of the configuration; nothing is copied (arrays are
 * borrowed from the message). Offsets are checked by the plan, layouts by kvx_layout_check(). Pure.
 */
#ifndef KVX_DECODE_H
#define KVX_DECODE_H

#include "config.h"
#include "kvxfer.pb-c.h"
#include "mem/layout.h"
#include "xfer/gate.h"
#include "xfer/plan.h"

/* 0; -EINVAL, -EMSGSIZE with the reason. *out_slice is used when the list has one. */
int kvx_decode_blocks(const struct kvx_config *config, const Kvxp__BlockList *pb,
		      struct kvx_block_list *out_list, struct kvx_slice *out_slice,
		      struct kvx_why *why);
int kvx_decode_ops(const struct kvx_config *config, const Kvxp__OpList *pb,
		   struct kvx_op_list *out_list, struct kvx_why *why);

/* What a submit or an append asks for: at most one of the two is not NULL. */
struct kvx_decoded_lists {
	struct kvx_block_list block_list;
	struct kvx_slice slice;
	struct kvx_op_list op_list;
	const struct kvx_block_list *blocks; /* NULL or &block_list */
	const struct kvx_op_list *ops;       /* NULL or &op_list */
};
/* may_be_empty: a streaming submit. */
int kvx_decode_lists(const struct kvx_config *config, const Kvxp__BlockList *blocks,
		     const Kvxp__OpList *ops, bool may_be_empty,
		     struct kvx_decoded_lists *out_lists, struct kvx_why *why);
/* The memory that the lists take while they wait, but for what each costs beside its arrays. */
uint64_t kvx_decoded_bytes(const struct kvx_decoded_lists *lists);

/* What a list waits for, and the number of the region that it names: the caller finds that one.
 * pb NULL: *out_wait is of kind NONE. -EINVAL. */
int kvx_decode_wait(const Kvxp__Wait *pb, struct kvx_wait *out_wait, uint64_t *out_region,
		    struct kvx_why *why);

/* Makes and checks a layout for a region of len_bytes; *out_layout is NULL when there is none. */
int kvx_decode_layout(const struct kvx_config *config, const Kvxp__Layout *pb, uint64_t len_bytes,
		      struct kvx_layout **out_layout, struct kvx_why *why);

/* Makes what a region of GPU memory is made of. The fds of its bases are
 * indices into the frame's: the caller takes them out of it. Where the frame has lost its fds none
 * of them has one. *out_gpu is the caller's. -EINVAL, -EBADF, -EMSGSIZE, -ENOMEM. */
struct kvx_gpu_mem;
struct kvx_msg;
int kvx_decode_gpu(const struct kvx_config *config, const Kvxp__GpuMemory *pb,
		   const struct kvx_msg *msg, struct kvx_gpu_mem **out_gpu, struct kvx_why *why);

/* Is a user's payload or message of allowed length? 0 or -EMSGSIZE. */
int kvx_decode_payload(const ProtobufCBinaryData *data, struct kvx_why *why);

/* Can a region be published under the name? 0 or -EINVAL. */
int kvx_decode_publish(const char *name, struct kvx_why *why);

/* Copies a text of a client for printing: control characters and what is not UTF-8 become '?'.
 * 0, or -EINVAL when it is longer than out_bytes - 1. */
int kvx_decode_text(const char *text, const char *what, char *out, size_t out_bytes,
		    struct kvx_why *why);

#endif
