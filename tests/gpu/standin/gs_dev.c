/* The GPU stand-in's devices in one process: which of the node's it sees, which is current, whom
 * they reach, and the way into every call with the faults that a test has asked for. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#include "gs_priv.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;
static _Atomic int flavor = GS_CUDA;
static unsigned visible[STANDIN_MAX_DEVS], n_visible;
static _Atomic uint32_t
    generations[STANDIN_MAX_DEVS];                 /* that this process began with; 0: not yet */
static _Atomic int gone[STANDIN_MAX_DEVS];         /* sticky for this process */
static _Atomic uint32_t enabled[STANDIN_MAX_DEVS]; /* bit per device that it reaches */
static _Atomic unsigned epochs[STANDIN_MAX_DEVS];
static __thread int current; /* as this process sees it */

void gs_set_flavor(enum gs_flavor f)
{
	atomic_store(&flavor, (int)f);
}

enum gs_flavor gs_flavor(void)
{
	return (enum gs_flavor)atomic_load(&flavor);
}

uint64_t gs_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000ull + (uint64_t)ts.tv_nsec;
}

void gs_wait_us(uint32_t us)
{
	struct timespec ts = {us / 1000000, (long)(us % 1000000) * 1000};

	while (nanosleep(&ts, &ts) != 0 && errno == EINTR)
		;
}

/* "GPU-a0b1...": begins with what of the UUID was given. */
static bool uuid_matches(const struct gs_dev *dev, const char *text, size_t len)
{
	char uuid[64];
	int n = snprintf(uuid, sizeof(uuid), "GPU-");

	for (unsigned i = 0; i < 16; i++)
		n += snprintf(uuid + n, sizeof(uuid) - (size_t)n, "%s%02x",
			      i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", dev->uuid[i]);
	return len >= 5 && len <= (size_t)n && strncasecmp(uuid, text, len) == 0;
}

/* One item of the list: the node's number of a device, or -1, which ends the list. */
static int visible_item(const struct gs_node *node, const char *item, size_t len)
{
	char *end;
	long index = strtol(item, &end, 10);

	if (len > 0 && end == item + len)
		return index >= 0 && index < (long)node->n_devs ? (int)index : -1;
	for (unsigned i = 0; i < node->n_devs; i++)
		if (uuid_matches(&node->devs[i], item, len))
			return (int)i;
	return -1;
}

static void visible_init(void)
{
	const struct gs_node *node = gs_node();
	const char *list = NULL;

	if (gs_flavor() == GS_HIP)
		list = getenv("HIP_VISIBLE_DEVICES");
	if (list == NULL)
		list = getenv("CUDA_VISIBLE_DEVICES");
	for (unsigned i = 0; list == NULL && i < node->n_devs; i++)
		visible[n_visible++] = i;
	while (list != NULL && *list != '\0' && n_visible < STANDIN_MAX_DEVS) {
		size_t len = strcspn(list, ",");
		int dev = visible_item(node, list, len);

		if (dev < 0)
			break;
		visible[n_visible++] = (unsigned)dev;
		list += len + (list[len] == ',');
	}
}

int gs_dev_node(int dev)
{
	return dev >= 0 && dev < (int)n_visible ? (int)visible[dev] : -1;
}

int gs_dev_here(unsigned dev)
{
	for (unsigned i = 0; i < n_visible; i++)
		if (visible[i] == dev)
			return (int)i;
	return -1;
}

unsigned gs_dev_current(void)
{
	if (gs_node() != NULL)
		pthread_once(&once, visible_init);
	return n_visible > 0 ? visible[current] : 0;
}

int gs_dev_error(unsigned dev)
{
	const struct gs_dev *d = &gs_node()->devs[dev];
	uint32_t now = atomic_load(&d->generation), none = 0;
	int lost = atomic_load(&d->lost);

	if (atomic_load(&gone[dev]) != 0)
		return atomic_load(&gone[dev]);
	atomic_compare_exchange_strong(&generations[dev], &none, now);
	if (lost == 0 && atomic_load(&generations[dev]) == now)
		return 0;
	atomic_store(&gone[dev], lost != 0 ? lost : STANDIN_UNKNOWN);
	return atomic_load(&gone[dev]);
}

void gs_dev_ruin(unsigned dev, int err)
{
	int none = 0;

	fprintf(stderr, "GPU stand-in: GPU %u is ruined for this process: error %d\n", dev, err);
	atomic_compare_exchange_strong(&gone[dev], &none, err);
}

unsigned gs_dev_epoch(unsigned dev)
{
	return atomic_load(&epochs[dev]);
}

bool gs_dev_can_reach(unsigned dev, unsigned other)
{
	return (gs_node()->devs[dev].reaches >> other & 1) != 0;
}

bool gs_dev_reaches(unsigned dev, unsigned other)
{
	return dev == other || (atomic_load(&enabled[dev]) >> other & 1) != 0;
}

void gs_dev_enable(unsigned dev, unsigned other)
{
	if (dev != other)
		atomic_fetch_or(&enabled[dev], 1u << other);
}

static bool may_block(enum standin_call call)
{
	switch (call) {
	case STANDIN_MALLOC:
	case STANDIN_FREE:
	case STANDIN_HOST_ALLOC:
	case STANDIN_HOST_FREE:
	case STANDIN_HOST_REGISTER:
	case STANDIN_HOST_UNREGISTER:
	case STANDIN_IPC_OPEN:
	case STANDIN_IPC_CLOSE:
	case STANDIN_DEVICE_SYNC:
	case STANDIN_STREAM_SYNC:
	case STANDIN_EVENT_SYNC:
	case STANDIN_STREAM_CREATE:
	case STANDIN_PEER_ENABLE:
	case STANDIN_MODULE:
		return true;
	default:
		return false;
	}
}

static bool is_blocked(const struct gs_fault *fault)
{
	return atomic_load(&fault->block) &&
	       (fault->block_pid == 0 || fault->block_pid == getpid()) &&
	       (fault->block_dev < 0 || (unsigned)fault->block_dev == gs_dev_current());
}

static int fault_take(struct gs_fault *fault)
{
	uint32_t left = atomic_load(&fault->left);

	if (left > 0 && (fault->pid == 0 || fault->pid == getpid()) &&
	    atomic_fetch_sub(&fault->left, 1) == 1) {
		atomic_store(&fault->fired, true);
		return fault->err;
	}
	if (atomic_load(&fault->all_err) != 0 &&
	    (fault->all_pid == 0 || fault->all_pid == getpid()))
		return atomic_load(&fault->all_err);
	return 0;
}

int gs_enter(enum standin_call call)
{
	struct gs_node *node = gs_node();
	struct gs_fault *fault;

	if (node == NULL)
		return STANDIN_NO_DEVICE;
	if (!gs_join())
		return STANDIN_NOT_INITIALIZED;
	pthread_once(&once, visible_init);
	fault = &node->faults[call];
	atomic_fetch_add_explicit(&gs_self()->calls[call], 1, memory_order_relaxed);
	if (may_block(call) && gettid() == getpid())
		atomic_fetch_add(&gs_self()->blocking_on_main, 1);
	if (atomic_load(&fault->delay_us) > 0)
		gs_wait_us(atomic_load(&fault->delay_us));
	if (is_blocked(fault)) {
		atomic_fetch_add(&fault->n_blocked, 1);
		while (is_blocked(fault))
			gs_wait_us(1000);
		atomic_fetch_sub(&fault->n_blocked, 1);
	}
	return fault_take(fault);
}

int gs_enter_dev(enum standin_call call, unsigned dev)
{
	int err = gs_enter(call);

	return err != 0 ? err : gs_dev_error(dev);
}

int gs_device_count(int *out_n)
{
	int err = gs_enter(STANDIN_DEVICE_COUNT);

	if (err != 0)
		return err;
	if (n_visible == 0)
		return STANDIN_NO_DEVICE;
	*out_n = (int)n_visible;
	return 0;
}

int gs_device_set(int dev)
{
	int err = gs_enter(STANDIN_DEVICE_SET);

	if (err != 0)
		return err;
	if (gs_dev_node(dev) < 0)
		return STANDIN_INVALID_DEVICE;
	current = dev; /* also when it is lost: calls for it then say so */
	return gs_dev_error((unsigned)gs_dev_node(dev));
}

int gs_device_get(int *out_dev)
{
	int err = gs_enter(STANDIN_DEVICE_GET);

	if (err == 0)
		*out_dev = current;
	return err;
}

int gs_device_sync(void)
{
	int err = gs_enter(STANDIN_DEVICE_SYNC);

	if (err != 0)
		return err;
	gs_streams_drain(gs_dev_current());
	return gs_dev_error(gs_dev_current());
}

/* A range of the device that is left; NULL: none. */
static struct gs_range *range_of(unsigned dev)
{
	struct gs_range *range;

	gs_table_lock();
	for (unsigned i = 0; (range = gs_range_nth(i)) != NULL; i++)
		if (range->dev == dev)
			break;
	gs_table_unlock();
	return range;
}

int gs_device_reset(int dev)
{
	int err = gs_enter(STANDIN_DEVICE_RESET);
	struct gs_range *range;
	unsigned d;

	if (err != 0)
		return err;
	if (gs_dev_node(dev) < 0)
		return STANDIN_INVALID_DEVICE;
	d = (unsigned)gs_dev_node(dev);
	atomic_fetch_add(&epochs[d], 1);
	gs_streams_abort(d);
	while ((range = range_of(d)) != NULL) {
		if (range->kind == GS_DEVICE)
			gs_alloc_leave(range);
		else if (range->kind == GS_IPC)
			gs_ipc_drop(range);
		else if (range->kind == GS_HOST)
			atomic_fetch_sub(&gs_self()->host_bytes, range->len);
		gs_range_remove(range);
	}
	atomic_fetch_sub(&gs_self()->n_peers, __builtin_popcount(atomic_exchange(&enabled[d], 0)));
	return 0; /* also of a lost device: what this process had of it is gone, the device is not
		     well */
}

/* What is asked of a device by its number, whatever state it is in. */
static int info_enter(int dev, const struct gs_dev **out_dev)
{
	int err = gs_enter(STANDIN_DEVICE_INFO);

	if (err != 0)
		return err;
	if (gs_dev_node(dev) < 0)
		return STANDIN_INVALID_DEVICE;
	*out_dev = &gs_node()->devs[gs_dev_node(dev)];
	return 0;
}

int gs_device_pci(int dev, char *buf, size_t buf_bytes)
{
	const struct gs_dev *d;
	int err = info_enter(dev, &d);

	if (err != 0)
		return err;
	if (buf_bytes <= strlen(d->pci))
		return STANDIN_INVALID_VALUE;
	memcpy(buf, d->pci, strlen(d->pci) + 1);
	return 0;
}

int gs_device_uuid(int dev, uint8_t out_uuid[16])
{
	const struct gs_dev *d;
	int err = info_enter(dev, &d);

	if (err == 0)
		memcpy(out_uuid, d->uuid, 16);
	return err;
}

int gs_device_attr(int dev, enum gs_attr attr, int *out_value)
{
	const struct gs_dev *d;
	int err = info_enter(dev, &d);
	uint32_t lacks = err == 0 ? atomic_load(&gs_node()->lacks) : 0;

	if (err != 0)
		return err;
	switch (attr) {
	case GS_ATTR_DMABUF:
		*out_value = !(lacks & STANDIN_LACK_DMABUF);
		break;
	case GS_ATTR_IPC_EVENTS:
		*out_value = !(lacks & STANDIN_LACK_IPC_EVENTS);
		break;
	case GS_ATTR_UVA:
		*out_value = 1;
		break;
	case GS_ATTR_COPY_ENGINES:
		*out_value = 2;
		break;
	case GS_ATTR_SMS:
		*out_value = 64;
		break;
	}
	return 0;
}

int gs_device_bytes(int dev, size_t *out_bytes)
{
	const struct gs_dev *d;
	int err = info_enter(dev, &d);

	if (err == 0)
		*out_bytes = d->vram_bytes;
	return err;
}

int gs_mem_info(size_t *out_free, size_t *out_total)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_MEM_INFO, dev);
	struct standin_usage usage;

	if (err != 0)
		return err;
	usage = standin_usage(dev);
	*out_total = gs_node()->devs[dev].vram_bytes;
	*out_free = *out_total - usage.alloc_bytes - usage.orphan_bytes;
	return 0;
}

int gs_peer_can(int dev, int peer, int *out_can)
{
	int err = gs_enter(STANDIN_PEER_CAN);
	int a = gs_dev_node(dev), b = gs_dev_node(peer);

	if (err != 0)
		return err;
	if (a < 0 || b < 0)
		return STANDIN_INVALID_DEVICE;
	*out_can = a != b && (gs_node()->devs[a].reaches >> b & 1) != 0;
	return 0;
}

int gs_peer_enable(int peer)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_PEER_ENABLE, dev);
	int b = gs_dev_node(peer);

	if (err != 0)
		return err;
	if (b < 0 || (unsigned)b == dev)
		return STANDIN_INVALID_DEVICE;
	if (!(gs_node()->devs[dev].reaches >> b & 1))
		return STANDIN_PEER_UNSUPPORTED;
	if (atomic_fetch_or(&enabled[dev], 1u << b) >> b & 1)
		return STANDIN_PEER_ALREADY;
	atomic_fetch_add(&gs_self()->n_peers, 1);
	return gs_dev_error((unsigned)b);
}

int gs_peer_disable(int peer)
{
	unsigned dev = gs_dev_current();
	int err = gs_enter_dev(STANDIN_PEER_DISABLE, dev);
	int b = gs_dev_node(peer);

	if (err != 0)
		return err;
	if (b < 0 || !(atomic_fetch_and(&enabled[dev], ~(1u << b)) >> b & 1))
		return STANDIN_PEER_NOT_ENABLED;
	atomic_fetch_sub(&gs_self()->n_peers, 1);
	return 0;
}
