/* doctor: what the daemon that runs says of GPUs, and what its environment hides from it. */
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "common/tool.h"
#include "doctor_gpu.h"

/* The daemon must see every device: engines name them by address, not by number. */
static void check_environment(struct kvx_report *report, const char *root, unsigned pid)
{
	static const char *const names[] = {"CUDA_VISIBLE_DEVICES=", "HIP_VISIBLE_DEVICES=",
					    "ROCR_VISIBLE_DEVICES=", "GPU_DEVICE_ORDINAL="};
	char path[PATH_MAX], buf[65536];
	size_t n;
	FILE *f;

	kvx_topo_path(path, "%s/proc/%u/environ", root, pid);
	f = pid != 0 ? fopen(path, "re") : NULL;
	if (f == NULL)
		return;
	n = fread(buf, 1, sizeof(buf) - 1, f);
	fclose(f);
	buf[n] = '\0';
	for (const char *at = buf; at < buf + n; at += strlen(at) + 1)
		for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
			if (strncmp(at, names[i], strlen(names[i])) == 0)
				kvx_report_add(
				    report, KVX_FINDING_WARN, "gpu",
				    kvx_tool_printf("the daemon runs with %s: it cannot serve "
						    "engines on the GPUs that this hides",
						    at),
				    kvx_tool_strdup("take it out of the daemon's environment; "
						    "engines keep theirs"));
}

static void check_device(struct kvx_report *report, struct json_object *row, unsigned n_gpus)
{
	const char *name = kvx_json_str(row, "name"), *state = kvx_json_str(row, "state");
	const char *reason = kvx_json_str(row, "reason");

	if (strcmp(state, "lost") == 0)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu",
		    kvx_tool_printf("the daemon has lost %s (%s %s): regions of its memory "
				    "are gone, new ones are refused",
				    name, kvx_json_str(row, "device"), kvx_json_str(row, "pci")),
		    kvx_tool_strdup("see dmesg for the device; when nvidia-smi or rocm-smi "
				    "finds it well, restart kvxferd"));
	else if (strcmp(state, "hanging") == 0)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu",
		    kvx_tool_printf("%s (%s %s): %s; other GPUs and host memory do not", name,
				    kvx_json_str(row, "device"), kvx_json_str(row, "pci"), reason),
		    kvx_tool_strdup("see dmesg for the device; where the call does not return at "
				    "all, restart kvxferd, and if that hangs the node"));
	else if (strcmp(state, "usable") != 0 && n_gpus > 0)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu",
		    kvx_tool_printf("the daemon does not use %s: %s", *name ? name : "the GPUs",
				    reason),
		    kvx_tool_strdup("see what is said of the runtime below, and [gpu] in "
				    "kvxferd.conf(5)"));
	else if (strcmp(state, "usable") != 0)
		kvx_report_ok(report, "gpu",
			      kvx_tool_printf("the daemon serves host memory only: %s", reason));
}

void kvx_doctor_gpu_daemon(struct kvx_report *report, const struct kvx_gpu_daemon *daemon,
			   unsigned n_gpus, const char *root)
{
	struct json_object *rows = kvx_json_array(daemon->devices, "devices");
	unsigned n_usable = 0;

	for (size_t i = 0; i < kvx_json_length(rows); i++) {
		struct json_object *row = kvx_json_at(rows, i);

		if (strcmp(kvx_json_str(row, "transport"), "gpu") != 0)
			continue;
		n_usable += strcmp(kvx_json_str(row, "state"), "usable") == 0;
		check_device(report, row, n_gpus);
	}
	if (n_usable > 0)
		kvx_report_ok(
		    report, "gpu",
		    kvx_tool_printf("the daemon serves the memory of %u GPU(s)", n_usable));
	check_environment(report, root, daemon->pid);
}
