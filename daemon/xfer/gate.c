/* Gates: see gate.h. This file makes them and takes them back; who looks is in gate_watch.c. Loop
 * thread. */
#include "xfer/gate.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "xfer/gate_priv.h"

#define FLAG_BYTES  8
#define END_WAIT_NS (3 * KVX_SEC) /* beside the deadline of a call that hangs with its device */

const char *kvx_wait_name(enum kvx_wait_kind kind)
{
	switch (kind) {
	case KVX_WAIT_EVENT:
		return "event";
	case KVX_WAIT_FLAG:
		return "flag";
	case KVX_WAIT_NONE:
		break;
	}
	return "";
}

int kvx_gates_create(const struct kvx_gates_conf *conf, struct kvx_gates **out_gates)
{
	struct kvx_gates *gates = calloc(1, sizeof(*gates));

	if (gates == NULL)
		return -ENOMEM;
	gates->conf = *conf;
	gates->n_watchers = 1; /* the place of the one for flags */
	int err = kvx_queue_create(&gates->done);
	if (err < 0) {
		free(gates);
		return err;
	}
	*out_gates = gates;
	return 0;
}

static struct gate_owner *owner_find(const struct kvx_gates *gates, uint64_t client)
{
	struct gate_owner *owner;

	HASH_FIND(hh, gates->owners, &client, sizeof(client), owner);
	return owner;
}

static struct gate_owner *owner_get(struct kvx_gates *gates, uint64_t client)
{
	struct gate_owner *owner = owner_find(gates, client);

	if (owner != NULL)
		return owner;
	owner = calloc(1, sizeof(*owner));
	if (owner == NULL)
		return NULL;
	owner->client = client;
	unsigned n = HASH_COUNT(gates->owners);
	HASH_ADD(hh, gates->owners, client, sizeof(owner->client), owner);
	if (HASH_COUNT(gates->owners) == n) { /* uthash had no memory */
		free(owner);
		return NULL;
	}
	return owner;
}

/* Without gates and events it need not be known. */
static void owner_settle(struct kvx_gates *gates, struct gate_owner *owner)
{
	if (owner->n_gates > 0 || owner->n_forgets > 0 || (owner->watchers != 0 && !owner->gone))
		return;
	HASH_DELETE(hh, gates->owners, owner);
	free(owner);
}

/* ---- what is asked for */

static int check_region(const struct kvx_wait *wait, struct kvx_why *why)
{
	const struct kvx_region *region = wait->region;

	if (region->state == KVX_REGION_FAILED)
		return kvx_why(why, -ENODEV,
			       "wait: the GPU of region %" PRIu64 " is lost: unregister the region",
			       region->id);
	if (region->state != KVX_REGION_LIVE)
		return kvx_why(why, -EOWNERDEAD, "wait: region %" PRIu64 " is not usable",
			       region->id);
	return 0;
}

static int check_event(const struct kvx_wait *wait, struct kvx_why *why)
{
	const struct kvx_region *region = wait->region;

	if (!kvx_mem_kind_is_gpu(region->mem.ops->kind))
		return kvx_why(why, -EINVAL,
			       "wait: region %" PRIu64 " is host memory: name a region in memory "
			       "of the GPU whose event it is",
			       region->id);
	const struct kvx_gpu_mem *gpu = region->mem.gpu;
	if (gpu->access == NULL || gpu->device == NULL || gpu->access->event_open == NULL)
		return kvx_why(why, -EOPNOTSUPP,
			       "wait: the daemon cannot wait for events of this GPU");
	return 0;
}

static int check_flag(const struct kvx_wait *wait, struct kvx_why *why)
{
	const struct kvx_region *region = wait->region;

	if (region->mem.addr == NULL)
		return kvx_why(why, -EINVAL,
			       "wait: region %" PRIu64 " is not host memory: a flag must be",
			       region->id);
	if (wait->offset % FLAG_BYTES != 0)
		return kvx_why(why, -EINVAL,
			       "wait: the offset %" PRIu64 " of the flag is no multiple of %d",
			       wait->offset, FLAG_BYTES);
	if (region->mem.len_bytes < FLAG_BYTES || wait->offset > region->mem.len_bytes - FLAG_BYTES)
		return kvx_why(why, -ERANGE,
			       "wait: a flag at %" PRIu64 " leaves the region of %" PRIu64 " bytes",
			       wait->offset, region->mem.len_bytes);
	return 0;
}

static int wait_check(const struct kvx_wait *wait, struct kvx_why *why)
{
	int err = check_region(wait, why);

	if (err < 0)
		return err;
	switch (wait->kind) {
	case KVX_WAIT_EVENT:
		return check_event(wait, why);
	case KVX_WAIT_FLAG:
		return check_flag(wait, why);
	case KVX_WAIT_NONE:
		break;
	}
	return kvx_why(why, -EINVAL, "wait: for nothing");
}

/* ---- who looks */

static int flags_watcher(struct kvx_gates *gates, unsigned *out_index)
{
	*out_index = 0;
	if (gates->watchers[0] != NULL)
		return 0;
	return gate_watcher_create(gates, "kvx-wait-flags", NULL, NULL, &gates->watchers[0]);
}

static int event_watcher(struct kvx_gates *gates, const struct kvx_gpu_mem *gpu,
			 unsigned *out_index)
{
	char name[16];
	unsigned i = 1;

	while (i < gates->n_watchers && gates->watchers[i]->device != gpu->device)
		i++;
	*out_index = i;
	if (i < gates->n_watchers)
		return 0;
	kvx_assert(i < GATE_WATCHERS); /* one for each device of the node */
	snprintf(name, sizeof(name), "kvx-wait-%u", i - 1);
	int err = gate_watcher_create(gates, name, gpu->device, gpu->access, &gates->watchers[i]);
	if (err == 0)
		gates->n_watchers++;
	return err;
}

static int watcher_get(struct kvx_gates *gates, const struct kvx_wait *wait, unsigned *out_index)
{
	if (wait->kind == KVX_WAIT_FLAG)
		return flags_watcher(gates, out_index);
	return event_watcher(gates, wait->region->mem.gpu, out_index);
}

/* ---- gates */

static void gate_fill(struct kvx_gate *gate, const struct kvx_wait *wait)
{
	gate->msg.kind = GATE_MSG_GATE;
	gate->status = -ECANCELED;
	gate->kind = wait->kind;
	if (wait->kind == KVX_WAIT_EVENT) {
		memcpy(gate->ipc, wait->event, sizeof(gate->ipc));
		return;
	}
	gate->region = wait->region;
	gate->region->n_users++;
	gate->flag = (const uint64_t *)(const void *)(wait->region->mem.addr + wait->offset);
	gate->value = wait->value;
}

/* Everything that takes memory. */
static struct kvx_gate *gate_alloc(struct kvx_gates *gates, const struct kvx_gate_conf *conf,
				   const struct gate_watcher *watcher)
{
	const struct kvx_gate *after = conf->after;
	struct kvx_gate *gate = calloc(1, sizeof(*gate));

	if (gate == NULL)
		return NULL;
	gate->owner = owner_get(gates, conf->client);
	if (gate->owner == NULL)
		goto err_gate;
	gate->line = after != NULL && after->watcher == watcher ? after->line
								: calloc(1, sizeof(*gate->line));
	if (gate->line == NULL)
		goto err_owner;
	return gate;

err_owner:
	owner_settle(gates, gate->owner);
err_gate:
	free(gate);
	return NULL;
}

int kvx_gate_create(struct kvx_gates *gates, const struct kvx_gate_conf *conf,
		    struct kvx_gate **out_gate, struct kvx_why *why)
{
	struct kvx_gate *gate;
	unsigned index;
	int err = wait_check(conf->wait, why);

	if (err < 0)
		return err;
	err = watcher_get(gates, conf->wait, &index);
	if (err < 0)
		return kvx_why(why, err, "wait: no thread to look at it");
	gate = gate_alloc(gates, conf, gates->watchers[index]);
	if (gate == NULL)
		return kvx_why(why, -ENOMEM, "no memory to wait for anything");
	gate->gates = gates;
	gate->watcher = gates->watchers[index];
	gate->client = conf->client;
	gate->cb = conf->cb;
	gate->arg = conf->arg;
	gate->line->n_gates++;
	gate->owner->n_gates++;
	gates->n_gates++;
	gate->owner->watchers |= 1u << index;
	gate_fill(gate, conf->wait);
	gate_watcher_send(gate->watcher, &gate->msg);
	*out_gate = gate;
	return 0;
}

void kvx_gate_drop(struct kvx_gate *gate)
{
	gate->cb = NULL;
	atomic_store(&gate->dropped, true);
}

static void gate_back(struct kvx_gates *gates, struct kvx_gate *gate)
{
	struct gate_owner *owner = gate->owner;

	if (gate->region != NULL)
		gate->region->n_users--;
	if (--gate->line->n_gates == 0)
		free(gate->line);
	owner->n_gates--;
	gates->n_gates--;
	owner_settle(gates, owner);
	if (gate->cb != NULL)
		gate->cb(gate->arg, gate->status, gate->text != NULL ? gate->text : "");
	free(gate);
}

unsigned kvx_gates_drain(struct kvx_gates *gates)
{
	struct kvx_queue_node *node;
	unsigned n = 0;

	for (unsigned i = 0; i < gates->n_watchers && !gates->conf.threaded; i++)
		if (gates->watchers[i] != NULL)
			gate_watcher_turn(gates->watchers[i]);
	while ((node = kvx_queue_pop(gates->done)) != NULL) {
		struct gate_msg *msg = (struct gate_msg *)(void *)node; /* its first member */

		if (msg->kind == GATE_MSG_GATE) {
			gate_back(gates, (struct kvx_gate *)(void *)msg);
			n++;
			continue;
		}
		struct gate_owner *owner = ((struct gate_forget *)(void *)msg)->owner;
		owner->n_forgets--;
		owner_settle(gates, owner);
	}
	return n;
}

unsigned kvx_gates_count(const struct kvx_gates *gates)
{
	return gates->n_gates;
}

unsigned kvx_gates_count_client(const struct kvx_gates *gates, uint64_t client)
{
	const struct gate_owner *owner = owner_find(gates, client);

	return owner != NULL ? owner->n_gates : 0;
}

void kvx_gates_forget(struct kvx_gates *gates, uint64_t client)
{
	struct gate_owner *owner = owner_find(gates, client);

	if (owner == NULL || owner->gone)
		return;
	owner->gone = true;
	for (unsigned i = 0; i < gates->n_watchers; i++) {
		struct gate_forget *forget = &owner->forgets[i];

		if ((owner->watchers & 1u << i) == 0)
			continue;
		forget->msg.kind = GATE_MSG_FORGET;
		forget->owner = owner;
		forget->client = client;
		owner->n_forgets++;
		gate_watcher_send(gates->watchers[i], &forget->msg);
	}
	owner_settle(gates, owner);
}

bool kvx_gates_stop(struct kvx_gates *gates)
{
	uint64_t until_ns = kvx_now_ns() + END_WAIT_NS + gates->conf.call_timeout_ns;

	for (unsigned i = 0; i < gates->n_watchers; i++)
		if (gates->watchers[i] != NULL)
			gate_watcher_stop(gates->watchers[i]);
	for (unsigned i = 0; i < gates->n_watchers; i++) {
		if (gates->watchers[i] == NULL)
			continue;
		gates->left |= !gate_watcher_destroy(gates->watchers[i], until_ns);
		gates->watchers[i] = NULL;
	}
	gates->n_watchers = 0;
	kvx_gates_drain(gates);
	return !gates->left;
}

void kvx_gates_destroy(struct kvx_gates *gates)
{
	struct gate_owner *owner, *next;

	if (gates == NULL)
		return;
	kvx_gates_stop(gates);
	if (gates->left) /* gates of a thread that hangs are out yet */
		return;
	HASH_ITER (hh, gates->owners, owner, next) {
		HASH_DELETE(hh, gates->owners, owner);
		free(owner);
	}
	kvx_queue_destroy(gates->done);
	free(gates);
}
