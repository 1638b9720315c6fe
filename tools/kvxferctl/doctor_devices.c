/* doctor: RDMA devices and GPUs, as the kernel shows them. Links no vendor library. */
#include "doctor.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
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

static void rdma_ports(struct kvx_report *report)
{
	glob_t ports;

	if (glob("/sys/class/infiniband/*/ports/*/state", 0, NULL, &ports) != 0)
		return;
	for (size_t i = 0; i < ports.gl_pathc; i++) {
		/* /sys/class/infiniband/DEVICE/ports/N/state */
		char state[64] = "", device[64] = "", port[16] = "";

		if (sscanf(ports.gl_pathv[i], "/sys/class/infiniband/%63[^/]/ports/%15[^/]/",
			   device, port) != 2 ||
		    !kvx_read_line(ports.gl_pathv[i], state, sizeof(state)))
			continue;
		if (strstr(state, "ACTIVE"))
			kvx_report_ok(report, "rdma port",
				      kvx_tool_printf("%s/%s %s", device, port, state));
		else
			kvx_report_add(
			    report, KVX_FINDING_WARN, "rdma port",
			    kvx_tool_printf("%s/%s is not active: %s", device, port, state),
			    kvx_tool_strdup("check cable, switch port and subnet manager "
					    "(ibstat), or `ip link set DEV up` for RoCE"));
	}
	globfree(&ports);
}

void kvx_doctor_rdma(struct kvx_report *report)
{
	size_t unused, usable, n_devices = count_glob("/sys/class/infiniband/*", &unused);
	size_t n_verbs = count_glob("/dev/infiniband/uverbs*", &usable);

	if (n_devices == 0) {
		kvx_report_ok(report, "rdma",
			      kvx_tool_strdup("no RDMA device: other nodes are reached over TCP"));
		return;
	}
	if (n_verbs == 0)
		kvx_report_add(report, KVX_FINDING_WARN, "rdma",
			       kvx_tool_printf("%zu device(s) in /sys/class/infiniband but no "
					       "/dev/infiniband/uverbs*: they cannot be opened",
					       n_devices),
			       kvx_tool_strdup("modprobe ib_uverbs; in a container pass "
					       "--device=/dev/infiniband"));
	else if (usable == 0)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "rdma",
		    kvx_tool_printf("%zu device(s), not accessible for this user", n_devices),
		    kvx_tool_strdup("give the daemon's user access to /dev/infiniband/uverbs* "
				    "(group rdma, or a udev rule)"));
	else
		kvx_report_ok(
		    report, "rdma",
		    kvx_tool_printf("%zu device(s); this release reaches other nodes through "
				    "libfabric",
				    n_devices));
	rdma_ports(report);
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
}
