/* What gpu.c (what a region of GPU memory is made of), gpu_dmabuf.c (dma-bufs of that) and
 * gpu_witness.c (proof that the daemon sees the same) share. */
#ifndef KVX_CL_GPU_PRIV_H
#define KVX_CL_GPU_PRIV_H

#include "gpu/gpu.h"
#include "libclient/client_priv.h"

#define KVX_CL_WITNESS_BYTES 16
#define KVX_CL_MAX_WITNESSES 16

#define KVX_CL_NO_DMABUF_BYTES 129 /* with the NUL */

struct kvx_cl_gpu_base {
	uint64_t addr, len_bytes;
	uint8_t ipc[KVX_GPU_IPC_BYTES];
	uint32_t fd; /* during an announcement: 0: none; else 1 + index into fds */
	uint64_t fd_offset;
};
struct kvx_cl_gpu_segment {
	uint64_t addr, start, len_bytes;
	uint32_t base;
};
struct kvx_cl_witness {
	uint64_t addr, offset;
	uint8_t shown[KVX_CL_WITNESS_BYTES]; /* what the daemon is to find */
	uint8_t kept[KVX_CL_WITNESS_BYTES];  /* what is there else */
};

/* Owned by its region. */
struct kvx_cl_gpu {
	struct kvx_gpu *gpu;
	int device;
	bool opened; /* the device, for this */
	struct kvx_gpu_id id;
	bool dmabuf;
	uint64_t len_bytes;
	uint32_t n_bases, n_segments, n_witnesses;
	struct kvx_cl_gpu_base *bases;
	struct kvx_cl_gpu_segment *segments;
	void *stream; /* between show and hide */
	bool written; /* the witnesses are: they are to be put back */
	struct kvx_cl_witness witnesses[KVX_CL_MAX_WITNESSES];
	/* During an announcement only: dma-bufs of the first bases, and why others have none. */
	uint32_t n_fds;
	int fds[KVX_WIRE_MAX_FDS];
	char no_dmabuf[KVX_CL_NO_DMABUF_BYTES];
};

/* This thread works on the device from now on; leave puts back what it was. */
int kvx_cl_gpu_enter(struct kvxfer_client *client, struct kvx_cl_gpu *g,
		     struct kvx_gpu_bound *out_before);
void kvx_cl_gpu_leave(struct kvx_cl_gpu *g, const struct kvx_gpu_bound *before);

/* gpu_dmabuf.c: exports as many as the daemon takes, and says why some bases have none. */
void kvx_cl_dmabufs_export(const struct kvxfer_client *client, struct kvx_cl_gpu *g);
void kvx_cl_dmabufs_close(struct kvx_cl_gpu *g);
/* It goes on without: there is no room to send them. */
void kvx_cl_dmabufs_drop(struct kvx_cl_gpu *g);

/* Chooses places and fills `shown`: with what is there (in_use), else with random bytes, which are
 * written. */
int kvx_cl_witnesses_show(struct kvxfer_client *client, struct kvx_cl_gpu *g, bool in_use);
/* Puts back what was written. */
int kvx_cl_witnesses_hide(struct kvxfer_client *client, struct kvx_cl_gpu *g);

#endif
