/* What is special about memory that GPUs reach: which domain a region comes to first, which lane
 * carries what goes between two regions, and what becomes of a device that is lost. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "mem/gpu.h"
#include "xfer/node_priv.h"

static bool dom_is_gpu(const struct kvx_node *node, const struct node_dom *dom)
{
	return node->gpu_ops != NULL && dom->rail != NULL && dom->rail->ops == node->gpu_ops;
}

/* The domain of the device that a region's memory is of; NULL: none. */
static const struct node_dom *gpu_dom_of(const struct kvx_node *node,
					 const struct kvx_region *region)
{
	for (unsigned i = 0; i < node->n_doms; i++) {
		const struct node_dom *dom = &node->doms[i];

		if (dom_is_gpu(node, dom) &&
		    kvx_gpu_id_same(&dom->rail->rail.gpu, &region->mem.gpu->id))
			return dom;
	}
	return NULL;
}

static bool region_is_gpu(const struct kvx_region *region)
{
	return kvx_mem_kind_is_gpu(region->mem.ops->kind);
}

/* Why a device that was not found is not there: found and unusable, or not found at all. */
static int gpu_refuse(const struct kvx_node *node, const struct kvx_gpu_id *id, struct kvx_why *why)
{
	for (unsigned i = 0; i < node->n_rails; i++) {
		const struct kvx_rail *rail = &node->rails[i].rail;

		if (node->rails[i].ops == node->conf.gpu_ops && kvx_gpu_id_same(&rail->gpu, id))
			return kvx_why(why, -ENODEV, "GPU %s is not used by the daemon: %s",
				       id->pci, rail->reason);
	}
	if (node->gpu_ops == NULL)
		return kvx_why(why, -ENODEV, "the daemon uses no GPU: %s", node->gpu_why.text);
	return kvx_why(why, -ENODEV,
		       "GPU %s is not among those of the daemon: is it hidden from it "
		       "(CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES), or of another kind?",
		       id->pci[0] != '\0' ? id->pci : "without a PCI address");
}

int node_gpu_home(const struct kvx_node *node, const struct kvx_region *region, int *out_home,
		  struct kvx_why *why)
{
	*out_home = -1;
	if (region_is_gpu(region)) {
		const struct node_dom *dom = gpu_dom_of(node, region);

		if (dom == NULL)
			return gpu_refuse(node, &region->mem.gpu->id, why);
		if (dom->rail->lost)
			return kvx_why(why, -ENODEV,
				       "%s; it is used again when the daemon starts anew",
				       dom->rail->rail.reason);
		*out_home = (int)(dom - node->doms);
		return 0;
	}
	if (!node->conf.gpu_pin_host)
		return 0;
	for (unsigned i = 0; i < node->n_doms && *out_home < 0; i++)
		if (dom_is_gpu(node, &node->doms[i]) && !node->doms[i].rail->lost)
			*out_home = (int)i;
	return 0;
}

struct node_lane *node_region_lane(struct kvx_node *node, const struct kvx_region *region)
{
	const struct node_dom *dom = region_is_gpu(region) ? gpu_dom_of(node, region) : NULL;

	return dom != NULL && dom->lane != NULL ? dom->lane : &node->lanes[0];
}

/* The device of the source pushes: writes are posted, reads wait for answers. */
struct node_lane *node_gpu_lane(struct kvx_node *node, const struct kvx_region *local,
				const struct kvx_region *remote, int op)
{
	const struct kvx_region *source = op == KVX_OP_READ ? remote : local;
	const struct kvx_region *destination = op == KVX_OP_READ ? local : remote;

	return node_region_lane(node, region_is_gpu(source) ? source : destination);
}

/* ---- a lost device */

static KVX_ON_LOOP void region_lose(struct kvx_node *node, struct kvx_region *region, int status,
				    const char *text)
{
	struct node_region *nr = region->retire;

	region->state = KVX_REGION_FAILED;
	kvx_region_unpublish(node->regions, region);
	kvx_xfers_cancel_region(node->xfers, region, status, text);
	if (nr != NULL && nr->target != NULL) {
		kvx_target_lose(&nr->target->target, status, text);
		kvx_target_tell(&nr->target->target);
	}
	if (nr != NULL) /* RDMA devices of others know nothing of the loss */
		node_region_withdraw(nr, status, text);
	if (node->conf.region_lost != NULL)
		node->conf.region_lost(node->conf.region_arg, region, status, text);
}

void node_gpu_lost(struct node_dom *dom, int status, const char *text)
{
	struct kvx_node *node = dom->node;
	struct kvx_region *region;
	struct kvx_why why;
	uint32_t cursor = 0;

	dom->rail->lost = true;
	dom->rail->rail.usable = false;
	kvx_why(&why, 0, "GPU %s (%s) is lost: %s", dom->name, dom->rail->rail.gpu.pci, text);
	snprintf(dom->rail->rail.reason, sizeof(dom->rail->rail.reason), "%s", why.text);
	kvx_error("node: %s; it is used again when the daemon starts anew", why.text);
	node_lane_lose(dom->lane, status, why.text);
	while ((region = kvx_region_next(node->regions, &cursor)) != NULL)
		if (region->state == KVX_REGION_LIVE && region_is_gpu(region) &&
		    gpu_dom_of(node, region) == dom)
			region_lose(node, region, status, why.text);
}
