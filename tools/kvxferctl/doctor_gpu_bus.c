/* doctor: what lies between a GPU and others on PCI: how much of its memory the bus shows, an IOMMU
 * that translates, switches that send what is for a neighbour up to the processor. */
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <unistd.h>

#include "common/tool.h"
#include "doctor_gpu.h"

#define MIB (1ull << 20)

/* NVIDIA's memory is not told by the kernel: a window of 256 MiB is what boards without large bars
 * have. */
static bool bar_is_small(const struct kvx_topo_gpu *gpu)
{
	if (gpu->bar_bytes == 0)
		return false;
	if (gpu->mem_bytes != 0)
		return gpu->bar_bytes < gpu->mem_bytes;
	return gpu->bar_bytes <= 256 * MIB;
}

static void check_bars(struct kvx_report *report, const struct kvx_topo *topo)
{
	char bar[KVX_UNIT_BYTES], mem[KVX_UNIT_BYTES];
	unsigned n_small = 0;

	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_topo_gpu *gpu = &topo->gpus[i];

		if (!bar_is_small(gpu))
			continue;
		n_small++;
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu bar",
		    kvx_tool_printf("gpu%u %s shows %s%s%s of its memory on PCI: RDMA devices and "
				    "other GPUs cannot reach the rest",
				    i, gpu->path.name, kvx_unit_bytes(bar, gpu->bar_bytes),
				    gpu->mem_bytes != 0 ? " of " : "",
				    gpu->mem_bytes != 0 ? kvx_unit_bytes(mem, gpu->mem_bytes) : ""),
		    kvx_tool_strdup("switch on Above 4G Decoding and Resizable BAR in the "
				    "firmware's set-up"));
	}
	if (n_small == 0)
		kvx_report_ok(report, "gpu bar",
			      kvx_tool_strdup("PCI shows all of the GPUs' memory"));
}

/* "DMA", "DMA-FQ": addresses are translated; "identity": not; "": no IOMMU. */
static const char *iommu_type(char *buf, unsigned buf_bytes, const char *root,
			      const struct kvx_topo_gpu *gpu)
{
	return kvx_topo_line(buf, buf_bytes, "%s/sys/bus/pci/devices/%s/iommu_group/type", root,
			     gpu->path.name);
}

static void check_iommu(struct kvx_report *report, const struct kvx_topo *topo, const char *root)
{
	char type[32];
	unsigned n = 0;

	for (unsigned i = 0; i < topo->n_gpus; i++)
		n += strncmp(iommu_type(type, sizeof(type), root, &topo->gpus[i]), "DMA", 3) == 0;
	if (n == 0)
		kvx_report_ok(report, "gpu iommu",
			      kvx_tool_strdup("no IOMMU translates what GPUs send each other"));
	else
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu iommu",
		    kvx_tool_printf("the IOMMU translates addresses for %u GPU(s): direct copies "
				    "over PCI and RDMA to GPU memory are slow, fail, or arrive "
				    "wrong",
				    n),
		    kvx_tool_strdup("boot with iommu=pt (and amd_iommu=on or intel_iommu=on where "
				    "one is needed at all)"));
}

static uint32_t le32(const uint8_t *at)
{
	return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 |
	       (uint32_t)at[3] << 24;
}

/* -1: the extended configuration cannot be read (only root may). 1: the bridge redirects what goes
 * from one device below it to another. 0: it does not. */
static int acs_redirects(const char *root, const char *bridge)
{
	enum { CAP_ACS = 0x0d, REDIRECT_REQUESTS = 1u << 2, REDIRECT_COMPLETIONS = 1u << 3 };
	uint8_t config[4096];
	char path[PATH_MAX];
	unsigned at = 0x100;
	ssize_t n;
	int fd;

	kvx_topo_path(path, "%s/sys/bus/pci/devices/%s/config", root, bridge);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	n = read(fd, config, sizeof(config));
	close(fd);
	if (n < 0x104)
		return n <= 256 ? -1 : 0;
	/* Bounded: a broken list may run in circles. */
	for (unsigned turn = 0; turn < 64 && at >= 0x100 && (ssize_t)at + 8 <= n; turn++) {
		uint32_t header = le32(config + at);

		if ((header & 0xffff) == CAP_ACS)
			return ((config[at + 6] & (REDIRECT_REQUESTS | REDIRECT_COMPLETIONS)) != 0);
		at = header >> 20;
	}
	return 0;
}

/* A GPU's bridges are looked at once: those of several GPUs are the same. */
static bool seen_before(const struct kvx_topo *topo, unsigned gpu, unsigned bridge)
{
	const char *name = topo->gpus[gpu].path.bridges[bridge];

	for (unsigned i = 0; i < gpu; i++)
		for (unsigned b = 0; b < topo->gpus[i].path.n_bridges; b++)
			if (strcmp(topo->gpus[i].path.bridges[b], name) == 0)
				return true;
	return false;
}

static void check_acs(struct kvx_report *report, const struct kvx_topo *topo, const char *root)
{
	unsigned n_redirect = 0, n_unknown = 0, n = 0;
	const char *first = "";

	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_pci_path *path = &topo->gpus[i].path;

		for (unsigned b = 0; b < path->n_bridges; b++) {
			int found;

			if (seen_before(topo, i, b))
				continue;
			found = acs_redirects(root, path->bridges[b]);
			n++;
			n_unknown += found < 0;
			if (found > 0 && n_redirect++ == 0)
				first = path->bridges[b];
		}
	}
	if (n_redirect > 0)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu acs",
		    kvx_tool_printf("%u PCI bridge(s) above GPUs, the first %s, send what is for a "
				    "neighbour up to the processor (ACS): copies between devices "
				    "of one switch are slow",
				    n_redirect, first),
		    kvx_tool_strdup("switch ACS off in the firmware's set-up, or `setpci -s BRIDGE "
				    "ECAP_ACS+6.w=0` at each boot (not under virtual machines: "
				    "it is what isolates them)"));
	else if (n_unknown > 0)
		kvx_report_ok(report, "gpu acs",
			      kvx_tool_printf("not known for %u of %u PCI bridge(s): only root may "
					      "look",
					      n_unknown, n));
	else if (n > 0)
		kvx_report_ok(report, "gpu acs",
			      kvx_tool_printf("%u PCI bridge(s) above GPUs, none redirects", n));
}

void kvx_doctor_gpu_bus(struct kvx_report *report, const struct kvx_topo *topo, const char *root)
{
	check_bars(report, topo);
	if (topo->n_gpus + topo->n_nics < 2)
		return; /* nobody to reach it */
	check_iommu(report, topo, root);
	check_acs(report, topo, root);
}
