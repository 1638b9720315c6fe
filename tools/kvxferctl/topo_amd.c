/* What the amdgpu driver shows of AMD GPUs: the kfd's topology has a folder for each GPU with its
 * PCI address, its xGMI hive, and its direct links to others. */
#include <dirent.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "topo.h"

enum { LINK_XGMI = 11 }; /* type in io_links: CRAT's numbers; 2 is PCIe */
#define MAX_KFD_NODES 64

/* One number of a file of "key value" lines; 0 when it is not there. */
static uint64_t property(const char *path, const char *key)
{
	unsigned long long value = 0;
	char line[128], name[64];
	FILE *f = fopen(path, "re");

	while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
		if (sscanf(line, "%63s %llu", name, &value) == 2 && strcmp(name, key) == 0)
			break;
		value = 0;
	}
	if (f != NULL)
		fclose(f);
	return value;
}

static struct kvx_topo_gpu *gpu_at(struct kvx_topo *topo, uint64_t domain, uint64_t location)
{
	char pci[KVX_PCI_NAME_BYTES];

	snprintf(pci, sizeof(pci), "%04x:%02x:%02x.%x", (unsigned)(domain & 0xffff),
		 (unsigned)(location >> 8 & 0xff), (unsigned)(location >> 3 & 0x1f),
		 (unsigned)(location & 7));
	for (unsigned i = 0; i < topo->n_gpus; i++)
		if (strcmp(topo->gpus[i].path.name, pci) == 0)
			return &topo->gpus[i];
	return NULL;
}

static void read_node(struct kvx_topo *topo, const char *nodes, unsigned number)
{
	char path[PATH_MAX], line[96];
	struct kvx_topo_gpu *gpu;

	if (strtoull(kvx_topo_line(line, sizeof(line), "%s/%u/gpu_id", nodes, number), NULL, 10) ==
	    0)
		return; /* processors are nodes, too */
	kvx_topo_path(path, "%s/%u/properties", nodes, number);
	gpu = gpu_at(topo, property(path, "domain"), property(path, "location_id"));
	if (gpu == NULL || gpu->kfd_node >= 0) /* partitions of one GPU: the first stands for it */
		return;
	gpu->kfd_node = (int)number;
	gpu->hive = property(path, "hive_id");
	kvx_topo_line(gpu->name, sizeof(gpu->name), "%s/%u/name", nodes, number);
	snprintf(gpu->uuid, sizeof(gpu->uuid), "%016" PRIx64, property(path, "unique_id"));
}

static int gpu_of_node(const struct kvx_topo *topo, uint64_t node)
{
	for (unsigned i = 0; i < topo->n_gpus; i++)
		if (topo->gpus[i].kfd_node >= 0 && (uint64_t)topo->gpus[i].kfd_node == node)
			return (int)i;
	return -1;
}

static void read_links(struct kvx_topo *topo, const char *nodes, unsigned from)
{
	char folder[PATH_MAX], path[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	kvx_topo_path(folder, "%s/%d/io_links", nodes, topo->gpus[from].kfd_node);
	dir = opendir(folder);
	while (dir != NULL && (entry = readdir(dir)) != NULL) {
		int to;

		if (entry->d_name[0] == '.')
			continue;
		kvx_topo_path(path, "%s/%.31s/properties", folder, entry->d_name);
		to = gpu_of_node(topo, property(path, "node_to"));
		if (to < 0 || property(path, "type") != LINK_XGMI)
			continue;
		topo->gpu_pairs[from][to].link = KVX_TOPO_XGMI;
		topo->gpu_pairs[from][to].hops = 1;
		topo->gpu_pairs[from][to].bandwidth_mbs = property(path, "max_bandwidth");
	}
	if (dir != NULL)
		closedir(dir);
}

/* GPUs of one hive without a link of their own reach each other through others of it. */
static void through_others(struct kvx_topo *topo)
{
	unsigned n = topo->n_gpus;

	for (unsigned via = 0; via < n; via++)
		for (unsigned a = 0; a < n; a++)
			for (unsigned b = 0; b < n; b++) {
				const struct kvx_topo_pair *first = &topo->gpu_pairs[a][via];
				const struct kvx_topo_pair *second = &topo->gpu_pairs[via][b];
				struct kvx_topo_pair *pair = &topo->gpu_pairs[a][b];

				if (a == b || first->link != KVX_TOPO_XGMI ||
				    second->link != KVX_TOPO_XGMI)
					continue;
				if (pair->link == KVX_TOPO_XGMI &&
				    pair->hops <= first->hops + second->hops)
					continue;
				pair->link = KVX_TOPO_XGMI;
				pair->hops = first->hops + second->hops;
				pair->bandwidth_mbs = 0;
			}
}

void kvx_topo_amd(struct kvx_topo *topo, const char *root)
{
	char nodes[PATH_MAX];

	kvx_topo_path(nodes, "%s/sys/class/kfd/kfd/topology/nodes", root);
	for (unsigned i = 0; i < MAX_KFD_NODES; i++)
		read_node(topo, nodes, i);
	for (unsigned i = 0; i < topo->n_gpus; i++)
		if (topo->gpus[i].kfd_node >= 0)
			read_links(topo, nodes, i);
	through_others(topo);
}
