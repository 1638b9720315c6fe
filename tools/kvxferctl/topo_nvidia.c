/* What NVIDIA's driver shows of its GPUs: names under /proc/driver/nvidia. Which of them are joined
 * by NVLink no file says: NVML is asked, by its four functions that have not changed, in a child.
 */
#include <dlfcn.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/child.h"
#include "topo.h"

enum { P2P_NVLINK = 2, P2P_STATUS_OK = 0 }; /* nvmlGpuP2PCapsIndex_t, nvmlGpuP2PStatus_t */
enum { CHILD_MISSING = 10, CHILD_FOREIGN = 11, CHILD_NO_DRIVER = 12 };

/* "Model: \t\t NVIDIA H200" */
static void information(struct kvx_topo_gpu *gpu, const char *root)
{
	char path[PATH_MAX], line[256];
	FILE *f;

	kvx_topo_path(path, "%s/proc/driver/nvidia/gpus/%s/information", root, gpu->path.name);
	f = fopen(path, "re");
	while (f != NULL && fgets(line, sizeof(line), f) != NULL) {
		(void)sscanf(line, "Model: %95[^\n]", gpu->name);
		(void)sscanf(line, "GPU UUID: %63s", gpu->uuid);
		(void)sscanf(line, "Device Minor: %15s", gpu->minor);
	}
	if (f != NULL)
		fclose(f);
}

struct nvml_calls {
	int (*init)(void);
	int (*by_pci)(const char *pci, void **device);
	int (*p2p)(void *a, void *b, int index, int *status);
};
struct nvml_ask {
	const struct kvx_topo *topo;
	const char *soname;
};

static bool find(void *library, const char *name, void *out_call)
{
	void *symbol = dlsym(library, name);

	memcpy(out_call, &symbol, sizeof(symbol)); /* ISO C has no cast for this, POSIX has */
	return symbol != NULL;
}

/* In the child: "A B" for each pair that is joined. */
static int ask_nvml(int fd, void *arg)
{
	const struct nvml_ask *ask = arg;
	const struct kvx_topo *topo = ask->topo;
	void *library = dlopen(ask->soname, RTLD_NOW), *devices[KVX_TOPO_MAX_GPUS] = {NULL};
	struct nvml_calls calls;

	if (library == NULL)
		return CHILD_MISSING;
	if (!find(library, "nvmlInit_v2", &calls.init) ||
	    !find(library, "nvmlDeviceGetHandleByPciBusId_v2", &calls.by_pci) ||
	    !find(library, "nvmlDeviceGetP2PStatus", &calls.p2p))
		return CHILD_FOREIGN;
	if (calls.init() != 0)
		return CHILD_NO_DRIVER;
	for (unsigned i = 0; i < topo->n_gpus; i++)
		if (topo->gpus[i].vendor == KVX_TOPO_NVIDIA &&
		    calls.by_pci(topo->gpus[i].path.name, &devices[i]) != 0)
			devices[i] = NULL;
	for (unsigned a = 0; a < topo->n_gpus; a++)
		for (unsigned b = 0; b < topo->n_gpus; b++) {
			int status = -1;

			if (a == b || devices[a] == NULL || devices[b] == NULL)
				continue;
			if (calls.p2p(devices[a], devices[b], P2P_NVLINK, &status) == 0 &&
			    status == P2P_STATUS_OK)
				dprintf(fd, "%u %u\n", a, b);
		}
	return 0;
}

static void note_failure(struct kvx_topo *topo, const struct kvx_child *child, const char *soname)
{
	const char *why = "it could not be asked";

	if (child->end == KVX_CHILD_HUNG)
		why = "it does not return";
	else if (child->end == KVX_CHILD_CRASHED)
		why = "it crashes";
	else if (child->number == CHILD_MISSING)
		why = "it is not installed";
	else if (child->number == CHILD_FOREIGN)
		why = "it lacks functions";
	else if (child->number == CHILD_NO_DRIVER)
		why = "it does not reach the driver";
	snprintf(topo->nvml_note, sizeof(topo->nvml_note), "NVLink is not known: %s: %s%s", soname,
		 why, child->left);
}

static void nvlinks(struct kvx_topo *topo, const struct kvx_topo_places *places)
{
	struct nvml_ask ask = {.topo = topo, .soname = places->nvml};
	char buf[16384], *rest = buf, *line;
	struct kvx_child child;
	unsigned a, b;

	kvx_child_ask(ask_nvml, &ask, places->limit_ms, buf, sizeof(buf), &child);
	if (child.end != KVX_CHILD_ANSWERED) {
		note_failure(topo, &child, places->nvml);
		return;
	}
	while ((line = strsep(&rest, "\n")) != NULL) {
		if (sscanf(line, "%u %u", &a, &b) != 2 || a >= topo->n_gpus || b >= topo->n_gpus)
			continue;
		topo->gpu_pairs[a][b].link = KVX_TOPO_NVLINK;
		topo->gpu_pairs[a][b].hops = 1;
	}
}

void kvx_topo_nvidia(struct kvx_topo *topo, const struct kvx_topo_places *places)
{
	unsigned n = 0;

	for (unsigned i = 0; i < topo->n_gpus; i++) {
		if (topo->gpus[i].vendor != KVX_TOPO_NVIDIA)
			continue;
		information(&topo->gpus[i], places->root);
		n++;
	}
	if (n > 1 && places->nvml != NULL)
		nvlinks(topo, places);
}
