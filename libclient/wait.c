/* What a list waits for before its bytes move: checked for form here, told to the daemon with the
 * list. An event of the engine's GPU is exported by the runtime that the process has loaded. The
 * user's thread. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stddef.h>
#include <string.h>

#include "gpu/gpu.h"

_Static_assert(KVXFER_WAIT_EVENT_BYTES == KVX_GPU_IPC_BYTES, "as the runtimes have it");

#define FLAG_BYTES 8u

static int event_check(struct kvxfer_client *client, const struct kvxfer_wait *wait)
{
	uint8_t any = 0;

	for (size_t i = 0; i < sizeof(wait->event); i++)
		any |= wait->event[i];
	if (any == 0)
		return kvx_cl_fail(client, -EINVAL,
				   "wait: the event is empty: fill it by kvxfer_wait_for_event()");
	if (wait->region != NULL && wait->region->gpu == NULL)
		return kvx_cl_fail(client, -EINVAL,
				   "wait: region is not in memory of the GPU whose event it is");
	return 0;
}

static int flag_check(struct kvxfer_client *client, const struct kvxfer_wait *wait)
{
	if (wait->region == NULL || wait->region->gpu != NULL)
		return kvx_cl_fail(client, -EINVAL,
				   "wait: a flag needs the region of host memory that it is in");
	if (wait->offset % FLAG_BYTES != 0 || wait->region->len_bytes < FLAG_BYTES ||
	    wait->offset > wait->region->len_bytes - FLAG_BYTES)
		return kvx_cl_fail(client, -EINVAL,
				   "wait: the flag at offset %llu is not 8 bytes of the region, at "
				   "a multiple of 8",
				   (unsigned long long)wait->offset);
	return 0;
}

int kvx_cl_wait_take(struct kvxfer_client *client, const struct kvxfer_wait *wait,
		     struct kvxfer_wait *out_copy, const struct kvxfer_wait **list_wait)
{
	struct kvx_why why;

	*list_wait = NULL;
	if (wait == NULL)
		return 0;
	if (kvx_cl_copy_options(out_copy, sizeof(*out_copy), wait, &why) < 0)
		return kvx_cl_fail(client, -EINVAL, "kvxfer_wait: %s", why.text);
	if (out_copy->kind == KVXFER_WAIT_NONE)
		return 0;
	if (client->max_waits == 0)
		return kvx_cl_fail(client, -EOPNOTSUPP,
				   "the daemon is too old to wait for events and flags: update it, "
				   "or synchronise before submitting");
	if (out_copy->region != NULL && out_copy->region->client != client)
		return kvx_cl_fail(client, -EINVAL, "wait: region is of another client");
	if (out_copy->region != NULL && out_copy->region->id == 0)
		return kvx_cl_fail(client, -EINVAL,
				   "wait: the daemon does not have the region: unregister it");
	*list_wait = out_copy;
	switch (out_copy->kind) {
	case KVXFER_WAIT_EVENT:
		return event_check(client, out_copy);
	case KVXFER_WAIT_FLAG:
		return flag_check(client, out_copy);
	default:
		return kvx_cl_fail(client, -EINVAL, "wait: kind %d is no enum kvxfer_wait_kind",
				   out_copy->kind);
	}
}

/* The caller may have been built with a shorter struct, or a longer one. */
static int out_wait_check(struct kvxfer_client *client, const struct kvxfer_wait *out_wait)
{
	struct kvxfer_wait unused;
	struct kvx_why why;
	size_t n = out_wait->struct_bytes;

	if (n < offsetof(struct kvxfer_wait, region))
		return kvx_cl_fail(client, -EINVAL,
				   "out_wait: struct_bytes is %zu: set it to the struct's sizeof",
				   n);
	if (kvx_cl_copy_options(&unused, sizeof(unused), out_wait, &why) < 0)
		return kvx_cl_fail(client, -EINVAL, "out_wait: %s", why.text);
	return 0;
}

static void out_wait_fill(struct kvxfer_wait *out_wait, const struct kvxfer_wait *wait)
{
	size_t n = out_wait->struct_bytes < sizeof(*wait) ? out_wait->struct_bytes : sizeof(*wait);

	memcpy((uint8_t *)out_wait + sizeof(n), (const uint8_t *)wait + sizeof(n), n - sizeof(n));
}

int kvxfer_wait_for_event(struct kvxfer_client *client, void *event, struct kvxfer_wait *out_wait)
{
	struct kvxfer_wait wait = {.kind = KVXFER_WAIT_EVENT};
	struct kvx_gpu *gpu;
	int err = kvx_cl_enter_data(client);

	if (err < 0)
		return err;
	if (event == NULL || out_wait == NULL)
		return kvx_cl_fail(client, -EINVAL, "event or out_wait is NULL");
	err = out_wait_check(client, out_wait);
	if (err < 0)
		return err;
	err = kvx_cl_gpu_runtime(client, &gpu);
	if (err < 0)
		return err;
	err = gpu->ops->event_export(gpu, event, wait.event);
	if (err == -ENODEV || err == -EOPNOTSUPP)
		return kvx_cl_fail(client, err, "exporting the event: %s (%d)",
				   kvx_gpu_code_name(gpu, kvx_gpu_code()), kvx_gpu_code());
	if (err < 0)
		return kvx_cl_fail(client, -EINVAL,
				   "the event cannot be shared with the daemon: %s (%d): make it "
				   "interprocess and without timing (cudaEventInterprocess | "
				   "cudaEventDisableTiming; the same of HIP; "
				   "torch.cuda.Event(interprocess=True))",
				   kvx_gpu_code_name(gpu, kvx_gpu_code()), kvx_gpu_code());
	out_wait_fill(out_wait, &wait);
	return 0;
}
