/* dma-bufs that come with a region of GPU memory: RDMA devices register them, where there are such
 * devices here; how many may be taken, a word on those that are missing, and the way out of those
 * of a region that is refused. Loop thread, so nothing here touches the files themselves: whether
 * they are dma-bufs is seen by who maps the region. */
#include <inttypes.h>
#include <stdio.h>

#include "base/log.h"
#include "control/control_priv.h"
#include "control/decode.h"
#include "mem/gpu.h"

#define CLIENT_DMABUFS_MAX (2 * KVX_WIRE_MAX_FDS)

bool kvx_control_takes_dmabufs(const struct kvx_control *control)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(control->conf.node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].worker != NULL && !rails[i].lost &&
		    (rails[i].ops->caps & KVX_CAP_DMABUF) != 0)
			return true;
	return false;
}

void kvx_dmabufs_forget(struct kvx_gpu_mem *gpu)
{
	for (uint32_t i = 0; i < gpu->n_bases; i++)
		gpu->bases[i].fd = -1;
}

uint32_t kvx_dmabufs_count(const struct kvx_gpu_mem *gpu)
{
	uint32_t n = 0;

	for (uint32_t i = 0; gpu != NULL && i < gpu->n_bases; i++)
		n += gpu->bases[i].fd >= 0;
	return n;
}

void kvx_dmabufs_choose(const struct kvx_client *client, struct kvx_gpu_mem *gpu)
{
	uint32_t n = kvx_dmabufs_count(gpu);

	if (!kvx_control_takes_dmabufs(client->control)) {
		kvx_dmabufs_forget(gpu);
	} else if (n > 0 && client->n_dmabufs + n > CLIENT_DMABUFS_MAX) {
		kvx_info("client %" PRIu64 ": region of GPU memory without its dma-bufs: %" PRIu32
			 " of the client's are with regions that are being registered, %u may be: "
			 "register one region after the other",
			 client->id, client->n_dmabufs, CLIENT_DMABUFS_MAX);
		kvx_dmabufs_forget(gpu);
	}
}

void kvx_client_close_fds(struct kvx_client *client, struct kvx_mem *mem)
{
	struct kvx_closer *closer = client->control->closer;
	struct kvx_closer_tab *tab = client->front->closing;

	if (mem->fd >= 0)
		kvx_closer_give_on(closer, tab, mem->fd);
	mem->fd = -1;
	for (uint32_t i = 0; mem->gpu != NULL && i < mem->gpu->n_bases; i++) {
		if (mem->gpu->bases[i].fd >= 0)
			kvx_closer_give_on(closer, tab, mem->gpu->bases[i].fd);
		mem->gpu->bases[i].fd = -1;
	}
}

void kvx_dmabufs_say_missing(const struct kvx_client *client, const Kvxp__RegionRegister *req,
			     const struct kvx_msg *msg)
{
	char text[129];

	if (!kvx_control_takes_dmabufs(client->control))
		return;
	if (msg->fds_lost)
		snprintf(text, sizeof(text),
			 "the daemon has no free file descriptors: raise LimitNOFILE in "
			 "kvxferd.service");
	else if (req->gpu->no_dmabuf[0] == '\0' ||
		 kvx_decode_text(req->gpu->no_dmabuf, "reason", text, sizeof(text), NULL) < 0)
		return;
	kvx_info("client %" PRIu64 ": region of %" PRIu64
		 " bytes of GPU memory without (all) its dma-bufs: %s",
		 client->id, req->len, text);
}
