/* Page-locked memory of the host for others than the domain itself. It is mapped here, and only
 * locked by the runtime: a reset of the device takes the lock away, never the memory, and what a
 * call that does not return may still look at is not unmapped at all. Any thread
 * that may wait: the runtime's part is a call of the control thread, with the deadline. */
#include <errno.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "base/log.h"
#include "transport/gpu/gpu_copier.h"

/* In front of what is given out, on a page of its own. */
struct host_block {
	struct gpu_call call; /* first: that locks or unlocks it */
	uint64_t magic;
	struct kvx_dom *dom;
	size_t bytes; /* with this page */
	bool pinned;
};
#define HOST_MAGIC 0x6b766768626c6b31ull
#define HOST_FRONT 4096u
_Static_assert(sizeof(struct host_block) <= HOST_FRONT, "it fits in front");

static struct host_block *host_of(struct gpu_call *call)
{
	return (struct host_block *)(void *)call;
}

static void *host_memory(struct host_block *block)
{
	return (uint8_t *)block + HOST_FRONT;
}

static int host_pin_run(struct gpu_call *call)
{
	struct host_block *block = host_of(call);
	struct kvx_dom *dom = block->dom;

	if (!gpu_dom_enter(dom))
		return -ENODEV;
	int err = dom->gpu->ops->host_pin(dom->gpu, host_memory(block), block->bytes - HOST_FRONT);
	block->pinned = err == 0;
	gpu_dom_leave(dom);
	return err;
}

static int host_unpin_run(struct gpu_call *call)
{
	struct host_block *block = host_of(call);
	struct kvx_dom *dom = block->dom;

	if (!block->pinned || !gpu_dom_enter(dom))
		return 0;
	block->pinned = false;
	int err = gpu_dom_unpin(dom, host_memory(block));
	if (err == -ENODEV)
		gpu_dom_lose(dom, kvx_gpu_code(), "a buffer cannot be unlocked");
	gpu_dom_leave(dom);
	return err;
}

/* Nobody waits any more: what is there goes, locked or not. */
static void host_late(struct gpu_call *call)
{
	host_unpin_run(call);
	munmap(host_of(call), host_of(call)->bytes);
}

int gpu_host_alloc(void *device, size_t bytes, void **out_addr)
{
	struct kvx_dom *dom = device;
	size_t whole = HOST_FRONT + ((bytes + 4095) & ~(size_t)4095);

	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	struct host_block *block = mmap(NULL, whole, PROT_READ | PROT_WRITE,
					MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	if (block == MAP_FAILED)
		return -ENOMEM;
	block->magic = HOST_MAGIC;
	block->dom = dom;
	block->bytes = whole;
	block->call = (struct gpu_call){.run = host_pin_run, .late = host_late};
	int err = gpu_control_call(dom->control, &block->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT)
		return err; /* it is the control thread's */
	if (err < 0) {
		munmap(block, whole);
		return err;
	}
	*out_addr = host_memory(block);
	return 0;
}

/* By a call that did not return before the device was reset. */
static bool host_may_be_used(struct kvx_dom *dom)
{
	return atomic_load(&dom->lost) && atomic_load(&dom->n_inside) > 0;
}

void gpu_host_free(void *device, void *addr)
{
	struct kvx_dom *dom = device;

	if (addr == NULL)
		return;
	KVX_CHECK_MAGIC(dom, GPU_DOM_MAGIC);
	struct host_block *block = (struct host_block *)(void *)((uint8_t *)addr - HOST_FRONT);
	KVX_CHECK_MAGIC(block, HOST_MAGIC);
	block->call = (struct gpu_call){.run = host_unpin_run, .late = host_late};
	int err = gpu_control_call_always(dom->control, &block->call, dom->call_timeout_ns);
	if (err == -ETIMEDOUT)
		return;
	if (err < 0)
		kvx_warn("gpu: %s: unlocking a buffer: error %d of the runtime", dom->name, -err);
	if (host_may_be_used(dom)) {
		kvx_warn("gpu: %s: a call does not return: leaving it %zu bytes that it may use",
			 dom->name, block->bytes);
		return;
	}
	munmap(block, block->bytes);
}
