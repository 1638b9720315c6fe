/* Which RDMA device is a GPU's: the nearest one on PCI, by the rule that kvxferctl topology shows,
 * among those that can be used now. Where the devices are is read when the node is opened; the
 * choice is made anew when a rail is lost, goes down or comes up. Loop thread. */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/pci.h"
#include "mem/gpu.h"
#include "xfer/node_priv.h"

struct near_gpu {
	struct kvx_gpu_id id;
	struct kvx_pci_path path;
	uint64_t doms; /* bit set by dom_index: rails of its RDMA device; 0: none is near */
};

struct near_nic {
	char device[KVX_RAIL_NAME_BYTES];
	struct kvx_pci_path path;
};

struct node_near {
	unsigned n_gpus, n_nics;
	struct near_gpu gpus[KVX_GPU_MAX];
	struct near_nic nics[KVX_MAX_RAILS];
	struct kvx_pci_distance distances[KVX_GPU_MAX * KVX_MAX_RAILS]; /* [n_gpus][n_nics] */
};

static int gpu_order(const void *a, const void *b)
{
	const struct near_gpu *left = a, *right = b;

	return strcmp(left->path.name, right->path.name);
}

static int nic_order(const void *a, const void *b)
{
	const struct near_nic *left = a, *right = b;

	return strverscmp(left->device, right->device);
}

static void near_add_gpu(struct node_near *near, const char *sysfs, const struct kvx_gpu_id *id)
{
	struct near_gpu *gpu = &near->gpus[near->n_gpus];

	if (near->n_gpus == KVX_GPU_MAX || kvx_pci_path_read(sysfs, id->pci, &gpu->path) != 0)
		return;
	gpu->id = *id;
	near->n_gpus++;
}

/* A device has a rail for each of its ports. */
static void near_add_nic(struct node_near *near, const char *sysfs, const char *device)
{
	struct near_nic *nic = &near->nics[near->n_nics];

	for (unsigned i = 0; i < near->n_nics; i++)
		if (strcmp(near->nics[i].device, device) == 0)
			return;
	if (near->n_nics == KVX_MAX_RAILS || device[0] == '\0')
		return;
	memcpy(nic->device, device, strlen(device) + 1);
	if (kvx_pci_path_of(sysfs, "infiniband", device, &nic->path) != 0)
		nic->path = (struct kvx_pci_path){.numa_node = -1};
	near->n_nics++;
}

static void near_measure(struct node_near *near)
{
	qsort(near->gpus, near->n_gpus, sizeof(near->gpus[0]), gpu_order);
	qsort(near->nics, near->n_nics, sizeof(near->nics[0]), nic_order);
	for (unsigned i = 0; i < near->n_gpus; i++)
		for (unsigned j = 0; j < near->n_nics; j++)
			near->distances[i * near->n_nics + j] =
			    kvx_pci_distance_of(&near->gpus[i].path, &near->nics[j].path);
}

/* Without memory no rail is nearer than another. */
void node_near_open(struct kvx_node *node)
{
	const char *sysfs = node->conf.sysfs != NULL ? node->conf.sysfs : KVX_PCI_SYSFS;
	struct node_near *near = node->gpu_ops != NULL ? calloc(1, sizeof(*near)) : NULL;

	for (unsigned i = 0; near != NULL && i < node->n_rails; i++) {
		const struct kvx_node_rail *rail = &node->rails[i];

		if (rail->ops == node->conf.gpu_ops)
			near_add_gpu(near, sysfs, &rail->rail.gpu);
		else
			near_add_nic(near, sysfs, rail->rail.device);
	}
	if (near == NULL || near->n_gpus == 0 || near->n_nics < 2) {
		free(near);
		return;
	}
	near_measure(near);
	node->near = near;
	node_near_update(node);
}

void node_near_close(struct kvx_node *node)
{
	free(node->near);
	node->near = NULL;
}

static uint64_t nic_doms(const struct kvx_node *node, const struct near_nic *nic)
{
	uint64_t doms = 0;

	for (unsigned i = 0; i < node->n_rails; i++) {
		const struct kvx_node_rail *rail = &node->rails[i];

		if (rail->ops != node->conf.gpu_ops && rail->worker != NULL && !rail->lost &&
		    kvx_node_rail_waits(rail) == NULL &&
		    strcmp(rail->rail.device, nic->device) == 0)
			doms |= 1ull << rail->dom_index;
	}
	return doms;
}

static KVX_ON_LOOP void near_set(struct near_gpu *gpu, uint64_t doms, const char *device)
{
	if (gpu->doms == doms)
		return;
	gpu->doms = doms;
	if (doms != 0)
		kvx_info("node: memory of GPU %s goes to other nodes by %s, the nearest device",
			 gpu->id.pci, device);
	else
		kvx_info("node: no RDMA device is near GPU %s now: its memory goes by any",
			 gpu->id.pci);
}

void node_near_update(struct kvx_node *node)
{
	struct node_near *near = node->near;
	bool usable[KVX_MAX_RAILS];
	int chosen[KVX_GPU_MAX];

	if (near == NULL)
		return;
	for (unsigned j = 0; j < near->n_nics; j++)
		usable[j] = nic_doms(node, &near->nics[j]) != 0;
	kvx_pci_assign(near->distances, near->n_gpus, near->n_nics, usable, chosen);
	for (unsigned i = 0; i < near->n_gpus; i++) {
		unsigned at = i * near->n_nics + (unsigned)chosen[i];
		bool is_known = chosen[i] >= 0 && near->distances[at].relation != KVX_PCI_UNKNOWN;

		near_set(&near->gpus[i], is_known ? nic_doms(node, &near->nics[chosen[i]]) : 0,
			 is_known ? near->nics[chosen[i]].device : "");
	}
}

uint64_t kvx_node_near_rails(const struct kvx_node *node, const struct kvx_gpu_id *gpu)
{
	const struct node_near *near = node->near;

	for (unsigned i = 0; near != NULL && i < near->n_gpus; i++)
		if (kvx_gpu_id_same(&near->gpus[i].id, gpu))
			return near->gpus[i].doms;
	return 0;
}

uint64_t node_near_doms(void *arg, const struct kvx_region *local)
{
	return local->mem.gpu != NULL ? kvx_node_near_rails(arg, &local->mem.gpu->id) : 0;
}
