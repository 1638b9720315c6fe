/* See gpu_fake.h. Allocations are memfds that are mapped once for the client and once for each
 * ipc_open(), so that two addresses show the same bytes. Any thread. */
#include "gpu_fake.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "gpu/gpu_priv.h"

struct fake_gpu fake;
enum fake_slow fake_slow;

#define MAX_RANGES 256

struct range { /* mapped memory */
	uint64_t addr, bytes;
	int device, fd;
	bool mapping; /* by ipc_open() */
};
struct copy {
	struct copy *next;
	uint64_t dst, src, bytes;
	void *event; /* instead: is reached */
	uint64_t seq;
};
struct stream {
	int device;
	struct copy *first, **last;
};
struct event {
	int device;
	uint64_t recorded, reached;
};
struct host {
	int device;
	void *addr;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct range ranges[MAX_RANGES];
static struct stream *all_streams[64];
static struct event *all_events[256];
static struct host all_hosts[64];
static _Thread_local int bound; /* this thread's device */

/* ---- failures */

void fake_fail(enum fake_call call, unsigned nth, unsigned times, int err)
{
	fake.fail_err[call] = err;
	fake.fail_times[call] = times;
	fake.fail_at[call] = fake.n[call] + nth;
}

static int enter(enum fake_call call)
{
	unsigned n = ++fake.n[call];

	if (fake.fail_at[call] == 0 || n < fake.fail_at[call] ||
	    n >= fake.fail_at[call] + fake.fail_times[call])
		return 0;
	gpu_err(fake.fail_code[call]);
	return fake.fail_err[call];
}

/* ---- memory */

static int range_add(int device, int fd, uint64_t bytes, bool mapping, uint64_t *out_addr)
{
	void *addr = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	kvx_assert(addr != MAP_FAILED);
	pthread_mutex_lock(&lock);
	unsigned i = 0;
	while (ranges[i].addr != 0)
		kvx_assert(++i < MAX_RANGES);
	ranges[i] = (struct range){(uintptr_t)addr, bytes, device, fd, mapping};
	pthread_mutex_unlock(&lock);
	*out_addr = (uintptr_t)addr;
	return 0;
}

static struct range *range_find(uint64_t addr)
{
	for (unsigned i = 0; i < MAX_RANGES; i++)
		if (ranges[i].addr != 0 && addr >= ranges[i].addr &&
		    addr - ranges[i].addr < ranges[i].bytes)
			return &ranges[i];
	return NULL;
}

static void range_drop(uint64_t addr)
{
	pthread_mutex_lock(&lock);
	struct range *range = range_find(addr);
	kvx_assert(range != NULL && range->addr == addr);
	munmap((void *)(uintptr_t)addr, range->bytes);
	close(range->fd);
	range->addr = 0;
	pthread_mutex_unlock(&lock);
}

/* The handle names the memory's device, length and file. */
struct handle {
	int device, fd;
	uint64_t bytes;
};

uint8_t *fake_client_alloc(int device, uint64_t bytes, uint8_t out_ipc[KVX_GPU_IPC_BYTES])
{
	int fd = memfd_create("fake-gpu", MFD_CLOEXEC);
	uint64_t addr;

	kvx_assert(fd >= 0 && ftruncate(fd, (off_t)bytes) == 0);
	range_add(device, fd, bytes, false, &addr);
	memset(out_ipc, 0, KVX_GPU_IPC_BYTES);
	memcpy(out_ipc, &(struct handle){device, fd, bytes}, sizeof(struct handle));
	return (uint8_t *)(uintptr_t)addr;
}

void fake_client_free(uint8_t *addr)
{
	range_drop((uintptr_t)addr);
}

static int fake_ipc_open(struct kvx_gpu *gpu, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			 uint64_t *out_addr)
{
	struct handle handle;
	int err = enter(FAKE_IPC_OPEN);

	while (fake.hang_ipc && sem_wait(&fake.let_go) != 0)
		;
	if (err < 0)
		return err;
	memcpy(&handle, ipc, sizeof(handle));
	int fd = dup(handle.fd);
	if (fd < 0)
		return -EBADF;
	fake.n_maps++;
	return range_add(handle.device, fd, handle.bytes, true, out_addr);
}

static int fake_ipc_close(struct kvx_gpu *gpu, uint64_t addr)
{
	int err = enter(FAKE_IPC_CLOSE);

	if (err < 0)
		return err;
	range_drop(addr);
	fake.n_maps--;
	return 0;
}

static int fake_owner(struct kvx_gpu *gpu, uint64_t addr, int *out_device)
{
	const struct range *range = range_find(addr);

	if (range == NULL)
		return -EINVAL;
	*out_device = range->device;
	return 0;
}

static int fake_range(struct kvx_gpu *gpu, uint64_t addr, struct kvx_gpu_range *out)
{
	const struct range *range = range_find(addr);
	int err = enter(FAKE_RANGE);

	if (err < 0)
		return err;
	if (range == NULL)
		return -EINVAL;
	*out = (struct kvx_gpu_range){range->device, range->addr, range->bytes, true, false};
	return 0;
}

static int fake_mem_alloc(struct kvx_gpu *gpu, uint64_t bytes, uint64_t *out_addr)
{
	uint8_t ipc[KVX_GPU_IPC_BYTES];
	int err = enter(FAKE_MEM_ALLOC);

	if (err < 0)
		return err;
	*out_addr = (uintptr_t)fake_client_alloc(0, bytes, ipc);
	fake.last_alloc = *out_addr;
	fake.n_allocs++;
	return 0;
}

static int fake_mem_free(struct kvx_gpu *gpu, uint64_t addr)
{
	range_drop(addr);
	fake.n_allocs--;
	return 0;
}

static int fake_host_alloc(struct kvx_gpu *gpu, uint64_t bytes, void **out_addr)
{
	int err = enter(FAKE_HOST_ALLOC);

	if (err < 0)
		return err;
	*out_addr = calloc(1, bytes);
	fake.n_hosts++;
	pthread_mutex_lock(&lock);
	unsigned i = 0;
	while (all_hosts[i].addr != NULL)
		kvx_assert(++i < 64);
	all_hosts[i] = (struct host){bound, *out_addr};
	pthread_mutex_unlock(&lock);
	return 0;
}

static int fake_host_free(struct kvx_gpu *gpu, void *addr)
{
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < 64; i++)
		if (all_hosts[i].addr == addr)
			all_hosts[i].addr = NULL;
	pthread_mutex_unlock(&lock);
	free(addr);
	fake.n_hosts--;
	return 0;
}

static int fake_host_pin(struct kvx_gpu *gpu, void *addr, uint64_t bytes)
{
	int err = enter(FAKE_HOST_PIN);

	fake.n_pins += err == 0;
	return err;
}

static int fake_host_unpin(struct kvx_gpu *gpu, void *addr)
{
	int err = enter(FAKE_HOST_UNPIN);

	fake.n_pins -= err == 0;
	return err;
}

/* ---- streams and events */

static void copy_run(struct copy *copy)
{
	if (copy->event != NULL)
		((struct event *)copy->event)->reached = copy->seq;
	else
		memcpy((void *)(uintptr_t)copy->dst, (const void *)(uintptr_t)copy->src,
		       copy->bytes);
	free(copy);
}

/* With the lock. */
static void stream_run(struct stream *stream)
{
	while (stream->first != NULL) {
		struct copy *copy = stream->first;

		stream->first = copy->next;
		if (stream->first == NULL)
			stream->last = &stream->first;
		copy_run(copy);
	}
}

/* Up to the first event; false: there is none. With the lock. */
static bool stream_step(struct stream *stream)
{
	while (stream->first != NULL) {
		struct copy *copy = stream->first;
		bool was_event = copy->event != NULL;

		stream->first = copy->next;
		if (stream->first == NULL)
			stream->last = &stream->first;
		copy_run(copy);
		if (was_event)
			return true;
	}
	return false;
}

static void streams_step(void)
{
	for (unsigned i = 0; i < 64; i++)
		while (fake.let_through > 0 && all_streams[i] != NULL &&
		       stream_step(all_streams[i]))
			fake.let_through--;
}

static void stream_put(void *to, const struct copy *what)
{
	struct stream *stream = to;
	struct copy *copy = malloc(sizeof(*copy));

	*copy = *what;
	copy->next = NULL;
	pthread_mutex_lock(&lock);
	*stream->last = copy;
	stream->last = &copy->next;
	pthread_mutex_unlock(&lock);
}

static int fake_stream_create(struct kvx_gpu *gpu, void **out_stream)
{
	int err = enter(FAKE_STREAM_CREATE);
	struct stream *stream;

	if (err < 0)
		return err;
	stream = calloc(1, sizeof(*stream));
	stream->device = bound;
	stream->last = &stream->first;
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < 64; i++)
		if (all_streams[i] == NULL) {
			all_streams[i] = stream;
			break;
		}
	pthread_mutex_unlock(&lock);
	fake.n_streams++;
	*out_stream = stream;
	return 0;
}

static int fake_stream_destroy(struct kvx_gpu *gpu, void *stream)
{
	pthread_mutex_lock(&lock);
	stream_run(stream);
	for (unsigned i = 0; i < 64; i++)
		if (all_streams[i] == stream)
			all_streams[i] = NULL;
	pthread_mutex_unlock(&lock);
	fake.n_streams--;
	free(stream);
	return 0;
}

static int fake_stream_sync(struct kvx_gpu *gpu, void *stream)
{
	int err = enter(FAKE_STREAM_SYNC);

	if (err < 0)
		return err;
	pthread_mutex_lock(&lock);
	stream_run(stream);
	pthread_mutex_unlock(&lock);
	return 0;
}

static int fake_event_create(struct kvx_gpu *gpu, void **out_event)
{
	int err = enter(FAKE_EVENT_CREATE);

	if (err < 0)
		return err;
	struct event *event = calloc(1, sizeof(*event));
	event->device = bound;
	pthread_mutex_lock(&lock);
	unsigned i = 0;
	while (all_events[i] != NULL)
		kvx_assert(++i < 256);
	all_events[i] = event;
	pthread_mutex_unlock(&lock);
	fake.n_events++;
	*out_event = event;
	return 0;
}

static int fake_event_destroy(struct kvx_gpu *gpu, void *event)
{
	while (fake.hang_destroy && sem_wait(&fake.let_go) != 0)
		;
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < 256; i++)
		if (all_events[i] == event)
			all_events[i] = NULL;
	pthread_mutex_unlock(&lock);
	fake.n_events--;
	free(event);
	return 0;
}

static int fake_event_record(struct kvx_gpu *gpu, void *event, void *stream)
{
	int err = enter(FAKE_EVENT_RECORD);

	if (err < 0)
		return err;
	stream_put(stream,
		   &(struct copy){.event = event, .seq = ++((struct event *)event)->recorded});
	return 0;
}

static int fake_event_query(struct kvx_gpu *gpu, void *event)
{
	const struct event *e = event;
	int err = enter(FAKE_EVENT_QUERY);

	if (err < 0)
		return err;
	pthread_mutex_lock(&lock);
	streams_step();
	bool reached = e->reached >= e->recorded;
	for (unsigned i = 0; !reached && !fake.hold && i < 64; i++)
		if (all_streams[i] != NULL)
			stream_run(all_streams[i]);
	pthread_mutex_unlock(&lock);
	return reached ? 0 : -EAGAIN;
}

static int fake_event_open(struct kvx_gpu *gpu, const uint8_t ipc[KVX_GPU_IPC_BYTES],
			   void **out_event)
{
	return -EOPNOTSUPP;
}

/* ---- copies */

static void be_slow(enum fake_slow which)
{
	const struct timespec ms = {.tv_nsec = 1000000};

	if (fake_slow == which)
		nanosleep(&ms, NULL);
}

static int fake_copy(struct kvx_gpu *gpu, uint64_t dst, uint64_t src, uint64_t bytes, void *stream)
{
	int err = enter(FAKE_COPY);

	if (err == 0)
		stream_put(stream, &(struct copy){.dst = dst, .src = src, .bytes = bytes});
	return err;
}

static int fake_copy_rect(struct kvx_gpu *gpu, const struct kvx_gpu_rect *rect, void *stream)
{
	int err = enter(FAKE_COPY_RECT);

	for (uint64_t i = 0; err == 0 && i < rect->height; i++)
		stream_put(stream, &(struct copy){.dst = rect->dst + i * rect->dst_pitch,
						  .src = rect->src + i * rect->src_pitch,
						  .bytes = rect->width});
	fake.n_pieces[FAKE_COPY_RECT] += (unsigned)rect->height;
	return err;
}

static int fake_copy_batch(struct kvx_gpu *gpu, uint64_t *dsts, uint64_t *srcs, size_t *lens,
			   size_t n, void *stream)
{
	int err = enter(FAKE_COPY_BATCH);

	be_slow(FAKE_SLOW_COPIES);
	for (size_t i = 0; err == 0 && i < n; i++)
		stream_put(stream,
			   &(struct copy){.dst = dsts[i], .src = srcs[i], .bytes = lens[i]});
	fake.n_pieces[FAKE_COPY_BATCH] += (unsigned)n;
	return err;
}

static int fake_kernel_load(struct kvx_gpu *gpu, void **out_kernel)
{
	*out_kernel = &fake;
	return enter(FAKE_KERNEL_LOAD);
}

static int fake_kernel_run(struct kvx_gpu *gpu, void *kernel, uint64_t list, uint32_t n,
			   void *stream)
{
	const struct kvx_gpu_piece *pieces = (const void *)(uintptr_t)list;
	int err = enter(FAKE_KERNEL_RUN);

	be_slow(FAKE_SLOW_KERNEL);
	for (uint32_t i = 0; err == 0 && i < n; i++)
		stream_put(stream, &(struct copy){.dst = pieces[i].dst,
						  .src = pieces[i].src,
						  .bytes = pieces[i].len_bytes});
	fake.n_pieces[FAKE_KERNEL_RUN] += n;
	return err;
}

/* ---- devices */

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
	return enter(FAKE_OPEN);
}

static int fake_close(struct kvx_gpu *gpu, int device)
{
	return 0;
}

static int fake_bind(struct kvx_gpu *gpu, int device, struct kvx_gpu_bound *out_before)
{
	bound = device;
	return enter(FAKE_BIND);
}

static void fake_unbind(struct kvx_gpu *gpu, const struct kvx_gpu_bound *before)
{
}

static void stream_drop(struct stream *stream)
{
	while (stream->first != NULL) {
		struct copy *copy = stream->first;

		stream->first = copy->next;
		free(copy);
	}
	free(stream);
	fake.n_streams--;
}

/* Takes away all that was made on the device; nothing that is under way is copied any more. */
static int fake_reset(struct kvx_gpu *gpu, int device)
{
	int err = enter(FAKE_RESET);

	while (fake.hang_reset && sem_wait(&fake.let_go) != 0)
		;
	if (err < 0)
		return err;
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < 64; i++)
		if (all_streams[i] != NULL && all_streams[i]->device == device) {
			stream_drop(all_streams[i]);
			all_streams[i] = NULL;
		}
	for (unsigned i = 0; i < 256; i++)
		if (all_events[i] != NULL && all_events[i]->device == device) {
			free(all_events[i]);
			all_events[i] = NULL;
			fake.n_events--;
		}
	for (unsigned i = 0; i < 64; i++)
		if (all_hosts[i].addr != NULL && all_hosts[i].device == device) {
			free(all_hosts[i].addr);
			all_hosts[i].addr = NULL;
			fake.n_hosts--;
		}
	for (unsigned i = 0; i < MAX_RANGES; i++)
		if (ranges[i].addr != 0 && ranges[i].mapping && ranges[i].device == device) {
			munmap((void *)(uintptr_t)ranges[i].addr, ranges[i].bytes);
			close(ranges[i].fd);
			ranges[i].addr = 0;
			fake.n_maps--;
		}
	pthread_mutex_unlock(&lock);
	return 0;
}

static int fake_peer_can(struct kvx_gpu *gpu, int device, int peer, bool *out_can)
{
	*out_can = !fake.no_peers;
	return enter(FAKE_PEER_CAN);
}

static int fake_peer_enable(struct kvx_gpu *gpu, int peer)
{
	return enter(FAKE_PEER_ENABLE);
}

static int fake_link(struct kvx_gpu *gpu, int device, int peer, enum kvx_gpu_link *out_link,
		     unsigned *out_hops)
{
	return -EOPNOTSUPP;
}

static int fake_none_export(struct kvx_gpu *gpu, uint64_t base, uint8_t ipc[KVX_GPU_IPC_BYTES])
{
	return -EOPNOTSUPP;
}

static int fake_dmabuf_export(struct kvx_gpu *gpu, uint64_t addr, uint64_t bytes, int *out_fd,
			      uint64_t *out_offset)
{
	int err = enter(FAKE_DMABUF);

	for (unsigned i = 0; err == 0 && i < MAX_RANGES; i++) {
		if (addr < ranges[i].addr || addr + bytes > ranges[i].addr + ranges[i].bytes)
			continue;
		*out_fd = fcntl(ranges[i].fd, F_DUPFD_CLOEXEC, 3);
		*out_offset = addr - ranges[i].addr;
		return *out_fd >= 0 ? 0 : -errno;
	}
	return err < 0 ? err : -EINVAL;
}

static const struct kvx_gpu_ops fake_ops = {
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
    .mem_alloc = fake_mem_alloc,
    .mem_free = fake_mem_free,
    .host_alloc = fake_host_alloc,
    .host_free = fake_host_free,
    .host_pin = fake_host_pin,
    .host_unpin = fake_host_unpin,
    .owner = fake_owner,
    .range = fake_range,
    .ipc_export = fake_none_export,
    .ipc_open = fake_ipc_open,
    .ipc_close = fake_ipc_close,
    .dmabuf_export = fake_dmabuf_export,
    .stream_create = fake_stream_create,
    .stream_destroy = fake_stream_destroy,
    .stream_sync = fake_stream_sync,
    .event_create = fake_event_create,
    .event_destroy = fake_event_destroy,
    .event_record = fake_event_record,
    .event_query = fake_event_query,
    .event_open = fake_event_open,
    .copy = fake_copy,
    .copy_rect = fake_copy_rect,
    .copy_batch = fake_copy_batch,
    .kernel_load = fake_kernel_load,
    .kernel_run = fake_kernel_run,
    .peer_can = fake_peer_can,
    .peer_enable = fake_peer_enable,
    .link = fake_link,
};

void fake_gpu_init(uint32_t caps)
{
	memset(&fake, 0, sizeof(fake));
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
