/* dma-bufs of a region's allocations, for the daemon's RDMA devices. Where one cannot be had that
 * way is closed, and no other. They are made for each announcement and closed with it: kept, they
 * would use up the file descriptors of the process. The user's thread, bound to the device. */
#include "libclient/gpu_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

static int base_export_dmabuf(struct kvx_cl_gpu *g, struct kvx_cl_gpu_base *base)
{
	const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t from = base->addr / page * page;
	uint64_t to = (base->addr + base->len_bytes + page - 1) / page * page;
	uint64_t offset;
	int fd;

	int err = g->gpu->ops->dmabuf_export(g->gpu, from, to - from, &fd, &offset);
	if (err < 0)
		return err;
	g->fds[g->n_fds++] = fd;
	base->fd = g->n_fds;
	base->fd_offset = offset + (base->addr - from);
	return 0;
}

void kvx_cl_dmabufs_close(struct kvx_cl_gpu *g)
{
	for (uint32_t i = 0; i < g->n_fds; i++)
		close(g->fds[i]);
	g->n_fds = 0;
	for (uint32_t i = 0; i < g->n_bases; i++)
		g->bases[i].fd = 0;
}

/* Has this process an fd left? The runtime says only that it failed. */
static bool fds_are_left(void)
{
	int fd = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);

	if (fd >= 0)
		close(fd);
	return fd >= 0 || (errno != EMFILE && errno != ENFILE);
}

static void say_no_fds(struct kvx_cl_gpu *g)
{
	snprintf(g->no_dmabuf, sizeof(g->no_dmabuf),
		 "the client has no file descriptors left: raise its limit (ulimit -n)");
}

void kvx_cl_dmabufs_drop(struct kvx_cl_gpu *g)
{
	kvx_cl_dmabufs_close(g);
	say_no_fds(g);
}

void kvx_cl_dmabufs_export(const struct kvxfer_client *client, struct kvx_cl_gpu *g)
{
	g->no_dmabuf[0] = '\0';
	if (!g->dmabuf || client->max_region_fds == 0)
		return;
	for (uint32_t i = 0; i < g->n_bases; i++) {
		if (g->n_fds == client->max_region_fds) {
			snprintf(g->no_dmabuf, sizeof(g->no_dmabuf),
				 "%" PRIu32 " allocations, and a region carries %" PRIu32
				 " dma-bufs: register several regions",
				 g->n_bases, client->max_region_fds);
			return;
		}
		if (base_export_dmabuf(g, &g->bases[i]) == 0)
			continue;
		if (fds_are_left())
			snprintf(g->no_dmabuf, sizeof(g->no_dmabuf),
				 "exporting allocation %" PRIu32 " failed: %.60s", i,
				 kvx_gpu_code_name(g->gpu, kvx_gpu_code()));
		else
			say_no_fds(g);
		return;
	}
}
