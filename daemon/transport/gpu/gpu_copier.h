/* The host_* and copier_* entries of struct kvx_gpu_access, see mem/gpu_access.h; device is the
 * domain. And what a copier is, for the two files that it is made of: gpu_copier.c is its user's
 * side, gpu_copier_run.c its thread, which alone calls the runtime for copies. */
#ifndef KVX_GPU_COPIER_H
#define KVX_GPU_COPIER_H

#include "base/ring.h"
#include "transport/gpu/gpu_priv.h"

int gpu_host_alloc(void *device, size_t bytes, void **out_addr);
void gpu_host_free(void *device, void *addr);

int gpu_copier_open(void *device, unsigned n_tickets, struct kvx_gpu_copier **out_copier);
void gpu_copier_close(struct kvx_gpu_copier *copier);
int gpu_copier_start(struct kvx_gpu_copier *copier, const struct kvx_gpu_piece *pieces, unsigned n,
		     unsigned *out_ticket);
int gpu_copier_poll(struct kvx_gpu_copier *copier, unsigned ticket);
void gpu_copier_cut(struct kvx_gpu_copier *copier);

/* ---- inside */

#define COPIER_MAX_TICKETS 256u
#define COPIER_TRIES       3u

struct gpu_ticket {
	bool out;                     /* user's: free if not */
	_Atomic bool over;            /* hands it back to the user */
	struct kvx_gpu_piece *pieces; /* KVX_GPU_COPIER_PIECES long; the user fills them */
	unsigned n_pieces;
	/* The thread's: */
	struct gpu_ticket *next; /* behind it on the stream */
	void *event;
	struct kvx_gpu_piece *list; /* page-locked, as long: the kernel's */
	int status;                 /* of handing it to the runtime */
	unsigned n_tries;
};

struct kvx_gpu_copier {
	struct gpu_call call; /* first: that opens or closes it */
	uint64_t magic;
	struct kvx_dom *dom;
	void *stream;
	void *lists;
	struct kvx_gpu_piece *pieces; /* of all tickets */
	unsigned n_tickets, n_out;
	struct kvx_ring *todo; /* user -> thread */
	sem_t filled;          /* how many are in todo; and once more to stop */
	_Atomic bool stop, ended;
	pthread_t thread;
	/* The thread's: */
	bool batch;
	struct gpu_ticket *first, *last; /* on the stream */
	struct gpu_ticket tickets[COPIER_MAX_TICKETS];
};

void *gpu_copier_main(void *copier);

#endif
