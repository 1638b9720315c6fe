/* The GPU stand-in's shared state: making it, attaching to it, and who of its processes lives. A
 * process holds a file lock on the byte of its slot; the kernel takes it back with the process,
 * however that ends, and whoever looks next takes back what it held. Any thread. */
#include "gs_shared.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gs_priv.h"

#define LOCK_BYTES (1l << 40) /* slots' bytes begin there: far behind the contents */

static pthread_mutex_t attach_lock = PTHREAD_MUTEX_INITIALIZER;
static struct gs_node *_Atomic attached;
static char attached_path[128];
static int attached_fd = -1;
static _Atomic int self_index = -1;
static pid_t self_pid;

static void die(const char *what)
{
	fprintf(stderr, "GPU stand-in: %s: %s\n", what, strerror(errno));
	abort();
}

static struct gs_node *node_map(int fd)
{
	struct gs_node *node = mmap(NULL, sizeof(*node), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	return node == MAP_FAILED ? NULL : node;
}

static void node_keep(struct gs_node *node, int fd, const char *path)
{
	attached_fd = fd;
	snprintf(attached_path, sizeof(attached_path), "%s", path);
	atomic_store(&attached, node);
}

static struct gs_node *node_open(const char *path)
{
	int fd = open(path, O_RDWR | O_CLOEXEC);
	struct gs_node *node;
	struct stat st;

	if (fd < 0)
		return NULL;
	if (fstat(fd, &st) != 0 || (size_t)st.st_size < sizeof(*node) ||
	    (node = node_map(fd)) == NULL || node->magic != GS_MAGIC) {
		fprintf(stderr, "GPU stand-in: %s is not a node's file\n", path);
		abort();
	}
	node_keep(node, fd, path);
	return node;
}

struct gs_node *gs_node(void)
{
	struct gs_node *node = atomic_load(&attached);
	const char *path;

	if (node != NULL)
		return node;
	pthread_mutex_lock(&attach_lock);
	node = atomic_load(&attached);
	path = getenv(STANDIN_ENV);
	if (node == NULL && path != NULL)
		node = node_open(path);
	pthread_mutex_unlock(&attach_lock);
	return node;
}

bool standin_attach(void)
{
	return gs_node() != NULL;
}

const char *standin_path(void)
{
	return attached_path;
}

static void lock_init(pthread_mutex_t *lock)
{
	pthread_mutexattr_t attr;

	pthread_mutexattr_init(&attr);
	pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(lock, &attr);
	pthread_mutexattr_destroy(&attr);
}

static void dev_init(struct gs_node *node, unsigned i, uint64_t vram_bytes)
{
	struct gs_dev *dev = &node->devs[i];

	snprintf(dev->pci, sizeof(dev->pci), "0000:%02x:00.0", 0x11 + 0x10 * i);
	for (unsigned b = 0; b < sizeof(dev->uuid); b++)
		dev->uuid[b] = (uint8_t)(0xa0 + 17 * b + i);
	dev->vram_bytes = vram_bytes;
	dev->reaches = UINT32_MAX;
	dev->generation = 1;
}

void standin_create(unsigned n_devs, uint64_t vram_bytes)
{
	struct gs_node *node = NULL;
	char path[64];
	int fd;

	if (atomic_load(&attached) != NULL || n_devs == 0 || n_devs > STANDIN_MAX_DEVS) {
		errno = EINVAL;
		die("create");
	}
	fd = memfd_create("kvx-gpu-standin-node", MFD_CLOEXEC);
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)getpid(), fd);
	if (fd < 0 || ftruncate(fd, sizeof(*node)) != 0 || (node = node_map(fd)) == NULL)
		die("create");
	lock_init(&node->lock);
	node->n_devs = n_devs;
	for (unsigned i = 0; i < n_devs; i++)
		dev_init(node, i, vram_bytes);
	node->copying = true;
	node->next_id = 1;
	node->magic = GS_MAGIC;
	node_keep(node, fd, path);
	if (setenv(STANDIN_ENV, path, 1) != 0)
		die("create");
}

void standin_destroy(void)
{
	struct gs_node *node = atomic_load(&attached);

	if (node == NULL)
		return;
	/* Its streams use the node until nothing is queued. A forked child has none of them. */
	if (atomic_load(&self_index) >= 0 && self_pid == getpid())
		for (unsigned dev = 0; dev < node->n_devs; dev++)
			gs_streams_abort(dev);
	atomic_store(&attached, NULL);
	unsetenv(STANDIN_ENV);
	atomic_store(&self_index, -1);
	munmap(node, sizeof(*node));
	close(attached_fd);
	attached_fd = -1;
}

void gs_lock(struct gs_node *node)
{
	int rc = pthread_mutex_lock(&node->lock);

	/* Its owner died in here: every step leaves records that gs_reap() can deal with. */
	if (rc == EOWNERDEAD)
		pthread_mutex_consistent(&node->lock);
	else if (rc != 0)
		abort();
}

void gs_unlock(struct gs_node *node)
{
	pthread_mutex_unlock(&node->lock);
}

static bool slot_lock(unsigned slot, short type)
{
	struct flock lock = {
	    .l_type = type, .l_whence = SEEK_SET, .l_start = LOCK_BYTES + (long)slot, .l_len = 1};

	return fcntl(attached_fd, F_SETLK, &lock) == 0;
}

static bool slot_lives(const struct gs_node *node, unsigned slot)
{
	struct flock lock = {.l_type = F_WRLCK,
			     .l_whence = SEEK_SET,
			     .l_start = LOCK_BYTES + (long)slot,
			     .l_len = 1};

	if (node->procs[slot].pid == 0)
		return false;
	if ((int)slot == atomic_load(&self_index) && self_pid == getpid())
		return true;
	return fcntl(attached_fd, F_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

static bool self_take(struct gs_node *node)
{
	for (unsigned i = 0; i < GS_MAX_PROCS; i++) {
		struct gs_proc *proc = &node->procs[i];

		if (proc->pid != 0 || !slot_lock(i, F_WRLCK))
			continue;
		memset(proc, 0, sizeof(*proc));
		proc->pid = getpid();
		self_pid = proc->pid;
		atomic_store(&self_index, (int)i);
		return true;
	}
	return false;
}

bool gs_join(void)
{
	struct gs_node *node = gs_node();
	bool joined;

	if (atomic_load(&self_index) >= 0)
		return self_pid == getpid();
	gs_lock(node);
	gs_reap(node);
	joined = atomic_load(&self_index) >= 0 || self_take(node);
	gs_unlock(node);
	return joined;
}

uint32_t gs_self_index(void)
{
	return (uint32_t)atomic_load(&self_index);
}

struct gs_proc *gs_self(void)
{
	return &gs_node()->procs[gs_self_index()];
}

void gs_alloc_drop(struct gs_node *node, struct gs_alloc *alloc)
{
	(void)node;
	if (alloc->id != 0 && !alloc->owned && alloc->n_maps == 0)
		alloc->id = 0;
}

/* Everything that names this slot. */
static void slot_reap(struct gs_node *node, unsigned slot)
{
	for (unsigned i = 0; i < GS_MAX_MAPS; i++) {
		struct gs_map *map = &node->maps[i];
		struct gs_alloc *alloc;

		if (map->alloc == 0 || map->proc != slot)
			continue;
		alloc = &node->allocs[map->alloc - 1];
		map->alloc = 0;
		alloc->n_maps--;
		gs_alloc_drop(node, alloc);
	}
	for (unsigned i = 0; i < GS_MAX_ALLOCS; i++) {
		struct gs_alloc *alloc = &node->allocs[i];

		if (alloc->id == 0 || !alloc->owned || alloc->proc != slot)
			continue;
		alloc->owned = false;
		gs_alloc_drop(node, alloc);
	}
	for (unsigned i = 0; i < GS_MAX_EVENTS; i++) {
		struct gs_shared_event *event = &node->events[i];

		event->users &= ~(1ull << slot);
		/* What it had recorded will not come: those who wait are let go. */
		if (event->maker == slot)
			atomic_store(&event->completed, atomic_load(&event->recorded));
		if (event->users == 0)
			event->id = 0;
	}
	node->procs[slot].pid = 0;
}

void gs_reap(struct gs_node *node)
{
	for (unsigned i = 0; i < GS_MAX_PROCS; i++)
		if (node->procs[i].pid != 0 && !slot_lives(node, i))
			slot_reap(node, i);
}

void gs_violate(const char *format, ...)
{
	struct gs_node *node = gs_node();
	char text[sizeof(node->violation)];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	fprintf(stderr, "GPU stand-in: violation: %s\n", text);
	gs_lock(node);
	if (atomic_fetch_add(&node->n_violations, 1) == 0)
		memcpy(node->violation, text, sizeof(text));
	gs_unlock(node);
}
