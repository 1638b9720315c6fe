/* doctor: the GPU runtimes, each loaded and started in a child process by the same code that the
 * daemon has. What is wrong with one is one line. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "child.h"
#include "common/tool.h"
#include "doctor_gpu.h"
#include "gpu/gpu.h"

enum { CHILD_REFUSED = 10 };

struct runtime {
	enum kvx_gpu_kind kind;
	const char *name;
	const char *install; /* what to do where there is none */
	const char *lib_dir;
};

/* In the child: "FILE|VERSION|DEVICES|CAPS", or "why|REASON". */
static int ask_runtime(int fd, void *arg)
{
	const struct runtime *runtime = arg;
	struct kvx_gpu_find find = {.kind = runtime->kind, .dir = runtime->lib_dir};
	struct kvx_why why = {0};
	struct kvx_gpu *gpu;
	int version = 0, n = 0, rc = kvx_gpu_open(&find, &gpu, &why);

	if (rc != 0) {
		dprintf(fd, "why|%s\n", why.text);
		return CHILD_REFUSED;
	}
	if (gpu->ops->version(gpu, &version) != 0 || gpu->ops->count(gpu, &n) != 0) {
		dprintf(fd, "why|it does not answer: error %d\n", kvx_gpu_code());
		return CHILD_REFUSED;
	}
	dprintf(fd, "%s|%d|%d|%u\n", gpu->library, version, n, gpu->caps);
	return 0;
}

/* CUDA writes 13000 for 13.0, HIP 70125424 for 7.1.25424. */
static void version_text(char *buf, size_t buf_bytes, enum kvx_gpu_kind kind, int version)
{
	if (kind == KVX_GPU_CUDA)
		snprintf(buf, buf_bytes, "%d.%d", version / 1000, version % 1000 / 10);
	else
		snprintf(buf, buf_bytes, "%d.%d.%d", version / 10000000, version / 100000 % 100,
			 version % 100000);
}

static void report_good(struct kvx_report *report, const struct runtime *runtime, const char *line,
			unsigned n_gpus)
{
	char file[160] = "", version[32];
	int number = 0, n = 0;
	unsigned caps = 0;

	(void)sscanf(line, "%159[^|]|%d|%d|%u", file, &number, &n, &caps);
	version_text(version, sizeof(version), runtime->kind, number);
	kvx_report_ok(report, "gpu runtime",
		      kvx_tool_printf("%s %s (%s): %d device(s)%s%s%s", runtime->name, version,
				      file, n, caps & KVX_GPU_CAP_BATCH ? ", batched copies" : "",
				      caps & KVX_GPU_CAP_KERNEL ? ", gather kernel" : "",
				      caps & KVX_GPU_CAP_DMABUF ? ", dma-buf" : ""));
	if (n >= 0 && (unsigned)n < n_gpus)
		kvx_report_add(
		    report, KVX_FINDING_WARN, "gpu runtime",
		    kvx_tool_printf("%s shows %d of %u device(s) to this shell", runtime->name, n,
				    n_gpus),
		    kvx_tool_strdup("look for CUDA_VISIBLE_DEVICES, HIP_VISIBLE_DEVICES, "
				    "ROCR_VISIBLE_DEVICES; in a container: give it all "
				    "GPUs"));
}

static void report_bad(struct kvx_report *report, const struct runtime *runtime,
		       struct kvx_child *child, const char *line)
{
	const char *words = kvx_child_last_line(child);
	char *text;

	if (child->end == KVX_CHILD_HUNG)
		text = kvx_tool_printf("%s does not return when it is started%s", runtime->name,
				       child->left);
	else if (child->end == KVX_CHILD_CRASHED)
		text = kvx_tool_printf("%s crashes when it is started (%s)%s%s", runtime->name,
				       strsignal(child->number), *words ? ": " : "", words);
	else if (strncmp(line, "why|", 4) == 0)
		text = kvx_tool_printf("%s cannot be used: %.*s", runtime->name,
				       (int)strcspn(line + 4, "\n"), line + 4);
	else
		text = kvx_tool_printf("%s ends the program when it is started%s%s", runtime->name,
				       *words ? ": " : "", words);
	kvx_report_add(
	    report, KVX_FINDING_WARN, "gpu runtime", text,
	    kvx_tool_printf("%s; kvxferd goes on without GPU memory until then", runtime->install));
}

static void check_runtime(struct kvx_report *report, const struct kvx_gpu_places *places,
			  struct runtime *runtime, unsigned n_gpus)
{
	struct kvx_child child;
	char buf[1024];

	runtime->lib_dir = places->lib_dir;
	kvx_child_ask(ask_runtime, runtime, places->limit_ms, buf, sizeof(buf), &child);
	if (child.end == KVX_CHILD_ANSWERED)
		report_good(report, runtime, buf, n_gpus);
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
