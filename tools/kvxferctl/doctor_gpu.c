/* doctor: GPUs, as the kernel shows them: whether programs may use them, and what keeps kvxferd
 * from moving their memory well. */
#include "doctor_gpu.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/tool.h"

static unsigned count_vendor(const struct kvx_topo *topo, enum kvx_topo_vendor vendor)
{
	unsigned n = 0;

	for (unsigned i = 0; i < topo->n_gpus; i++)
		n += topo->gpus[i].vendor == vendor;
	return n;
}

/* A device file that programs of this user need. */
static bool check_file(struct kvx_report *report, const char *root, const char *file,
		       const char *missing_cure, const char *denied_cure)
{
	char path[PATH_MAX];

	kvx_topo_path(path, "%s%s", root, file);
	if (access(path, F_OK) != 0) {
		kvx_report_add(report, KVX_FINDING_WARN, "gpu",
			       kvx_tool_printf("%s is not there: no program can use the GPU", file),
			       kvx_tool_strdup(missing_cure));
		return false;
	}
	if (access(path, R_OK | W_OK) != 0) {
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu",
		    kvx_tool_printf("%s cannot be opened by this user: %s", file, strerror(errno)),
		    kvx_tool_strdup(denied_cure));
		return false;
	}
	return true;
}

static void files_amd(struct kvx_report *report, const struct kvx_topo *topo, const char *root)
{
	static const char denied[] = "add the daemon's and the engines' users to the group render "
				     "(and video, where /dev/kfd has that one); in a container "
				     "--device /dev/kfd --device /dev/dri --group-add render";
	unsigned n_good = 0, n = 0;
	char file[64];

	if (!check_file(report, root, "/dev/kfd",
			"modprobe amdgpu, and see `dmesg | grep kfd`; in a container --device "
			"/dev/kfd --device /dev/dri",
			denied))
		return;
	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_topo_gpu *gpu = &topo->gpus[i];

		if (gpu->vendor != KVX_TOPO_AMD || gpu->render[0] == '\0')
			continue;
		snprintf(file, sizeof(file), "/dev/dri/%s", gpu->render);
		n++;
		n_good +=
		    check_file(report, root, file, "in a container --device /dev/dri", denied);
	}
	if (n_good == n)
		kvx_report_ok(
		    report, "gpu",
		    kvx_tool_printf("AMD: /dev/kfd and %u render node(s) can be opened", n));
}

static void files_nvidia(struct kvx_report *report, const struct kvx_topo *topo, const char *root)
{
	static const char denied[] = "check the permissions of /dev/nvidia*; in a container run "
				     "with the NVIDIA runtime";
	unsigned n_good = 0, n = 0;
	char file[64];

	if (!check_file(report, root, "/dev/nvidiactl",
			"modprobe nvidia (or nvidia-smi once, as root); in a container run with "
			"the NVIDIA runtime",
			denied) ||
	    !check_file(report, root, "/dev/nvidia-uvm", "modprobe nvidia-uvm", denied))
		return;
	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_topo_gpu *gpu = &topo->gpus[i];

		if (gpu->vendor != KVX_TOPO_NVIDIA || gpu->minor[0] == '\0')
			continue;
		snprintf(file, sizeof(file), "/dev/nvidia%s", gpu->minor);
		n++;
		n_good += check_file(report, root, file,
				     "in a container: it was not given this GPU", denied);
	}
	if (n_good == n)
		kvx_report_ok(report, "gpu",
			      kvx_tool_printf("NVIDIA: %u device file(s) can be opened", n));
}

static void check_drivers(struct kvx_report *report, const struct kvx_topo *topo)
{
	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_topo_gpu *gpu = &topo->gpus[i];
		const char *need = gpu->vendor == KVX_TOPO_AMD ? "amdgpu" : "nvidia";

		if (strcmp(gpu->driver, need) == 0)
			continue;
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu",
		    gpu->driver[0] != '\0'
			? kvx_tool_printf("gpu%u %s has the driver %s: it is not for programs "
					  "of this node",
					  i, gpu->path.name, gpu->driver)
			: kvx_tool_printf("gpu%u %s has no driver", i, gpu->path.name),
		    kvx_tool_printf("modprobe %s, and see `dmesg`; nothing to do when it was given "
				    "to a virtual machine",
				    need));
	}
}

void kvx_doctor_gpu_files(struct kvx_report *report, const struct kvx_topo *topo, const char *root)
{
	check_drivers(report, topo);
	if (count_vendor(topo, KVX_TOPO_AMD) > 0)
		files_amd(report, topo, root);
	if (count_vendor(topo, KVX_TOPO_NVIDIA) > 0)
		files_nvidia(report, topo, root);
}

/* "# CONFIG_X is not set" in the configuration that distributions put beside the kernel. */
static bool config_lacks(const char *root, const char *release, const char *option)
{
	char path[PATH_MAX], line[256], unset[128];
	bool lacks = false;
	FILE *f;

	kvx_topo_path(path, "%s/boot/config-%s", root, release);
	snprintf(unset, sizeof(unset), "# %s is not set", option);
	f = fopen(path, "re");
	while (f != NULL && !lacks && fgets(line, sizeof(line), f) != NULL)
		lacks = strncmp(line, unset, strlen(unset)) == 0;
	if (f != NULL)
		fclose(f);
	return lacks;
}

static void check_amd_kernel(struct kvx_report *report, const char *root, const char *release)
{
	static const char *const options[] = {"CONFIG_PCI_P2PDMA", "CONFIG_DMABUF_MOVE_NOTIFY",
					      "CONFIG_HSA_AMD_P2P"};

	for (unsigned i = 0; i < sizeof(options) / sizeof(options[0]); i++)
		if (config_lacks(root, release, options[i]))
			kvx_report_add(
			    report, KVX_FINDING_WARN, "gpu dma-buf",
			    kvx_tool_printf("this kernel was built without %s: other devices "
					    "cannot reach AMD GPUs' memory",
					    options[i]),
			    kvx_tool_strdup("a kernel that has it, or amdgpu-dkms; until then "
					    "transfers to other nodes go through host memory"));
}

/* Whether RDMA devices of this node can reach its GPUs' memory. */
static void check_dmabuf(struct kvx_report *report, const struct kvx_topo *topo,
			 const struct kvx_gpu_places *places, const char *release)
{
	unsigned major = 0, minor = 0;
	char line[256];

	(void)sscanf(release, "%u.%u", &major, &minor);
	kvx_topo_line(line, sizeof(line), "%s/proc/driver/nvidia/version", places->root);
	if (major < 5 || (major == 5 && minor < 12))
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu dma-buf",
		    kvx_tool_printf("Linux %u.%u cannot give GPU memory to RDMA devices by dma-buf",
				    major, minor),
		    kvx_tool_strdup("Linux 5.12 or later, or the vendor's peer memory module "
				    "(nvidia-peermem; amdgpu-dkms has its own)"));
	else if (line[0] != '\0' && strstr(line, "Open Kernel Module") == NULL)
		kvx_report_add(report, KVX_FINDING_WARN, "gpu dma-buf",
			       kvx_tool_strdup(
				   "the NVIDIA driver is the closed one, which exports no dma-buf"),
			       kvx_tool_strdup("the open kernel modules (nvidia-open), or modprobe "
					       "nvidia-peermem"));
	else
		kvx_report_ok(
		    report, "gpu dma-buf",
		    kvx_tool_printf("Linux %u.%u%s: GPU memory can reach RDMA devices "
				    "by dma-buf",
				    major, minor,
				    line[0] != '\0' ? " with NVIDIA's open kernel modules" : ""));
	if (count_vendor(topo, KVX_TOPO_AMD) > 0)
		check_amd_kernel(report, places->root, release);
}

static void name_gpus(struct kvx_report *report, const struct kvx_topo *topo)
{
	unsigned amd = count_vendor(topo, KVX_TOPO_AMD), nvidia = topo->n_gpus - amd;

	kvx_report_ok(report, "gpu",
		      kvx_tool_printf("%u GPU(s): %u AMD, %u NVIDIA; `kvxferctl topology` shows "
				      "how they are linked",
				      topo->n_gpus, amd, nvidia));
}

void kvx_doctor_gpus(struct kvx_report *report, const struct kvx_gpu_places *places,
		     const struct kvx_gpu_daemon *daemon)
{
	struct kvx_topo_places where = {.root = places->root};
	struct kvx_topo *topo = kvx_topo_read(&where);
	struct utsname kernel;

	kvx_doctor_gpu_daemon(report, daemon, topo->n_gpus, places->root);
	if (topo->n_gpus == 0) {
		kvx_report_ok(report, "gpu",
			      kvx_tool_strdup("no GPU on the PCI bus: regions are host memory"));
		free(topo);
		return;
	}
	name_gpus(report, topo);
	kvx_doctor_gpu_files(report, topo, places->root);
	kvx_doctor_gpu_bus(report, topo, places->root);
	if (topo->n_nics > 0 && uname(&kernel) == 0)
		check_dmabuf(report, topo, places,
			     places->release != NULL ? places->release : kernel.release);
	if (places->ask_runtime)
		kvx_doctor_gpu_runtime(report, topo, places);
	free(topo);
}
