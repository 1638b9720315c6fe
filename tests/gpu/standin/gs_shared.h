/* Inside the GPU stand-in: what all processes of a node share, one file mapped by each. Fields are
 * guarded by `lock` unless they are atomic. A process that dies keeps nothing: its slot is found by
 * a file lock that ends with it (gs_node.c). */
#ifndef KVX_GS_SHARED_H
#define KVX_GS_SHARED_H

#include <pthread.h>
#include <stdatomic.h>

#include "standin.h"

#define GS_MAGIC      0x6b767867707531ull
#define GS_MAX_PROCS  64 /* bits of gs_shared_event.users */
#define GS_MAX_ALLOCS 4096
#define GS_MAX_MAPS   4096
#define GS_MAX_EVENTS 512

struct gs_dev {
	char pci[16];
	uint8_t uuid[16];
	uint64_t vram_bytes;
	uint32_t reaches; /* bit per device */
	_Atomic int lost; /* enum standin_error that every call gives; 0: alive */
	_Atomic uint32_t generation;
	_Atomic bool stalled;
};

struct gs_proc {
	pid_t pid; /* 0: free */
	_Atomic uint64_t calls[STANDIN_N_CALLS];
	_Atomic uint64_t host_bytes, copies, bytes, pageable_copies, blocking_on_main;
	_Atomic int32_t n_streams, n_events, n_peers, n_modules;
};

/* Device memory: a memfd of the process that allocated it. */
struct gs_alloc {
	uint64_t id; /* 0: free */
	uint64_t bytes;
	uint64_t ino; /* of the memfd: tells that a file descriptor is still this one */
	pid_t pid;
	uint32_t proc; /* slot */
	int fd;
	uint32_t dev, generation;
	bool owned; /* its process lives and has not freed it */
	uint32_t n_maps;
};
struct gs_map {
	uint32_t alloc; /* index + 1; 0: free */
	uint32_t proc;  /* slot */
};

/* An event that other processes may open. */
struct gs_shared_event {
	_Atomic uint64_t recorded, completed;
	uint64_t id;    /* 0: free */
	uint64_t users; /* bit per process slot that has it */
	uint32_t maker; /* slot */
	uint32_t dev;
};

struct gs_fault {
	_Atomic uint32_t left; /* 0: none; the call that brings it to 0 fails */
	_Atomic bool fired;
	pid_t pid;
	int err;
	pid_t all_pid;
	_Atomic int all_err;
	_Atomic uint32_t delay_us;
	pid_t block_pid;
	int block_dev; /* -1: any */
	_Atomic bool block;
	_Atomic uint32_t n_blocked;
};

struct gs_node {
	uint64_t magic;
	pthread_mutex_t lock;
	uint32_t n_devs;
	struct gs_dev devs[STANDIN_MAX_DEVS];
	_Atomic uint32_t lacks;
	_Atomic uint32_t delay_min_us, delay_max_us;
	_Atomic uint64_t seed;
	_Atomic bool torn, copying;
	struct gs_fault faults[STANDIN_N_CALLS];
	uint64_t next_id;
	struct gs_proc procs[GS_MAX_PROCS];
	struct gs_alloc allocs[GS_MAX_ALLOCS];
	struct gs_map maps[GS_MAX_MAPS];
	struct gs_shared_event events[GS_MAX_EVENTS];
	_Atomic uint32_t n_violations;
	char violation[256];
};

/* The node of this process: attached at the first call, NULL when there is none. */
struct gs_node *gs_node(void);
/* Own slot; only where gs_node() is not NULL and gs_join() has succeeded. */
struct gs_proc *gs_self(void);
uint32_t gs_self_index(void);
/* Takes a slot for this process. False: it is the child of a fork of one that has one, or all slots
 * are taken. */
bool gs_join(void);

void gs_lock(struct gs_node *node);
void gs_unlock(struct gs_node *node);
/* With the lock: takes back what dead processes held. */
void gs_reap(struct gs_node *node);
/* With the lock: frees the record when nobody has the memory any more. */
void gs_alloc_drop(struct gs_node *node, struct gs_alloc *alloc);
void gs_violate(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
