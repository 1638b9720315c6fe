/* See gpu_fake.h. The devices of the runtime, failing calls, and how it is found. Any thread. */
#include "gpu_fake.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "gpu/gpu_priv.h"
#include "gpu_fake_priv.h"

struct fake_gpu fake;
enum fake_slow fake_slow;
pthread_mutex_t fake_lock = PTHREAD_MUTEX_INITIALIZER;
_Thread_local int fake_bound;

void fake_fail(enum fake_call call, unsigned nth, unsigned times, int err)
{
	fake.fail_err[call] = err;
	fake.fail_times[call] = times;
	fake.fail_at[call] = fake.n[call] + nth;
}

int fake_enter(enum fake_call call)
{
	const struct timespec pause = {.tv_nsec = 1000000};
	unsigned n = ++fake.n[call], n_resets = fake.n_resets;

	while (fake.hang[call])
		nanosleep(&pause, NULL);
	if (fake.n_resets != n_resets)
		return -ENODEV;
	if (fake.fail_at[call] == 0 || n < fake.fail_at[call] ||
	    n >= fake.fail_at[call] + fake.fail_times[call])
		return 0;
	gpu_err(fake.fail_code[call]);
	return fake.fail_err[call];
}

static int fake_version(struct kvx_gpu *gpu, int *out_version)
{
	*out_version = 1;
	return 0;
}

static int fake_count(struct kvx_gpu *gpu, int *out_n)
{
	*out_n = FAKE_DEVICES;
	return 0;
}

static int fake_describe(struct kvx_gpu *gpu, int device, struct kvx_gpu_device *out)
{
	*out = (struct kvx_gpu_device){.name = "fake", .n_units = 1, .host_direct = true};
	out->id.pci[0] = '\0';
	kvx_gpu_pci_normalise(device == 0 ? "0000:11:00.0" : "0000:22:00.0", out->id.pci);
	return 0;
}

static int fake_open(struct kvx_gpu *gpu, int device)
{
	return fake_enter(FAKE_OPEN);
}

static int fake_close(struct kvx_gpu *gpu, int device)
{
	return 0;
}

static int fake_bind(struct kvx_gpu *gpu, int device, struct kvx_gpu_bound *out_before)
{
	fake_bound = device;
	return fake_enter(FAKE_BIND);
}

static void fake_unbind(struct kvx_gpu *gpu, const struct kvx_gpu_bound *before)
{
}

static int fake_reset(struct kvx_gpu *gpu, int device)
{
	int err = fake_enter(FAKE_RESET);

	while (fake.hang_reset && sem_wait(&fake.let_go) != 0)
		;
	if (err < 0)
		return err;
	pthread_mutex_lock(&fake_lock);
	fake.n_resets++;
	fake_copy_reset(device);
	fake_mem_reset(device);
	pthread_mutex_unlock(&fake_lock);
	return 0;
}

static int fake_peer_can(struct kvx_gpu *gpu, int device, int peer, bool *out_can)
{
	*out_can = !fake.no_peers;
	return fake_enter(FAKE_PEER_CAN);
}

static int fake_peer_enable(struct kvx_gpu *gpu, int peer)
{
	return fake_enter(FAKE_PEER_ENABLE);
}

static int fake_link(struct kvx_gpu *gpu, int device, int peer, enum kvx_gpu_link *out_link,
		     unsigned *out_hops)
{
	return -EOPNOTSUPP;
}

static struct kvx_gpu_ops fake_ops = {
    .kind = KVX_GPU_CUDA,
    .name = "fake",
    .version = fake_version,
    .count = fake_count,
    .describe = fake_describe,
    .open = fake_open,
    .close = fake_close,
    .bind = fake_bind,
    .unbind = fake_unbind,
    .reset = fake_reset,
    .peer_can = fake_peer_can,
    .peer_enable = fake_peer_enable,
    .link = fake_link,
};

void fake_gpu_init(uint32_t caps)
{
	memset(&fake, 0, sizeof(fake));
	fake_mem_fill(&fake_ops);
	fake_copy_fill(&fake_ops);
	fake.gpu.ops = &fake_ops;
	fake.gpu.caps = caps;
	sem_init(&fake.let_go, 0, 0);
}

/* -Wl,--wrap=kvx_gpu_open, kvx_gpu_close and kvx_gpu_code_name: whoever looks for a runtime finds
 * this one. */
int __wrap_kvx_gpu_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu,
			struct kvx_why *why);
int __wrap_kvx_gpu_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu,
			struct kvx_why *why)
{
	if (fake.gpu.ops == NULL || find->kind != KVX_GPU_CUDA)
		return kvx_why(why, -ENOENT, "no such library");
	*out_gpu = &fake.gpu;
	return 0;
}

void __wrap_kvx_gpu_close(struct kvx_gpu *gpu);
void __wrap_kvx_gpu_close(struct kvx_gpu *gpu)
{
}

const char *__wrap_kvx_gpu_code_name(struct kvx_gpu *gpu, int code);
const char *__wrap_kvx_gpu_code_name(struct kvx_gpu *gpu, int code)
{
	return "a fake's error";
}
