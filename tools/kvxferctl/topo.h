/* What hangs where in this node: GPUs, RDMA devices, NUMA nodes, and how GPUs are linked. Read from
 * /sys and /proc; no daemon, and no vendor library but NVIDIA's NVML, in a child process, for what
 * the kernel does not show. One thread. */
#ifndef KVX_TOPO_H
#define KVX_TOPO_H

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/pci.h"

#define KVX_TOPO_MAX_GPUS  32
#define KVX_TOPO_MAX_NICS  64
#define KVX_TOPO_MAX_NODES 16

enum kvx_topo_vendor { KVX_TOPO_AMD, KVX_TOPO_NVIDIA };

struct kvx_topo_gpu {
	struct kvx_pci_path path;
	enum kvx_topo_vendor vendor;
	char name[96];      /* product, as far as the kernel knows it; "" */
	char driver[32];    /* "amdgpu", "nvidia", "vfio-pci"; "": none */
	char uuid[64];      /* NVIDIA: "GPU-...", AMD: the unique id; "" */
	char render[32];    /* "renderD128"; "" */
	char minor[16];     /* NVIDIA: of /dev/nvidiaN; "" */
	int kfd_node;       /* AMD: number in the kfd's topology; -1: none */
	uint64_t hive;      /* AMD: GPUs of one xGMI hive; 0: none */
	uint64_t bar_bytes; /* what of its memory the bus shows at once; 0: unknown */
	uint64_t mem_bytes; /* its memory; 0: unknown */
	int nic;            /* index of the chosen RDMA device; -1: none */
};
struct kvx_topo_nic {
	struct kvx_pci_path path; /* name "": not on PCI */
	char name[64];
	char driver[32];
	char netdev[16];
	char rate[48]; /* of the first active port, else of the first */
	int numa_node; /* -1: unknown */
	bool active;   /* a port of it is up */
};
struct kvx_topo_node {
	int id;
	char cpus[128]; /* "0-47,96-143" */
	uint64_t mem_bytes;
};

enum kvx_topo_link { KVX_TOPO_PCIE, KVX_TOPO_XGMI, KVX_TOPO_NVLINK };
struct kvx_topo_pair {
	enum kvx_topo_link link;
	struct kvx_pci_distance pci; /* how they are joined on PCI, whatever else there is */
	unsigned hops;               /* of xGMI; NVLink: 1; PCIe: pci.hops */
	uint64_t bandwidth_mbs;      /* MB/s as the kernel says; 0: unknown */
};

struct kvx_topo {
	struct kvx_topo_gpu gpus[KVX_TOPO_MAX_GPUS]; /* by PCI address */
	struct kvx_topo_nic nics[KVX_TOPO_MAX_NICS]; /* by name, mlx5_2 before mlx5_10 */
	struct kvx_topo_node nodes[KVX_TOPO_MAX_NODES];
	unsigned n_gpus, n_nics, n_nodes;
	struct kvx_topo_pair gpu_pairs[KVX_TOPO_MAX_GPUS][KVX_TOPO_MAX_GPUS];
	struct kvx_pci_distance nic_distances[KVX_TOPO_MAX_GPUS][KVX_TOPO_MAX_NICS];
	char nvml_note[256]; /* why NVLink is not known; "": it is, or there is no NVIDIA GPU */
};

/* Where the node shows itself; tests have places of their own. */
struct kvx_topo_places {
	const char *root; /* "": the real one; else a folder with sys/ and proc/ in it */
	const char *nvml; /* "libnvidia-ml.so.1"; NULL: do not ask */
	unsigned limit_ms;
};

/* ~100 KiB: not for the stack. To be freed by the caller. */
struct kvx_topo *kvx_topo_read(const struct kvx_topo_places *places);

/* Parts of the above, a vendor each: fill what they know of the GPUs that were found. */
void kvx_topo_amd(struct kvx_topo *topo, const char *root);
void kvx_topo_nvidia(struct kvx_topo *topo, const struct kvx_topo_places *places);

/* First line of the file named by a format, without its newline; "" when it cannot be read. */
char *kvx_topo_line(char *buf, unsigned buf_bytes, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* A path by a format; what is too long is cut, and then not found. */
void kvx_topo_path(char path[PATH_MAX], const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *kvx_topo_link_name(enum kvx_topo_link link); /* "pcie", "xgmi", "nvlink" */

#endif
