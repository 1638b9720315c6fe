/* doctor: GPUs, as the kernel shows them. Links no vendor library. */
#include "doctor.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include "common/tool.h"

static size_t count_glob(const char *pattern, size_t *out_usable)
{
	glob_t found;
	size_t n = 0;

	*out_usable = 0;
	if (glob(pattern, GLOB_NOSORT, NULL, &found) != 0)
		return 0;
	n = found.gl_pathc;
	for (size_t i = 0; i < n; i++)
		if (access(found.gl_pathv[i], R_OK | W_OK) == 0)
			(*out_usable)++;
	globfree(&found);
	return n;
}

static void gpu_report(struct kvx_report *report, const char *what, const char *pattern,
		       const char *cure)
{
	size_t usable, n = count_glob(pattern, &usable);

	if (n == 0)
		return;
	if (usable > 0)
		kvx_report_ok(
		    report, "gpu",
		    kvx_tool_printf("%s: %zu of %zu device files accessible; this release "
				    "moves host memory only",
				    what, usable, n));
	else
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu",
		    kvx_tool_printf("%s: %zu device file(s), none accessible for this user", what,
				    n),
		    kvx_tool_strdup(cure));
}

/* Whether RDMA devices of this node can reach its GPUs' memory. */
static void gpu_rdma(struct kvx_report *report)
{
	struct utsname kernel;
	unsigned major = 0, minor = 0;
	char line[256];
	bool nvidia = kvx_read_line("/proc/driver/nvidia/version", line, sizeof(line)) != NULL;

	if (uname(&kernel) == 0)
		(void)sscanf(kernel.release, "%u.%u", &major, &minor);
	if (major < 5 || (major == 5 && minor < 12))
		kvx_report_add(report, KVX_FINDING_WARN, "gpu rdma",
			       kvx_tool_printf("Linux %u.%u cannot give GPU memory to RDMA devices "
					       "by dma-buf",
					       major, minor),
			       kvx_tool_strdup("Linux 5.12 or later; kvxfer does not use "
					       "nvidia-peermem or amdgpu's peer memory"));
	else if (nvidia && strstr(line, "Open Kernel Module") == NULL)
		kvx_report_add(report, KVX_FINDING_WARN, "gpu rdma",
			       kvx_tool_strdup("the NVIDIA driver is the closed one, which exports "
					       "no dma-buf: RDMA reaches no GPU memory"),
			       kvx_tool_strdup("install the open kernel modules (nvidia-open); "
					       "nvidia-peermem is not used"));
	else
		kvx_report_ok(report, "gpu rdma",
			      kvx_tool_printf("Linux %u.%u%s: GPU memory can reach RDMA devices by "
					      "dma-buf; nvidia-peermem is not needed",
					      major, minor,
					      nvidia ? " with NVIDIA's open kernel modules" : ""));
}

void kvx_doctor_gpu(struct kvx_report *report)
{
	size_t unused;
	size_t n = count_glob("/dev/kfd", &unused) + count_glob("/dev/nvidia[0-9]*", &unused) +
		   count_glob("/dev/dri/renderD*", &unused);

	if (n == 0) {
		kvx_report_ok(report, "gpu", kvx_tool_strdup("no GPU: regions are host memory"));
		return;
	}
	gpu_report(report, "AMD /dev/kfd", "/dev/kfd", "add the user to the group render");
	gpu_report(
	    report, "NVIDIA", "/dev/nvidia[0-9]*",
	    "check the permissions of /dev/nvidia*; in a container run with the NVIDIA runtime");
	gpu_report(report, "render nodes", "/dev/dri/renderD*", "add the user to the group render");
	if (count_glob("/sys/class/infiniband/*", &unused) > 0)
		gpu_rdma(report);
}
