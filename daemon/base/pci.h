/* Where PCI devices of this node hang, and how near two of them are: for choosing the RDMA device
 * of a GPU. Reads sysfs only; knows no vendor. Any thread. */
#ifndef KVX_PCI_H
#define KVX_PCI_H

#include <stdbool.h>
#include <stdint.h>

#define KVX_PCI_SYSFS      "/sys"
#define KVX_PCI_NAME_BYTES 16
#define KVX_PCI_MAX_DEPTH  16

/* The way from the host bridge down to a device. */
struct kvx_pci_path {
	char name[KVX_PCI_NAME_BYTES];                       /* "0000:c1:00.0" */
	char host[KVX_PCI_NAME_BYTES];                       /* its host bridge, "pci0000:c0" */
	char bridges[KVX_PCI_MAX_DEPTH][KVX_PCI_NAME_BYTES]; /* root port first */
	unsigned n_bridges;
	int numa_node; /* -1: unknown */
};

/* Nearest first. In brackets what nvidia-smi and rocm-smi users know them as. */
enum kvx_pci_relation {
	KVX_PCI_SAME,        /* one and the same device, or functions of one */
	KVX_PCI_ONE_SWITCH,  /* below one bridge or switch (PIX) */
	KVX_PCI_SWITCHES,    /* through several, without the host bridge (PXB) */
	KVX_PCI_HOST_BRIDGE, /* through one host bridge (PHB) */
	KVX_PCI_NUMA_NODE,   /* through several of one NUMA node (NODE) */
	KVX_PCI_SYSTEM,      /* through the link between NUMA nodes (SYS) */
	KVX_PCI_UNKNOWN,     /* one of them is no PCI device */
};
struct kvx_pci_distance {
	enum kvx_pci_relation relation;
	unsigned hops; /* links between the two; 0: the same, or unknown */
};

/* "c1:00.0", "00000000:C1:00.0" -> "0000:c1:00.0"; false: no PCI address. */
bool kvx_pci_name(const char *text, char out_name[KVX_PCI_NAME_BYTES]);
/* sysfs: KVX_PCI_SYSFS, or a tree like it. 0; -EINVAL name is no PCI address; -ENOENT no such
 * device. */
int kvx_pci_path_read(const char *sysfs, const char *name, struct kvx_pci_path *out_path);
/* Of the PCI device behind /sys/class/CLASS/NAME ("infiniband", "mlx5_0"). As kvx_pci_path_read();
 * -ENOENT also for a device that is not on PCI. */
int kvx_pci_path_of(const char *sysfs, const char *class_name, const char *name,
		    struct kvx_pci_path *out_path);
struct kvx_pci_distance kvx_pci_distance_of(const struct kvx_pci_path *a,
					    const struct kvx_pci_path *b);
/* < 0: a is nearer than b. */
int kvx_pci_distance_compare(const struct kvx_pci_distance *a, const struct kvx_pci_distance *b);
const char *kvx_pci_relation_name(enum kvx_pci_relation relation); /* "PIX"; "-" for unknown */

/* Gives each of n_from devices (GPUs, by PCI address) one of n_to (NICs, by name): the nearest; of
 * those that are equally near the one that was given least often so far, then the first. distances:
 * [n_from][n_to]. usable: [n_to], NULL: all are. out_to: [n_from], -1 where none can be used. The
 * same node gives the same answer to everybody who asks with all devices. */
void kvx_pci_assign(const struct kvx_pci_distance *distances, unsigned n_from, unsigned n_to,
		    const bool *usable, int *out_to);

#endif
