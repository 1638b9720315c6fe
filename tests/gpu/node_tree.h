/* A made-up node for kvxferctl: a folder with sys/, proc/, dev/ as the kernel shows them, with GPUs
 * and RDMA devices where a test puts them. */
#ifndef KVX_TEST_NODE_TREE_H
#define KVX_TEST_NODE_TREE_H

#include <criterion/criterion.h>
#include <ftw.h>
#include <libgen.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct node_tree {
	char root[64];
};

static inline void node_tree_path(const struct node_tree *tree, char path[PATH_MAX],
				  const char *fmt, va_list args)
{
	int n = snprintf(path, PATH_MAX, "%s/", tree->root);

	vsnprintf(path + n, PATH_MAX - (size_t)n, fmt, args);
	for (char *at = path + strlen(tree->root) + 1; (at = strchr(at, '/')) != NULL; at++) {
		*at = '\0';
		(void)mkdir(path, 0755);
		*at = '/';
	}
}

static inline void node_tree_init(struct node_tree *tree)
{
	strcpy(tree->root, "/tmp/kvx-node-XXXXXX");
	cr_assert_not_null(mkdtemp(tree->root));
	cr_assert_eq(chmod(tree->root, 0755), 0);
}

static inline int node_tree_drop(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static inline void node_tree_fini(struct node_tree *tree)
{
	cr_assert_eq(nftw(tree->root, node_tree_drop, 16, FTW_DEPTH | FTW_PHYS), 0);
}

/* A file with this text. */
__attribute__((format(printf, 3, 4))) static inline void
node_tree_write(struct node_tree *tree, const char *text, const char *fmt, ...)
{
	char path[PATH_MAX];
	va_list args;
	FILE *f;

	va_start(args, fmt);
	node_tree_path(tree, path, fmt, args);
	va_end(args);
	f = fopen(path, "we");
	cr_assert_not_null(f, "%s", path);
	fprintf(f, "%s\n", text);
	fclose(f);
}

/* A link to a path of the tree, written as an absolute one. */
__attribute__((format(printf, 3, 4))) static inline void
node_tree_link(struct node_tree *tree, const char *target, const char *fmt, ...)
{
	char path[PATH_MAX], to[PATH_MAX];
	va_list args;

	va_start(args, fmt);
	node_tree_path(tree, path, fmt, args);
	va_end(args);
	snprintf(to, sizeof(to), "%s/%s", tree->root, target);
	cr_assert_eq(symlink(to, path), 0, "%s", path);
}

struct node_tree_pci {
	const char *at;                           /* "pci0000:00/0000:00:01.0/0000:01:00.0" */
	const char *vendor, *class_code, *driver; /* "0x10de", "0x030200", "nvidia"; NULL: none */
	int numa;
	uint64_t bar_bytes;
};

static inline void node_tree_pci(struct node_tree *tree, const struct node_tree_pci *dev)
{
	const char *name = strrchr(dev->at, '/') + 1;
	char folder[512], line[128];

	snprintf(folder, sizeof(folder), "sys/devices/%s", dev->at);
	node_tree_write(tree, dev->vendor, "%s/vendor", folder);
	node_tree_write(tree, dev->class_code, "%s/class", folder);
	snprintf(line, sizeof(line), "%d", dev->numa);
	node_tree_write(tree, line, "%s/numa_node", folder);
	snprintf(line, sizeof(line), "0x%016llx 0x%016llx 0x%016llx", 0x1000000000ull,
		 0x1000000000ull + (unsigned long long)dev->bar_bytes - 1, 0x14220cull);
	if (dev->bar_bytes > 0)
		node_tree_write(tree, line, "%s/resource", folder);
	if (dev->driver != NULL) {
		node_tree_write(tree, "", "sys/bus/pci/drivers/%s/uevent", dev->driver);
		snprintf(line, sizeof(line), "sys/bus/pci/drivers/%s", dev->driver);
		node_tree_link(tree, line, "%s/driver", folder);
	}
	node_tree_link(tree, folder, "sys/bus/pci/devices/%s", name);
}

/* The bridges above a device, for who reads their configuration. */
static inline void node_tree_bridge(struct node_tree *tree, const char *at)
{
	struct node_tree_pci bridge = {.at = at, .vendor = "0x1022", .class_code = "0x060400"};

	node_tree_pci(tree, &bridge);
}

/* An AMD GPU with render node and kfd node; links: "TO:TYPE:BANDWIDTH ..." of kfd nodes. */
static inline void node_tree_amd(struct node_tree *tree, const char *at, int numa, unsigned render,
				 unsigned kfd, uint64_t hive, const char *links)
{
	struct node_tree_pci pci = {at, "0x1002", "0x120000", "amdgpu", numa, 192ull << 30};
	unsigned domain, bus, device, function, to, type, bandwidth, i = 0;
	char text[256];
	int n;

	node_tree_pci(tree, &pci);
	node_tree_write(tree, "206158430208", "sys/devices/%s/mem_info_vram_total", at);
	node_tree_write(tree, "", "sys/devices/%s/drm/renderD%u/uevent", at, render);
	cr_assert_eq(sscanf(strrchr(at, '/') + 1, "%x:%x:%x.%x", &domain, &bus, &device, &function),
		     4);
	snprintf(text, sizeof(text), "%u", 1000 + kfd);
	node_tree_write(tree, text, "sys/class/kfd/kfd/topology/nodes/%u/gpu_id", kfd);
	node_tree_write(tree, "MI300X", "sys/class/kfd/kfd/topology/nodes/%u/name", kfd);
	snprintf(text, sizeof(text),
		 "simd_count 1216\nlocation_id %u\ndomain %u\ndrm_render_minor %u\nhive_id "
		 "%llu\nunique_id %llu",
		 bus << 8 | device << 3 | function, domain, render, (unsigned long long)hive,
		 0xabc000ull + kfd);
	node_tree_write(tree, text, "sys/class/kfd/kfd/topology/nodes/%u/properties", kfd);
	for (; sscanf(links, " %u:%u:%u%n", &to, &type, &bandwidth, &n) == 3; links += n, i++) {
		snprintf(text, sizeof(text),
			 "type %u\nnode_from %u\nnode_to %u\nweight 15\nmax_bandwidth %u", type,
			 kfd, to, bandwidth);
		node_tree_write(tree, text,
				"sys/class/kfd/kfd/topology/nodes/%u/io_links/%u/properties", kfd,
				i);
	}
}

static inline void node_tree_nvidia(struct node_tree *tree, const char *at, int numa,
				    unsigned minor)
{
	struct node_tree_pci pci = {at, "0x10de", "0x030200", "nvidia", numa, 256ull << 30};
	char text[256];

	node_tree_pci(tree, &pci);
	snprintf(text, sizeof(text),
		 "Model: \t\t NVIDIA H200\nIRQ:   \t\t 120\nGPU UUID: \t GPU-00000000-%04u\nDevice "
		 "Minor: \t %u",
		 minor, minor);
	node_tree_write(tree, text, "proc/driver/nvidia/gpus/%s/information", strrchr(at, '/') + 1);
}

/* An RDMA device with one port. */
static inline void node_tree_nic(struct node_tree *tree, const char *name, const char *at, int numa,
				 bool up)
{
	struct node_tree_pci pci = {at, "0x15b3", "0x020000", "mlx5_core", numa, 1 << 20};
	char folder[512];

	node_tree_pci(tree, &pci);
	snprintf(folder, sizeof(folder), "sys/devices/%s/infiniband/%s", at, name);
	node_tree_write(tree, up ? "4: ACTIVE" : "1: DOWN", "%s/ports/1/state", folder);
	node_tree_write(tree, "400 Gb/sec (4X NDR)", "%s/ports/1/rate", folder);
	node_tree_write(tree, "InfiniBand", "%s/ports/1/link_layer", folder);
	snprintf(folder, sizeof(folder), "sys/devices/%s", at);
	node_tree_link(tree, folder, "sys/devices/%s/infiniband/%s/device", at, name);
	snprintf(folder, sizeof(folder), "sys/devices/%s/infiniband/%s", at, name);
	node_tree_link(tree, folder, "sys/class/infiniband/%s", name);
}

static inline void node_tree_numa(struct node_tree *tree, int id, const char *cpus)
{
	char text[128];

	node_tree_write(tree, cpus, "sys/devices/system/node/node%d/cpulist", id);
	snprintf(text, sizeof(text), "Node %d MemTotal:       1056964608 kB", id);
	node_tree_write(tree, text, "sys/devices/system/node/node%d/meminfo", id);
}

#endif
