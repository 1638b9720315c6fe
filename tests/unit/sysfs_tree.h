/* A small /sys/class in a folder of its own, with RDMA devices as the kernel would show them. */
#ifndef SYSFS_TREE_H
#define SYSFS_TREE_H

#include <criterion/criterion.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct sysfs_tree {
	char root[64];
};

static inline void sysfs_tree_init(struct sysfs_tree *tree)
{
	strcpy(tree->root, "/tmp/kvx-sysfs-XXXXXX");
	cr_assert_not_null(mkdtemp(tree->root));
}

static inline int sysfs_tree_drop(const char *path, const struct stat *st, int type,
				  struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static inline void sysfs_tree_fini(struct sysfs_tree *tree)
{
	cr_assert_eq(nftw(tree->root, sysfs_tree_drop, 8, FTW_DEPTH | FTW_PHYS), 0);
}

/* One file with one line; makes the folders on the way. */
__attribute__((format(printf, 3, 4))) static inline void
sysfs_tree_write(struct sysfs_tree *tree, const char *line, const char *fmt, ...)
{
	char name[256], path[512];
	va_list args;
	FILE *file;

	va_start(args, fmt);
	vsnprintf(name, sizeof(name), fmt, args);
	va_end(args);
	snprintf(path, sizeof(path), "%s/%s", tree->root, name);
	for (char *at = strchr(path + strlen(tree->root) + 1, '/'); at != NULL;
	     at = strchr(at + 1, '/')) {
		*at = '\0';
		(void)mkdir(path, 0755);
		*at = '/';
	}
	file = fopen(path, "we");
	cr_assert_not_null(file, "%s", path);
	fprintf(file, "%s\n", line);
	fclose(file);
}

/* A RoCE device with one active port, whose GIDs 0 and 1 are link-local, 2 and 3 of 10.0.0.1. */
static inline void sysfs_tree_add(struct sysfs_tree *tree, const char *name, unsigned uverbs,
				  const char *abi)
{
	static const char *const gids[] = {"fe80:0000:0000:0000:0000:0000:0000:0001",
					   "0000:0000:0000:0000:0000:ffff:0a00:0001"};
	char port[128];

	snprintf(port, sizeof(port), "infiniband/%s/ports/1", name);
	sysfs_tree_write(tree, "4: ACTIVE", "%s/state", port);
	sysfs_tree_write(tree, "5: LinkUp", "%s/phys_state", port);
	sysfs_tree_write(tree, "100 Gb/sec (4X EDR)", "%s/rate", port);
	sysfs_tree_write(tree, "Ethernet", "%s/link_layer", port);
	sysfs_tree_write(tree, "1.2.3", "infiniband/%s/fw_ver", name);
	sysfs_tree_write(tree, "1", "infiniband/%s/device/numa_node", name);
	for (unsigned i = 0; i < 4; i++) {
		sysfs_tree_write(tree, gids[i / 2], "%s/gids/%u", port, i);
		sysfs_tree_write(tree, i % 2 ? "RoCE v2" : "IB/RoCE v1", "%s/gid_attrs/types/%u",
				 port, i);
		sysfs_tree_write(tree, "eth0", "%s/gid_attrs/ndevs/%u", port, i);
	}
	sysfs_tree_write(tree, "0000:0000:0000:0000:0000:0000:0000:0000", "%s/gids/4", port);
	sysfs_tree_write(tree, "1500", "net/eth0/mtu");
	if (abi == NULL)
		return;
	sysfs_tree_write(tree, name, "infiniband_verbs/uverbs%u/ibdev", uverbs);
	sysfs_tree_write(tree, abi, "infiniband_verbs/uverbs%u/abi_version", uverbs);
}

#endif
