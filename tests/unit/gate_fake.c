/* See gate_fake.h. */
#include "gate_fake.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct kvx_gpu_event {
	struct gate_fake *fake;
	unsigned i;
};

static void maybe_hang(struct gate_fake *fake)
{
	const struct timespec nap = {.tv_nsec = 200000};

	if (!atomic_load(&fake->hang))
		return;
	atomic_fetch_add(&fake->n_hanging, 1);
	while (atomic_load(&fake->hang))
		nanosleep(&nap, NULL);
	atomic_fetch_sub(&fake->n_hanging, 1);
}

static int fake_open(void *device, const uint8_t ipc[KVX_GPU_IPC_BYTES],
		     struct kvx_gpu_event **out_event)
{
	struct gate_fake *fake = device;
	struct kvx_gpu_event *event;
	unsigned i;

	atomic_fetch_add(&fake->n_tries, 1);
	if (atomic_load(&fake->open_error) != 0)
		return atomic_load(&fake->open_error);
	memcpy(&i, ipc, sizeof(i));
	cr_assert_lt(i, GATE_FAKE_EVENTS);
	event = malloc(sizeof(*event));
	if (event == NULL)
		return -12;
	*event = (struct kvx_gpu_event){fake, i};
	atomic_fetch_add(&fake->n_open, 1);
	atomic_fetch_add(&fake->n_opened, 1);
	*out_event = event;
	return 0;
}

static int fake_ready(struct kvx_gpu_event *event)
{
	struct gate_fake *fake = event->fake;
	int err = atomic_load(&fake->ready_error);

	if (err < 0) {
		atomic_fetch_sub(&fake->n_open, 1);
		free(event);
		return err;
	}
	return atomic_load(&fake->slow[event->i]) ? 0 : 1;
}

static void fake_close(struct kvx_gpu_event *event)
{
	atomic_fetch_sub(&event->fake->n_open, 1);
	free(event);
}

static int fake_query(struct kvx_gpu_event *event)
{
	maybe_hang(event->fake);
	atomic_fetch_add(&event->fake->n_queries, 1);
	if (event->fake->on_query != NULL)
		event->fake->on_query();
	return atomic_load(&event->fake->state[event->i]);
}

static const struct kvx_gpu_access fake_access = {.event_open = fake_open,
						  .event_ready = fake_ready,
						  .event_close = fake_close,
						  .event_query = fake_query};

void gate_fake_init(struct gate_fake *fake)
{
	memset(fake, 0, sizeof(*fake));
	fake->gpu.access = &fake_access;
	fake->gpu.device = fake;
	fake->region.id = 77;
	fake->region.state = KVX_REGION_LIVE;
	fake->region.mem.ops = &kvx_mem_cuda_ops;
	fake->region.mem.gpu = &fake->gpu;
	fake->region.mem.len_bytes = 4096;
}

const struct kvx_wait *gate_fake_event(struct gate_fake *fake, unsigned i)
{
	static struct kvx_wait waits[8];
	static uint8_t events[8][KVX_GPU_IPC_BYTES];
	static unsigned at;
	struct kvx_wait *wait = &waits[at];

	memcpy(events[at], &i, sizeof(i));
	*wait =
	    (struct kvx_wait){.kind = KVX_WAIT_EVENT, .region = &fake->region, .event = events[at]};
	at = (at + 1) % 8;
	return wait;
}
