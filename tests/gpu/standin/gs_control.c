/* What tests say to the GPU stand-in and ask of it: settings, faults, accounts. Works on the shared
 * state alone, from any process of the node, also one that uses no GPU. Any thread. */
#include <string.h>
#include <unistd.h>

#include "gs_shared.h"

static struct gs_dev *dev_at(unsigned dev)
{
	return &gs_node()->devs[dev];
}

const char *standin_call_name(enum standin_call call)
{
	static const char *const names[] = {
#define STANDIN_NAME(name, text) text,
	    STANDIN_CALLS(STANDIN_NAME)
#undef STANDIN_NAME
	};

	return call < STANDIN_N_CALLS ? names[call] : "unknown";
}

void standin_set_pci(unsigned dev, const char *pci)
{
	struct gs_dev *d = dev_at(dev);
	size_t len = strnlen(pci, sizeof(d->pci) - 1);

	memcpy(d->pci, pci, len);
	d->pci[len] = '\0';
}

const char *standin_pci(unsigned dev)
{
	return dev_at(dev)->pci;
}

void standin_set_reach(unsigned a, unsigned b, bool reaches)
{
	uint32_t bit = 1u << b;

	dev_at(a)->reaches = reaches ? dev_at(a)->reaches | bit : dev_at(a)->reaches & ~bit;
}

void standin_set_lacks(uint32_t lacks)
{
	gs_node()->lacks = lacks;
}

void standin_set_delay(uint32_t min_us, uint32_t max_us, uint64_t seed)
{
	struct gs_node *node = gs_node();

	if (node == NULL)
		return;
	node->seed = seed;
	node->delay_min_us = min_us;
	node->delay_max_us = max_us;
}

void standin_set_torn(bool torn)
{
	if (gs_node() != NULL)
		gs_node()->torn = torn;
}

void standin_set_copying(bool on)
{
	gs_node()->copying = on;
}

void standin_delay(enum standin_call call, uint32_t us)
{
	gs_node()->faults[call].delay_us = us;
}

void standin_fail(enum standin_call call, pid_t pid, uint32_t nth, enum standin_error err)
{
	struct gs_fault *fault = &gs_node()->faults[call];

	fault->pid = pid;
	fault->err = (int)err;
	fault->fired = false;
	fault->left = nth;
}

bool standin_fired(enum standin_call call)
{
	struct gs_fault *fault = &gs_node()->faults[call];

	fault->left = 0;
	return atomic_exchange(&fault->fired, false);
}

void standin_fail_all(enum standin_call call, pid_t pid, enum standin_error err)
{
	struct gs_fault *fault = &gs_node()->faults[call];

	fault->all_pid = pid;
	fault->all_err = (int)err;
}

void standin_block(enum standin_call call, pid_t pid, bool block)
{
	struct gs_fault *fault = &gs_node()->faults[call];

	fault->block_pid = pid;
	fault->block_dev = -1;
	fault->block = block;
}

void standin_block_on(enum standin_call call, pid_t pid, unsigned dev, bool block)
{
	struct gs_fault *fault = &gs_node()->faults[call];

	fault->block_pid = pid;
	fault->block_dev = (int)dev;
	fault->block = block;
}

uint32_t standin_blocked(enum standin_call call)
{
	return gs_node()->faults[call].n_blocked;
}

void standin_stall(unsigned dev, bool stall)
{
	dev_at(dev)->stalled = stall;
}

void standin_lose(unsigned dev, enum standin_error err)
{
	dev_at(dev)->lost = (int)err;
}

/* Nothing of what was there before is left, whoever thinks to have it. */
void standin_reset(unsigned dev)
{
	struct gs_node *node = gs_node();

	gs_lock(node);
	dev_at(dev)->generation++;
	for (unsigned i = 0; i < GS_MAX_MAPS; i++)
		if (node->maps[i].alloc != 0 && node->allocs[node->maps[i].alloc - 1].dev == dev)
			node->maps[i].alloc = 0;
	for (unsigned i = 0; i < GS_MAX_ALLOCS; i++)
		if (node->allocs[i].dev == dev)
			node->allocs[i].id = 0;
	dev_at(dev)->lost = 0;
	gs_unlock(node);
}

/* Of a lost device there is nothing to count: its memory is gone. */
struct standin_usage standin_usage(unsigned dev)
{
	struct standin_usage usage = {0};
	struct gs_node *node = gs_node();
	bool gone = node->devs[dev].lost != 0;

	gs_lock(node);
	gs_reap(node);
	for (unsigned i = 0; i < GS_MAX_ALLOCS && !gone; i++) {
		const struct gs_alloc *alloc = &node->allocs[i];

		if (alloc->id == 0 || alloc->dev != dev)
			continue;
		*(alloc->owned ? &usage.alloc_bytes : &usage.orphan_bytes) += alloc->bytes;
		usage.n_allocs++;
		usage.n_orphans += !alloc->owned;
		usage.mapped_bytes += alloc->bytes * alloc->n_maps;
		usage.n_maps += alloc->n_maps;
	}
	gs_unlock(node);
	return usage;
}

static struct gs_proc *proc_find(struct gs_node *node, pid_t pid)
{
	for (unsigned i = 0; i < GS_MAX_PROCS; i++)
		if (node->procs[i].pid == pid)
			return &node->procs[i];
	return NULL;
}

static void proc_maps(const struct gs_node *node, uint32_t slot, struct standin_process *process)
{
	for (unsigned i = 0; i < GS_MAX_MAPS; i++) {
		const struct gs_map *map = &node->maps[i];

		if (map->alloc == 0 || map->proc != slot)
			continue;
		process->n_maps++;
		process->mapped_bytes += node->allocs[map->alloc - 1].bytes;
	}
}

bool standin_process(pid_t pid, struct standin_process *out_process)
{
	struct gs_node *node = gs_node();
	struct gs_proc *proc;

	gs_lock(node);
	gs_reap(node);
	proc = proc_find(node, pid);
	if (proc != NULL) {
		*out_process = (struct standin_process){
		    .host_bytes = proc->host_bytes,
		    .copies = proc->copies,
		    .bytes = proc->bytes,
		    .pageable_copies = proc->pageable_copies,
		    .blocking_on_main = proc->blocking_on_main,
		    .n_streams = proc->n_streams,
		    .n_events = proc->n_events,
		    .n_peers = proc->n_peers,
		    .n_modules = proc->n_modules,
		};
		proc_maps(node, (uint32_t)(proc - node->procs), out_process);
	}
	gs_unlock(node);
	return proc != NULL;
}

uint64_t standin_calls(pid_t pid, enum standin_call call)
{
	struct gs_node *node = gs_node();
	struct gs_proc *proc;
	uint64_t n;

	gs_lock(node);
	proc = proc_find(node, pid);
	n = proc != NULL ? proc->calls[call] : 0;
	gs_unlock(node);
	return n;
}

uint32_t standin_n_violations(void)
{
	return gs_node()->n_violations;
}

const char *standin_violation(void)
{
	return gs_node()->violation;
}

void standin_forgive(void)
{
	struct gs_node *node = gs_node();

	gs_lock(node);
	node->n_violations = 0;
	node->violation[0] = '\0';
	gs_unlock(node);
}
