/* doctor: the GPU runtimes, each loaded and started in a child process by the same code that the
 * daemon has. What is wrong with one is one line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/child.h"
#include "common/tool.h"
#include "doctor_gpu.h"
#include "gpu/gpu.h"

struct runtime {
	enum kvx_gpu_kind kind;
	const char *name;
	const char *install; /* what to do where there is none */
};

/* CUDA writes 13000 for 13.0, HIP 70125424 for 7.1.25424. */
static void version_text(char *buf, size_t buf_bytes, enum kvx_gpu_kind kind, int version)
{
	if (kind == KVX_GPU_CUDA)
		snprintf(buf, buf_bytes, "%d.%d", version / 1000, version % 1000 / 10);
	else
		snprintf(buf, buf_bytes, "%d.%d.%d", version / 10000000, version / 100000 % 100,
			 version % 100000);
}

static void report_good(struct kvx_report *report, const struct runtime *runtime,
			const struct kvx_gpu_told *told, unsigned n_gpus)
{
	char version[32];

	version_text(version, sizeof(version), runtime->kind, told->version);
	kvx_report_ok(report, "gpu runtime",
		      kvx_tool_printf("%s %s (%s): %d device(s)%s%s%s", runtime->name, version,
				      told->file, told->n_devices,
				      told->caps & KVX_GPU_CAP_BATCH ? ", batched copies" : "",
				      told->caps & KVX_GPU_CAP_KERNEL ? ", gather kernel" : "",
				      told->caps & KVX_GPU_CAP_DMABUF ? ", dma-buf" : ""));
	if (told->n_devices >= 0 && (unsigned)told->n_devices < n_gpus)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu runtime",
		    kvx_tool_printf("%s shows %d of %u device(s) to this shell", runtime->name,
				    told->n_devices, n_gpus),
		    kvx_tool_strdup("look for CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, "
				    "ROCR_VISIBLE_DEVICES; in a container: give it all "
				    "GPUs"));
}

static void report_bad(struct kvx_report *report, const struct runtime *runtime,
		       struct kvx_child *child, const char *line)
{
	struct kvx_gpu_told told;
	char buf[KVX_GPU_TOLD_BYTES];

	if (child->end == KVX_CHILD_FAILED && kvx_gpu_told(line, &told))
		snprintf(buf, sizeof(buf), "%s cannot be used: %s", runtime->name, told.why);
	else
		kvx_child_text(child, runtime->name, buf, sizeof(buf));
	kvx_report_add(
	    report, KVX_FINDING_WARN, "gpu runtime", kvx_tool_strdup(buf),
	    kvx_tool_printf("%s; kvxferd goes on without GPU memory until then", runtime->install));
}

static void check_runtime(struct kvx_report *report, const struct kvx_gpu_places *places,
			  const struct runtime *runtime, unsigned n_gpus)
{
	struct kvx_gpu_find find = {.kind = runtime->kind, .dir = places->lib_dir};
	struct kvx_gpu_told told;
	struct kvx_child child;
	char buf[KVX_GPU_TOLD_BYTES];

	kvx_child_ask(kvx_gpu_tell, &find, places->limit_ms, buf, sizeof(buf), &child);
	if (child.end == KVX_CHILD_ANSWERED && kvx_gpu_told(buf, &told))
		report_good(report, runtime, &told, n_gpus);
	else
		report_bad(report, runtime, &child, buf);
}

void kvx_doctor_gpu_runtime(struct kvx_report *report, const struct kvx_topo *topo,
			    const struct kvx_gpu_places *places)
{
	struct runtime hip = {.kind = KVX_GPU_HIP,
			      .name = "HIP",
			      .install = "install ROCm's runtime (rocm-hip-runtime, "
					 "libamdhip64), or name its folder in gpu.library_dir"};
	struct runtime cuda = {.kind = KVX_GPU_CUDA,
			       .name = "CUDA",
			       .install = "install the driver's library (libcuda1, "
					  "libnvidia-compute), of the same release as the kernel "
					  "module"};
	unsigned n_amd = 0;

	for (unsigned i = 0; i < topo->n_gpus; i++)
		n_amd += topo->gpus[i].vendor == KVX_TOPO_AMD;
	if (n_amd > 0)
		check_runtime(report, places, &hip, n_amd);
	if (topo->n_gpus > n_amd)
		check_runtime(report, places, &cuda, topo->n_gpus - n_amd);
}
