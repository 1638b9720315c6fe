/* The two engines' own connection, beside kvxfer: one TCP connection with framed messages. It
 * brings descriptors over, says what is about to be moved, and gives cells back once they were
 * checked. */
#ifndef KVX_RDMA_DRV_CHAN_H
#define KVX_RDMA_DRV_CHAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum drv_msg {
	DRV_MSG_HELLO = 1, /* drive: its name */
	DRV_MSG_DESC,      /* serve: struct drv_desc and the descriptor */
	DRV_MSG_GONE,      /* serve: the descriptor is void */
	DRV_MSG_PLAN,      /* drive: a transfer is about to be submitted */
	DRV_MSG_DROP,      /* drive: tag (u64): it was not accepted */
	DRV_MSG_NOTE,      /* drive: struct drv_note: it has ended there */
	DRV_MSG_FREE,      /* serve: tag: its cells were checked and are free */
	DRV_MSG_BYE,       /* drive: all have ended */
	DRV_MSG_SUMMARY,   /* serve: key=value lines */
	DRV_MSG_MARK,      /* serve: a name: the moment has come */
	DRV_MSG_MARKED,    /* drive: noted */
};

struct drv_desc {
	uint64_t generation;  /* of this registration */
	uint64_t zone_offset; /* of this drive's cells in the region */
	uint64_t source_offset, source_bytes, source_seed;
	uint32_t drive; /* number of this drive: the high part of its tags */
	uint32_t zone_cells;
	uint32_t len; /* of the descriptor, which follows */
	uint32_t pad;
};

/* A tag names one transfer of a run: drive, sequence number, whether it is a WRITE. */
static inline uint64_t drv_tag(uint32_t drive, uint64_t seq, bool write)
{
	return (uint64_t)drive << 40 | seq << 1 | write;
}
static inline uint32_t drv_tag_drive(uint64_t tag)
{
	return (uint32_t)(tag >> 40);
}
static inline uint64_t drv_tag_seq(uint64_t tag)
{
	return (tag & 0xffffffffffull) >> 1;
}
static inline bool drv_tag_write(uint64_t tag)
{
	return tag & 1;
}

struct drv_note {
	uint64_t tag;
	int32_t status;
	uint32_t op;
};

struct drv_chan {
	int fd; /* -1: closed */
	uint8_t *in, *out;
	size_t in_len, in_used, in_max, out_len, out_max;
};
/* "HOST:PORT". Blocks. */
int drv_chan_listen(const char *addr);
/* -errno when nobody listens there. */
int drv_chan_connect(struct drv_chan *chan, const char *addr, int timeout_ms);
void drv_chan_accept(struct drv_chan *chan, int listen_fd);
void drv_chan_close(struct drv_chan *chan);
void drv_chan_send(struct drv_chan *chan, enum drv_msg type, const void *data, size_t len);
/* Sends and receives what goes without waiting; false: the other side is gone. */
bool drv_chan_pump(struct drv_chan *chan);
/* Sends only; what the socket does not take stays. */
void drv_chan_pump_out(struct drv_chan *chan);
short drv_chan_events(const struct drv_chan *chan); /* what to poll for */
/* Next whole message, or NULL; valid until the next pump. */
const void *drv_chan_next(struct drv_chan *chan, enum drv_msg *out_type, size_t *out_len);

#endif
