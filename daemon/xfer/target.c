/* Targets: see target.h. The reference count and the watches; who made a target (the node for its
 * own regions, a peer for the others) owns the memory and frees it in release(). Loop thread. */
#include "xfer/target.h"

#include <stddef.h>
#include <stdio.h>
#include <utlist.h>

#include "base/assert.h"

void kvx_target_unref(struct kvx_target *target)
{
	if (target == NULL)
		return;
	kvx_assert(target->n_refs > 0);
	if (--target->n_refs == 0)
		target->release(target);
}

void kvx_target_watch(struct kvx_target *target, struct kvx_target_watch *watch)
{
	DL_APPEND(target->watches, watch);
}

void kvx_target_unwatch(struct kvx_target *target, struct kvx_target_watch *watch)
{
	if (target->next_told == watch)
		target->next_told = watch->next;
	DL_DELETE(target->watches, watch);
	watch->prev = NULL;
	watch->next = NULL;
}

void kvx_target_lose(struct kvx_target *target, int status, const char *text)
{
	if (target->lost)
		return;
	target->lost = true;
	target->lost_status = status;
	snprintf(target->lost_text, sizeof(target->lost_text), "%s", text);
}

/* Whoever is told may take itself or others off the list, and drop references. */
void kvx_target_tell(struct kvx_target *target)
{
	kvx_assert(target->lost);
	if (target->told)
		return;
	target->told = true;
	kvx_target_ref(target);
	target->next_told = target->watches;
	while (target->next_told != NULL) {
		struct kvx_target_watch *watch = target->next_told;
		target->next_told = watch->next;
		watch->lost(watch, target->lost_status, target->lost_text);
	}
	kvx_target_unref(target);
}
