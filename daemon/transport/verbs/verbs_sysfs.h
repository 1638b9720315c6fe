/* What the kernel shows of RDMA devices under /sys/class, with or without a user-space provider for
 * them. Reads files only; no library. Used by the backend's probe() and by kvxferctl doctor. Any
 * thread. */
#ifndef KVX_VERBS_SYSFS_H
#define KVX_VERBS_SYSFS_H

#include <stdbool.h>
#include <stdint.h>

#include "transport/verbs/verbs_gid.h"

#define VERBS_SYSFS_ROOT        "/sys/class"
#define VERBS_SYSFS_MAX_DEVICES 64
#define VERBS_SYSFS_MAX_PORTS   4
#define VERBS_MAX_GIDS          256 /* of one port, that are looked at */

struct verbs_kport {
	uint32_t port;
	bool active;
	bool infiniband;
	char state[32]; /* "4: ACTIVE", as the kernel says it */
	char physical[32];
	char rate[48];
	char netdev[16]; /* RoCE: its network interface, also while the port is down; "" unknown */
};
struct verbs_kdev {
	char name[64];
	char uverbs[32]; /* "uverbs0"; "": none, as long as ib_uverbs is not loaded */
	char driver[32]; /* of the PCI device, "mlx5_core"; "": none (a software device) */
	char firmware[64];
	int abi; /* of the kernel driver's user interface; -1: unknown */
	int numa_node;
	unsigned n_ports;
	struct verbs_kport ports[VERBS_SYSFS_MAX_PORTS];
};

/* All devices, by name (mlx5_2 before mlx5_10); how many, at most max. root: VERBS_SYSFS_ROOT, or a
 * tree like it. */
unsigned verbs_sysfs_devices(const char *root, struct verbs_kdev *out_devices, unsigned max);
/* NUMA node of the device whose folder this is (struct ibv_device.ibdev_path); -1: unknown. */
int verbs_sysfs_numa(const char *device_path);
/* The entries of a port's GID table that are not empty; how many, at most max. */
unsigned verbs_sysfs_gids(const char *root, const char *device, uint32_t port,
			  struct verbs_gid *out_gids, unsigned max);

#endif
