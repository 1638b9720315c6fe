/* GPU memory in the fabric backend: libfabric reaches memory of the host only, so messages of GPU
 * memory are built in, and received into, page-locked buffers ("bounce" buffers), and their data is
 * copied between such a buffer and the device by copiers of that device, one for each direction.
 *
 *   dev     a device as this domain knows it: its copiers, and a helper thread for calls that may
 *           block. There as long as some of its memory is registered.
 *   buf     one page-locked buffer: room for a head, and for a message's data behind it
 *   bounce  one message on its way through a buffer:
 *             out  our WRITE, or DATA for the peer's READ:    copied, then sent
 *             in   the peer's WRITE, or DATA of our READ:     received, then copied
 *
 * Several bounces of an ep are under way at once, so that copies and the network overlap. A receive
 * that finds no buffer waits for copies, never for a peer: bounces that do wait for their peer, to
 * read what is sent or to send what it has announced, may hold three quarters of the buffers at
 * most. Outbound ones may hold half, and a peer that does not read one of each kind once they are
 * few; announced data a quarter, and beyond that it is received into the ep's own memory and moved
 * to a buffer when it has come. So both directions can be full without anyone waiting for the
 * other, and peers that stall leave buffers to the others.
 *
 * Worker thread, but for the helpers, which touch nothing but the job they were given. */
#ifndef KVX_FABRIC_GPU_H
#define KVX_FABRIC_GPU_H

#include <pthread.h>

#include "base/queue.h"
#include "mem/gpu.h"
#include "transport/fabric/fabric_priv.h"

#define FAB_TICKETS     64u /* copies of a device under way at once in one direction */
#define FAB_PIECES      KVX_GPU_COPIER_PIECES /* of one copy */
#define FAB_BOUNCE_OUT  8u                    /* copies of one message under way at once */
#define FAB_MIN_BUFS    4u
#define FAB_MAX_BOUNCES 65536u

enum fab_dev_state {
	FAB_DEV_OPENING,
	FAB_DEV_OPEN,
	FAB_DEV_FAILED,  /* its copiers could not be opened: tried again later */
	FAB_DEV_CLOSING, /* no memory of it is registered any more */
	FAB_DEV_CLOSED,  /* ... and its copiers are closed: gone with its last buffer */
};

enum fab_job_kind { FAB_JOB_OPEN, FAB_JOB_CLOSE, FAB_JOB_ALLOC, FAB_JOB_FREE };
/* A call for a dev's helper: embedded in what it works on, and the helper's until it is back. */
struct fab_job {
	struct kvx_queue_node node; /* first */
	enum fab_job_kind kind;
	struct fab_dev *dev;
	struct fab_buf *buf; /* ALLOC, FREE */
	int status;
};

struct fab_buf {
	struct fab_job job;
	struct fab_buf *next; /* in its dev's free list */
	struct fab_dev *dev;  /* that has page-locked it */
	uint8_t *addr;
	struct fid_mr *fid; /* NULL: the provider needs to know nothing of it */
	void *desc;
	bool out; /* counts among those of outbound bounces */
};

struct fab_dev {
	struct fab_dev *next;
	struct fab_gpu *gpu;
	const struct kvx_gpu_access *access;
	void *device;
	pthread_t thread;
	struct kvx_queue *todo; /* its helper's */
	struct fab_job job;     /* OPEN, CLOSE */
	enum fab_dev_state state;
	int status;        /* FAILED; -ENODEV for good: it is lost */
	int buf_status;    /* of the last ALLOC */
	uint64_t retry_ns; /* FAILED: when to try again */
	uint64_t buf_ns;   /* likewise for ALLOC */
	/* Since when OPEN, ALLOC found the device busy with others' calls; 0: they did not. */
	uint64_t open_busy_ns, alloc_busy_ns;
	uint64_t cut_ns;     /* when it was given up because its copies did not end; 0: never */
	uint64_t starved_ns; /* when somebody last found that others have all buffers; 0: never */
	unsigned n_mrs;      /* registered */
	unsigned n_bufs;     /* allocated, or being so */
	unsigned n_jobs;     /* with its helper */
	unsigned n_tickets;  /* copies under way: its copiers stay as long */
	/* Of these, in each direction; when the last one ended, or began when there was none. */
	unsigned n_under_way[2];
	uint64_t moved_ns[2];
	bool hang_told; /* in the log, since a copy last ended */
	struct fab_buf *free_bufs;
	/* One for each direction: devices copy in both at once. [1]: out of the device. */
	struct kvx_gpu_copier *copiers[2];
};

enum fab_bounce_kind {
	FAB_BOUNCE_WRITE, /* out: our WRITE */
	FAB_BOUNCE_REPLY, /* out: DATA for the peer's READ */
	FAB_BOUNCE_PLACE, /* in: the peer's WRITE */
	FAB_BOUNCE_FILL,  /* in: DATA of our READ */
	FAB_BOUNCE_KINDS,
};

enum fab_bounce_state {
	FAB_BOUNCE_FREE,
	FAB_BOUNCE_RECEIVING, /* in: announced; the library writes into the buffer */
	FAB_BOUNCE_COPYING,
	FAB_BOUNCE_READY,   /* out: to be sent */
	FAB_BOUNCE_SENDING, /* out: the library reads the buffer */
	FAB_BOUNCE_OVER,    /* given back at the end of the turn */
	FAB_BOUNCE_STUCK,   /* nobody waits for it any more, but its copies do not end: until the
			       device is reset the buffer is theirs */
};

struct fab_bounce {
	struct fab_bounce *next; /* in the gpu's list: all that are not free; or the free ones */
	uint32_t index;          /* in contexts */
	enum fab_bounce_kind kind;
	enum fab_bounce_state state;
	struct kvx_ep *ep;   /* NULL: it is gone, and what is left is to wait for the copies */
	struct fab_req *req; /* WRITE, FILL */
	uint32_t id;         /* REPLY, PLACE: whom it answers */
	struct fab_buf *buf;
	bool ahead; /* out: the head goes ahead of the data */
	uint32_t head_len, data_bytes;
	int status;        /* the first error; nothing is started after it */
	const char *text;  /* or NULL */
	uint32_t n_places; /* places[at] is the next to be copied, from `done` bytes of it on */
	uint32_t at;
	uint64_t done;
	uint8_t *run; /* where its data is in the buffer */
	unsigned n_out;
	struct fab_ticket {
		struct fab_dev *dev;
		unsigned ticket;
	} out[FAB_BOUNCE_OUT];
	struct fab_place places[KVX_PACK_MAX_OPS];
};

/* Of a domain that has seen GPU memory. */
struct fab_gpu {
	struct kvx_dom *dom;
	struct fab_dev *devs;
	struct kvx_queue *back; /* jobs that are done */
	unsigned n_jobs;        /* with helpers */
	unsigned slots;         /* bounces of each kind per ep */
	uint64_t fence_ns;      /* after which copies do not end by themselves */
	uint64_t looked_ns;     /* the last time that somebody looked which copies have ended */

	size_t buf_bytes;
	unsigned max_bufs, n_bufs; /* of all devs */
	unsigned n_out_bufs;       /* held by outbound bounces */
	unsigned n_freeing;        /* being given back */

	struct fab_bounce *bounces, **bounces_tail; /* in the order in which they began */
	struct fab_bounce *free_bounces;
	struct fab_bounce **by_index;
	uint32_t n_by_index;
	unsigned n_receiving, n_copying, n_ready, n_stuck;
	uint64_t n_moves, moves_seen; /* copies begun and ended; at the last look */
	long copy_tick_ns;
	bool waiting;      /* some ep has something to do once a buffer, slot or device is there */
	bool post_waiting; /* post() has taken less for want of one */
};

/* fabric_dev.c */
/* The dev of an mr's memory, made when it is the first. -errno: it cannot be made. */
int fab_dev_ref(struct kvx_dom *dom, const struct kvx_gpu_mem *mem, struct fab_dev **out_dev);
void fab_dev_unref(struct fab_dev *dev);
/* A copy has begun, out of the device or into it; it is over, which may be the end of dev. */
void fab_dev_ticket_out(struct fab_dev *dev, bool out);
void fab_dev_ticket_back(struct fab_dev *dev, bool out);
/* No copy has ended for as long as a fence would wait, though some are under way: nothing more is
 * begun until one does. */
bool fab_dev_hangs(struct fab_dev *dev, bool out);
/* All copies have been looked at. Time in which nobody could look (the process or its machine stood
 * still) is not the devices'. */
void fab_dev_looked(struct fab_gpu *gpu);
#define FAB_HANGS_TEXT "the GPU does not answer"
/* What a job of its helper came to: busy with others' calls (-EAGAIN) is not yet, but not for ever:
 * -EBUSY. */
int fab_dev_job_status(const struct fab_dev *dev, int status, uint64_t *busy_ns);
#define FAB_BUSY_RETRY_NS (20 * KVX_MS)
/* 0: copies may be started; -EAGAIN: soon; else why not. */
int fab_dev_ready(struct fab_dev *dev);
/* It has said so. */
void fab_dev_lost(struct fab_dev *dev);
void fab_dev_send(struct fab_dev *dev, struct fab_job *job);
/* Takes jobs that are done. */
void fab_gpu_jobs(struct fab_gpu *gpu);
void fab_gpu_close(struct fab_gpu *gpu);
/* Has the domain looked at again soon, or not: by how it stands. -EAGAIN: at once. */
int fab_gpu_arm(struct fab_gpu *gpu);

/* fabric_buf.c */
/* 0; -EAGAIN: not now; else: none can be had. */
int fab_buf_get(struct fab_dev *dev, bool out, struct fab_buf **out_buf);
void fab_buf_put(struct fab_buf *buf);
void fab_buf_back(struct fab_job *job); /* ALLOC or FREE is done */
void fab_buf_run(struct fab_job *job);  /* helper */
void fab_bufs_drop_free(struct fab_dev *dev);
static inline uint8_t *fab_buf_data(const struct fab_buf *buf)
{
	return buf->addr + KVX_PACK_HEAD_BYTES;
}

/* fabric_bounce_copy.c */
/* Copies end and begin. It may be over when this returns. */
void fab_bounce_step(struct fab_bounce *bounce);

/* fabric_bounce.c */
bool fab_places_bounce(const struct fab_place *places, uint32_t n);
/* A bounce with its buffer and n places; nothing is started. 0; -EAGAIN: not now, the ep is looked
 * at again by itself; else: the ops fail so. */
int fab_bounce_get(struct kvx_ep *ep, enum fab_bounce_kind kind, const struct fab_place *places,
		   uint32_t n, struct fab_bounce **out_bounce);
/* Its copies begin. It may be over when this returns. */
void fab_bounce_copy(struct fab_bounce *bounce);
void fab_bounce_end(struct fab_bounce *bounce);
void fab_bounce_fail(struct fab_bounce *bounce, int status, const char *text);
void fab_bounce_progress(struct fab_gpu *gpu);
/* Too many buffers wait for peers who have announced data: it is to come before it gets one. */
bool fab_bounce_scarce(const struct kvx_ep *ep);
struct fab_bounce *fab_bounce_find(const struct kvx_ep *ep, uint32_t index);
void fab_bounce_poll(struct fab_bounce *bounce);
bool fab_bounce_is_out(const struct fab_bounce *bounce);
/* That copies for it, in its direction. */
struct kvx_gpu_copier *fab_bounce_copier(const struct fab_bounce *bounce,
					 const struct fab_dev *dev);

/* fabric_bounce_cut.c */
/* The ep is down and the library holds nothing of it: only copies are left. */
void fab_bounce_shut(struct kvx_ep *ep);
/* What somebody waits for. */
struct fab_cut {
	const struct kvx_ep *ep; /* or NULL */
	const struct kvx_mr *mr; /* or NULL */
	bool in_only;
	bool told;         /* in the log: that it takes longer than it may */
	uint64_t until_ns; /* the device is given up then */
};
void fab_cut_begin(struct fab_cut *cut, const struct kvx_dom *dom);
/* 0: no copy that it has to wait for is under way; -EAGAIN: some are. */
int fab_bounce_look(struct fab_gpu *gpu, struct fab_cut *cut);
void fab_bounce_leave(struct kvx_ep *ep);              /* it is freed */
void fab_bounce_stuck(struct fab_bounce *bounce);      /* nobody waits for it any more */
void fab_bounce_look_again(struct fab_bounce *bounce); /* STUCK */
/* No further copy of mr begins. */
void fab_bounce_withdraw(struct kvx_mr *mr);
void fab_bounce_forget(struct kvx_mr *mr); /* it is freed */

/* fabric_bounce_out.c */
int fab_bounce_write(struct fab_req *req, uint32_t head_len, bool ahead);
void fab_bounce_out_copied(struct fab_bounce *bounce);
/* It is not sent, and its copies are not waited for. */
void fab_bounce_out_leave(struct fab_bounce *bounce);
void fab_bounce_out_send(struct fab_bounce *bounce);
void fab_bounce_out_sent(struct fab_bounce *bounce);
int fab_bounce_reply(struct kvx_ep *ep, const struct kvx_pack_msg *msg,
		     const struct fab_place *places, bool ahead);

/* fabric_bounce_in.c */
int fab_bounce_place(struct kvx_ep *ep, const struct kvx_pack_msg *msg,
		     const struct fab_place *places);
int fab_bounce_fill(struct fab_req *req, const struct kvx_pack_msg *msg);
/* What was announced is to be received into a buffer; fab_bounce_copy() follows. */
int fab_bounce_receive(struct kvx_ep *ep, const struct kvx_pack_msg *msg, struct fab_req *req,
		       const struct fab_place *places, struct fab_bounce **out_bounce);
void fab_bounce_in_copied(struct fab_bounce *bounce);

#endif
