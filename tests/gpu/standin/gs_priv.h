/* Inside the GPU stand-in: what one process has. The table of ranges and the devices' records are
 * guarded by the lock behind gs_table_lock(). */
#ifndef KVX_GS_PRIV_H
#define KVX_GS_PRIV_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "gs.h"
#include "gs_shared.h"

/* Memory that this process can name. Device memory has an address that is mapped to nothing, and a
 * second one, `bytes_at`, that only the stand-in uses. */
struct gs_range {
	uint8_t *base;
	uint8_t *bytes_at;
	size_t len;
	uint64_t id; /* no other range of this process ever has it */
	enum gs_kind kind;
	unsigned dev; /* the node's number */
	uint32_t generation;
	uint32_t alloc;         /* index in the node's table; device kinds but VMM */
	uint32_t map;           /* index of the mapping, GS_IPC */
	uint64_t alloc_id;      /* GS_IPC */
	uint32_t n_opens;       /* GS_IPC */
	_Atomic uint32_t n_ops; /* queued or running that touch it */
	bool own_pages;         /* GS_HOST: allocated here */
};

/* The address of the range in any process: NULL when no range of this process has it. Holds the
 * range (n_ops) until gs_range_put(). */
struct gs_range *gs_range_take(const void *ptr, size_t bytes);
void gs_range_put(struct gs_range *range);
static inline uint8_t *gs_range_at(const struct gs_range *range, const void *ptr)
{
	return range->bytes_at + ((const uint8_t *)ptr - range->base);
}
void gs_table_lock(void);
void gs_table_unlock(void);
struct gs_range *gs_range_find(const void *ptr, size_t bytes); /* with the lock */
struct gs_range *gs_range_nth(unsigned i);                     /* with the lock; NULL: the end */
/* New address space for it; NULL: there is none. fd: the memory behind it, -1: of its own. */
struct gs_range *gs_range_add(enum gs_kind kind, unsigned dev, size_t len, int fd);
bool gs_range_insert(struct gs_range *range); /* one made elsewhere; false: overlaps another */
/* Frees it, once no op uses it. */
void gs_range_remove(struct gs_range *range);
/* Waits until no op uses it. */
void gs_range_wait(struct gs_range *range);
/* Out of the node's accounts. */
void gs_alloc_leave(const struct gs_range *range);
void gs_ipc_drop(struct gs_range *range);

/* The node's number of a device of this process, and back; -1: none. */
int gs_dev_node(int dev);
int gs_dev_here(unsigned dev);
/* The current device, the node's number. */
unsigned gs_dev_current(void);
/* 0, or the error that every call for this device gives in this process. */
int gs_dev_error(unsigned dev);
/* May `dev` reach memory of `other`, as far as this process has enabled it? */
bool gs_dev_reaches(unsigned dev, unsigned other);
bool gs_dev_can_reach(unsigned dev, unsigned other); /* may it be enabled? */
void gs_dev_enable(unsigned dev, unsigned other);    /* as lazy enabling by an IPC mapping does */

/* Counts up when this process resets the device. */
unsigned gs_dev_epoch(unsigned dev);
enum gs_flavor gs_flavor(void);
/* Without an error: takes the fault of the call into account and who is asked. */
int gs_enter_dev(enum standin_call call, unsigned dev);

/* --- streams --- */

struct gs_piece {
	struct gs_copy copy;
	struct gs_range *dst, *src; /* NULL: memory that is not page-locked */
};
enum gs_op_kind { GS_OP_COPY, GS_OP_SET, GS_OP_RECORD, GS_OP_WAIT, GS_OP_LIST };
struct gs_op {
	struct gs_op *next;
	enum gs_op_kind kind;
	struct gs_event *event;
	uint64_t seq;   /* of the event */
	uint64_t value; /* SET: the byte; LIST: entries of the list */
	size_t n_pieces;
	struct gs_piece pieces[]; /* SET: the first one's destination; LIST: its source, the list */
};
struct gs_op *gs_op_make(enum gs_op_kind kind, size_t n_pieces);
void gs_op_drop(struct gs_op *op); /* puts the ranges, frees it */

struct gs_event_state {
	_Atomic uint64_t recorded, completed;
};
struct gs_event {
	uint32_t magic;
	unsigned dev, epoch;
	unsigned flags;
	_Atomic uint32_t n_refs;
	_Atomic uint64_t completed_ns;
	struct gs_event_state own;
	struct gs_shared_event *shared; /* NULL: own */
	struct gs_event *next;          /* of all that this process ever made */
};
bool gs_event_hold(struct gs_event *event); /* false: not one that lives */
void gs_event_put(struct gs_event *event);
uint64_t gs_event_recorded(struct gs_event *event);
void gs_event_complete(struct gs_event *event, uint64_t seq);
bool gs_event_reached(struct gs_event *event, uint64_t seq);

/* Resolves NULL and the special values; NULL: not a stream that lives (noted as a violation). */
struct gs_stream *gs_stream_get(struct gs_stream *stream);
unsigned gs_stream_dev(const struct gs_stream *stream);
void gs_stream_put_op(struct gs_stream *stream, struct gs_op *op);
void gs_stream_drain(struct gs_stream *stream);
/* Everything that this process has queued on a device. */
void gs_streams_drain(unsigned dev);
/* Drops it instead, and ends the streams: only what is being copied this moment is waited for.
 * After it their threads touch nothing that is shared. */
void gs_streams_abort(unsigned dev);
bool gs_stream_dropped(const struct gs_stream *stream); /* what it waits for is not needed */
/* On the stream's thread. The error that the device is lost with for this process; 0: none. */
int gs_op_run(struct gs_op *op, const struct gs_stream *stream);
void gs_dev_ruin(unsigned dev, int err); /* for this process: sticky */
/* An address range that a copy names: NULL *out_range for pageable host memory. */
int gs_resolve(const void *ptr, size_t bytes, unsigned dev, struct gs_range **out_range);
void gs_wait_us(uint32_t us);
uint64_t gs_now_ns(void);

#endif
