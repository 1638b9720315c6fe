/* Reads the node's PCI devices, RDMA devices and NUMA nodes, joins what the vendors' parts know of
 * GPUs, and chooses each GPU's RDMA device by the rule that the daemon has, too. */
#include "topo.h"

#include <dirent.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/tool.h"
#include "transport/verbs/verbs_sysfs.h"

enum { VENDOR_AMD = 0x1002, VENDOR_NVIDIA = 0x10de };
/* The upper two bytes of the class: VGA, 3D, other display, processing accelerator. */
enum { CLASS_VGA = 0x0300, CLASS_3D = 0x0302, CLASS_DISPLAY = 0x0380, CLASS_ACCELERATOR = 0x1200 };

char *kvx_topo_line(char *buf, unsigned buf_bytes, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	FILE *f;

	va_start(args, fmt);
	vsnprintf(path, sizeof(path), fmt, args);
	va_end(args);
	buf[0] = '\0';
	f = fopen(path, "re");
	if (f == NULL)
		return buf;
	if (fgets(buf, (int)buf_bytes, f) == NULL)
		buf[0] = '\0';
	buf[strcspn(buf, "\n")] = '\0';
	fclose(f);
	return buf;
}

void kvx_topo_path(char path[PATH_MAX], const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(path, PATH_MAX, fmt, args);
	va_end(args);
}

const char *kvx_topo_link_name(enum kvx_topo_link link)
{
	static const char *const names[] = {"pcie", "xgmi", "nvlink"};

	return names[link];
}

/* Name of what a link in sysfs points to; "" when there is none. */
static void link_name(char *buf, size_t buf_bytes, const char *path)
{
	char target[PATH_MAX];
	ssize_t len = readlink(path, target, sizeof(target) - 1);

	buf[0] = '\0';
	if (len <= 0)
		return;
	target[len] = '\0';
	snprintf(buf, buf_bytes, "%s", basename(target));
}

/* The render node in the device's own folder. */
static void find_render(struct kvx_topo_gpu *gpu, const char *folder)
{
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	kvx_topo_path(path, "%s/drm", folder);
	dir = opendir(path);
	while (dir != NULL && (entry = readdir(dir)) != NULL)
		if (strncmp(entry->d_name, "renderD", 7) == 0)
			snprintf(gpu->render, sizeof(gpu->render), "%.31s", entry->d_name);
	if (dir != NULL)
		closedir(dir);
}

/* The largest of the device's bars: where its memory shows. */
static uint64_t largest_bar(const char *folder)
{
	unsigned long long start, end, flags;
	uint64_t largest = 0;
	char path[PATH_MAX];
	FILE *f;

	kvx_topo_path(path, "%s/resource", folder);
	f = fopen(path, "re");
	for (unsigned i = 0; f != NULL && i < 6; i++) {
		if (fscanf(f, "%llx %llx %llx", &start, &end, &flags) != 3)
			break;
		if (end > start && end - start + 1 > largest)
			largest = end - start + 1;
	}
	if (f != NULL)
		fclose(f);
	return largest;
}

static bool is_gpu(const char *folder, enum kvx_topo_vendor *out_vendor)
{
	char line[32];
	unsigned long vendor =
	    strtoul(kvx_topo_line(line, sizeof(line), "%s/vendor", folder), NULL, 16);
	unsigned long class_code =
	    strtoul(kvx_topo_line(line, sizeof(line), "%s/class", folder), NULL, 16) >> 8;

	if (vendor != VENDOR_AMD && vendor != VENDOR_NVIDIA)
		return false;
	*out_vendor = vendor == VENDOR_AMD ? KVX_TOPO_AMD : KVX_TOPO_NVIDIA;
	return class_code == CLASS_VGA || class_code == CLASS_3D || class_code == CLASS_DISPLAY ||
	       class_code == CLASS_ACCELERATOR;
}

static void gpu_fill(struct kvx_topo_gpu *gpu, const char *folder)
{
	char path[PATH_MAX], line[64];

	kvx_topo_path(path, "%s/driver", folder);
	link_name(gpu->driver, sizeof(gpu->driver), path);
	find_render(gpu, folder);
	gpu->bar_bytes = largest_bar(folder);
	gpu->mem_bytes =
	    strtoull(kvx_topo_line(line, sizeof(line), "%s/mem_info_vram_total", folder), NULL, 10);
	gpu->kfd_node = -1;
	gpu->nic = -1;
}

static int gpu_order(const void *a, const void *b)
{
	const struct kvx_topo_gpu *left = a, *right = b;

	return strcmp(left->path.name, right->path.name);
}

static void read_gpus(struct kvx_topo *topo, const char *sysfs)
{
	char path[PATH_MAX], folder[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	kvx_topo_path(path, "%s/bus/pci/devices", sysfs);
	dir = opendir(path);
	while (dir != NULL && topo->n_gpus < KVX_TOPO_MAX_GPUS && (entry = readdir(dir)) != NULL) {
		struct kvx_topo_gpu *gpu = &topo->gpus[topo->n_gpus];
		enum kvx_topo_vendor vendor;

		kvx_topo_path(folder, "%s/%.31s", path, entry->d_name);
		if (entry->d_name[0] == '.' || !is_gpu(folder, &vendor) ||
		    kvx_pci_path_read(sysfs, entry->d_name, &gpu->path) != 0)
			continue;
		gpu->vendor = vendor;
		gpu_fill(gpu, folder);
		topo->n_gpus++;
	}
	if (dir != NULL)
		closedir(dir);
	qsort(topo->gpus, topo->n_gpus, sizeof(topo->gpus[0]), gpu_order);
}

static void nic_fill(struct kvx_topo_nic *nic, const struct verbs_kdev *kdev, const char *sysfs)
{
	snprintf(nic->name, sizeof(nic->name), "%s", kdev->name);
	snprintf(nic->driver, sizeof(nic->driver), "%s", kdev->driver);
	nic->numa_node = kdev->numa_node;
	if (kvx_pci_path_of(sysfs, "infiniband", kdev->name, &nic->path) != 0)
		nic->path = (struct kvx_pci_path){.numa_node = kdev->numa_node};
	for (unsigned i = 0; i < kdev->n_ports; i++) {
		const struct verbs_kport *port = &kdev->ports[i];

		if (nic->active || (i > 0 && !port->active))
			continue;
		nic->active = port->active;
		snprintf(nic->rate, sizeof(nic->rate), "%s", port->rate);
		snprintf(nic->netdev, sizeof(nic->netdev), "%s", port->netdev);
	}
}

static void read_nics(struct kvx_topo *topo, const char *sysfs)
{
	struct verbs_kdev *kdevs = kvx_tool_alloc(KVX_TOPO_MAX_NICS * sizeof(*kdevs));
	char path[PATH_MAX];

	kvx_topo_path(path, "%s/class", sysfs);
	topo->n_nics = verbs_sysfs_devices(path, kdevs, KVX_TOPO_MAX_NICS);
	for (unsigned i = 0; i < topo->n_nics; i++)
		nic_fill(&topo->nics[i], &kdevs[i], sysfs);
	free(kdevs);
}

static uint64_t node_memory(const char *sysfs, int id)
{
	char path[PATH_MAX], line[128];
	unsigned long long kib = 0;
	FILE *f;

	kvx_topo_path(path, "%s/devices/system/node/node%d/meminfo", sysfs, id);
	f = fopen(path, "re");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL)
		if (sscanf(line, "Node %*d MemTotal: %llu kB", &kib) == 1)
			break;
	if (f != NULL)
		fclose(f);
	return kib << 10;
}

static int node_order(const void *a, const void *b)
{
	const struct kvx_topo_node *left = a, *right = b;

	return (left->id > right->id) - (left->id < right->id);
}

static void read_nodes(struct kvx_topo *topo, const char *sysfs)
{
	char path[PATH_MAX];
	struct dirent *entry;
	DIR *dir;

	kvx_topo_path(path, "%s/devices/system/node", sysfs);
	dir = opendir(path);
	while (dir != NULL && topo->n_nodes < KVX_TOPO_MAX_NODES &&
	       (entry = readdir(dir)) != NULL) {
		struct kvx_topo_node *node = &topo->nodes[topo->n_nodes];

		if (sscanf(entry->d_name, "node%d", &node->id) != 1)
			continue;
		kvx_topo_line(node->cpus, sizeof(node->cpus), "%s/node%d/cpulist", path, node->id);
		node->mem_bytes = node_memory(sysfs, node->id);
		topo->n_nodes++;
	}
	if (dir != NULL)
		closedir(dir);
	qsort(topo->nodes, topo->n_nodes, sizeof(topo->nodes[0]), node_order);
}

static void measure(struct kvx_topo *topo)
{
	for (unsigned a = 0; a < topo->n_gpus; a++) {
		for (unsigned b = 0; b < topo->n_gpus; b++) {
			struct kvx_topo_pair *pair = &topo->gpu_pairs[a][b];

			pair->pci = kvx_pci_distance_of(&topo->gpus[a].path, &topo->gpus[b].path);
			pair->hops = pair->pci.hops;
		}
		for (unsigned n = 0; n < topo->n_nics; n++)
			topo->nic_distances[a][n] =
			    kvx_pci_distance_of(&topo->gpus[a].path, &topo->nics[n].path);
	}
}

static void choose_nics(struct kvx_topo *topo)
{
	struct kvx_pci_distance *distances =
	    kvx_tool_alloc((size_t)topo->n_gpus * topo->n_nics * sizeof(*distances));
	bool usable[KVX_TOPO_MAX_NICS];
	int chosen[KVX_TOPO_MAX_GPUS];

	for (unsigned n = 0; n < topo->n_nics; n++)
		usable[n] = topo->nics[n].active;
	for (unsigned g = 0; g < topo->n_gpus; g++)
		memcpy(&distances[g * topo->n_nics], topo->nic_distances[g],
		       topo->n_nics * sizeof(*distances));
	kvx_pci_assign(distances, topo->n_gpus, topo->n_nics, usable, chosen);
	for (unsigned g = 0; g < topo->n_gpus; g++)
		topo->gpus[g].nic = chosen[g];
	free(distances);
}

struct kvx_topo *kvx_topo_read(const struct kvx_topo_places *places)
{
	struct kvx_topo *topo = kvx_tool_alloc(sizeof(*topo));
	char sysfs[PATH_MAX];

	kvx_topo_path(sysfs, "%s/sys", places->root);
	read_gpus(topo, sysfs);
	read_nics(topo, sysfs);
	read_nodes(topo, sysfs);
	measure(topo);
	kvx_topo_amd(topo, places->root);
	kvx_topo_nvidia(topo, places);
	choose_nics(topo);
	return topo;
}
