/* The GPU runtime of this process: looked for and started once, by the first probe, on a thread
 * with a deadline, since starting a runtime may hang when a device is unwell. It stays for ever.
 * One that ends the process, or hangs with the loader's lock, is not loaded at all: see gpu_try.h.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/gpu/gpu_priv.h"

#define START_TIMEOUT_NS (30 * KVX_SEC)

static _Atomic(struct gpu_shared *) the_shared;

struct gpu_shared *gpu_shared(void)
{
	return atomic_load(&the_shared);
}

int gpu_device_find(const struct gpu_shared *shared, const struct kvx_gpu_id *id)
{
	for (int i = 0; i < shared->n_devices; i++)
		if (kvx_gpu_id_same(&shared->devices[i].id, id))
			return i;
	return -1;
}

/* ---- starting */

struct start_call {
	struct gpu_call call; /* first */
	char runtime[8], dir[256];
	struct gpu_shared *shared; /* what came of it */
	struct kvx_why why;
};

static int shared_make(struct kvx_gpu *gpu, struct gpu_shared **out_shared, struct kvx_why *why)
{
	struct gpu_shared *shared = calloc(1, sizeof(*shared));
	int n = 0;

	if (shared == NULL)
		return kvx_why(why, -ENOMEM, "no memory for the list of GPUs");
	int err = gpu->ops->count(gpu, &n);
	if (err == 0 && n > KVX_GPU_MAX)
		kvx_warn("gpu: %d devices are there: the first %d are used", n, KVX_GPU_MAX);
	for (int i = 0; err == 0 && i < n && i < KVX_GPU_MAX; i++) {
		err = gpu->ops->describe(gpu, i, &shared->devices[i]);
		shared->n_devices = i + 1;
	}
	if (err < 0) {
		free(shared);
		return kvx_why(why, err, "%s: describing the devices: %s", gpu->library,
			       kvx_gpu_code_name(gpu, kvx_gpu_code()));
	}
	shared->gpu = gpu;
	*out_shared = shared;
	return 0;
}

/* The first runtime that starts. Why the others do not is said of the one that is most likely
 * meant: whose library is there. */
static int start_run(struct gpu_call *call)
{
	static const enum kvx_gpu_kind kinds[] = {KVX_GPU_CUDA, KVX_GPU_HIP};
	static const char *const names[] = {"cuda", "hip"};
	struct start_call *start = (struct start_call *)(void *)call;
	int err = -ENOENT;

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		struct kvx_gpu_find find = {.kind = kinds[i], .dir = start->dir};
		struct kvx_why why = {.text = ""};
		struct kvx_gpu *gpu;

		if (strcmp(start->runtime, "auto") != 0 && strcmp(start->runtime, names[i]) != 0)
			continue;
		int rc = kvx_gpu_open(&find, &gpu, &why);
		if (rc == 0) {
			rc = shared_make(gpu, &start->shared, &why);
			if (rc == 0)
				return 0;
			kvx_gpu_close(gpu);
		}
		if (err == -ENOENT) {
			size_t len = rc == -ENOENT ? strlen(start->why.text) : 0;

			snprintf(start->why.text + len, sizeof(start->why.text) - len, "%s%s",
				 len > 0 ? ", " : "", why.text);
			err = rc;
		}
	}
	return err;
}

/* What it has found is taken by nobody; the runtime stays loaded. */
static void start_late(struct gpu_call *call)
{
	struct start_call *start = (struct start_call *)(void *)call;

	if (start->shared != NULL)
		kvx_gpu_close(start->shared->gpu);
	free(start->shared);
	free(start);
}

static int shared_start(const struct kvx_gpu_conf *conf, struct kvx_why *why)
{
	struct gpu_control *control;
	struct start_call *start = calloc(1, sizeof(*start));

	if (start == NULL)
		return kvx_why(why, -ENOMEM, "no memory to start a GPU runtime");
	start->call.run = start_run;
	start->call.late = start_late;
	snprintf(start->runtime, sizeof(start->runtime), "%s",
		 conf->tried == KVX_GPU_CUDA  ? "cuda"
		 : conf->tried == KVX_GPU_HIP ? "hip"
		 : conf->runtime[0] != '\0'   ? conf->runtime
					      : "auto");
	snprintf(start->dir, sizeof(start->dir), "%s", conf->library_dir);
	int err = gpu_control_create("kvx-gpu-start", -1, &control);
	if (err < 0) {
		free(start);
		return kvx_why(why, err, "no thread to start a GPU runtime");
	}
	err = gpu_control_call(control, &start->call, START_TIMEOUT_NS);
	gpu_control_destroy(control);
	if (err == -ETIMEDOUT)
		return kvx_why(why, err,
			       "the GPU runtime does not start within 30 s: is a device hung? see "
			       "nvidia-smi or rocm-smi; GPUs are not used until the daemon starts "
			       "anew");
	if (err == 0)
		atomic_store(&the_shared, start->shared);
	else
		kvx_why(why, err, "%s", start->why.text);
	free(start);
	return err;
}

/* ---- rails */

static void rail_fill(const struct gpu_shared *shared, int device, struct kvx_rail *rail)
{
	const struct kvx_gpu_device *d = &shared->devices[device];

	*rail = (struct kvx_rail){.usable = true, .gpu = d->id};
	snprintf(rail->name, sizeof(rail->name), "gpu%d", device);
	snprintf(rail->device, sizeof(rail->device), "%.63s", d->name);
	rail->numa_node = kvx_gpu_numa_node(&d->id);
}

int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
	      struct kvx_why *why)
{
	const struct gpu_shared *shared = gpu_shared();

	if (shared == NULL && conf->gpu.refused[0] != '\0')
		return kvx_why(why, -ENODEV, "%s", conf->gpu.refused);
	if (shared == NULL) {
		int err = shared_start(&conf->gpu, why);
		if (err < 0)
			return err;
		shared = gpu_shared();
	}
	unsigned n = (unsigned)shared->n_devices;
	if (n > max) {
		kvx_warn("gpu: %u devices are there, the first %u are used", n, max);
		n = max;
	}
	for (unsigned i = 0; i < n; i++)
		rail_fill(shared, (int)i, &rails[i]);
	return (int)n;
}
