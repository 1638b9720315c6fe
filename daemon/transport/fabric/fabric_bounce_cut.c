/* When an ep, a region or a device goes in the middle of copies: what was not begun is not begun
 * any more, what is under way is waited for (in a fence, and before memory is given back), and a
 * device whose copies do not end is given up. What nobody can stop keeps its buffer until it ends.
 * Worker thread, which sleeps while it waits. */
#include <errno.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

#define FENCE_PAUSE_NS 20000
#define CUT_WAIT_NS    (4 * KVX_SEC) /* a device that is given up is reset within */

void fab_bounce_shut(struct kvx_ep *ep)
{
	struct fab_gpu *gpu = ep->dom->gpu;

	ep->n_stalled = 0;
	ep->bounce_wait = false;
	for (struct fab_bounce *b = gpu != NULL ? gpu->bounces : NULL; b != NULL; b = b->next) {
		if (b->ep != ep)
			continue;
		if (b->state == FAB_BOUNCE_COPYING)
			fab_bounce_fail(b, -ECANCELED, NULL);
		else
			fab_bounce_end(b);
	}
}

static void pause_a_moment(void)
{
	const struct timespec pause = {.tv_nsec = FENCE_PAUSE_NS};

	nanosleep(&pause, NULL);
}

/* Whose copies are waited for. */
struct cut_whose {
	const struct kvx_ep *ep; /* or NULL */
	const struct kvx_mr *mr; /* or NULL */
	bool in_only;
};

static bool bounce_uses(const struct fab_bounce *bounce, const struct kvx_mr *mr)
{
	for (uint32_t i = 0; i < bounce->n_places; i++)
		if (bounce->places[i].mr == mr)
			return true;
	return false;
}

static bool bounce_is_of(const struct fab_bounce *bounce, const struct cut_whose *whose)
{
	if (bounce->n_out == 0 || (whose->in_only && fab_bounce_is_out(bounce)))
		return false;
	return whose->mr != NULL ? bounce_uses(bounce, whose->mr) : bounce->ep == whose->ep;
}

/* Gives the device up when this is too long; false: that was long ago, and in vain. */
static bool bounce_may_end(struct fab_bounce *bounce, bool too_long)
{
	struct fab_dev *dev = bounce->out[0].dev; /* all copies of a message are of one device */
	uint64_t now = kvx_now_ns();

	if (dev->cut_ns == 0 && too_long) {
		kvx_error("fabric: copies of a GPU do not end: giving the device up");
		dev->cut_ns = now;
		dev->access->copier_cut(fab_bounce_copier(bounce, dev));
		fab_dev_lost(dev);
	}
	return dev->cut_ns == 0 || now < dev->cut_ns + CUT_WAIT_NS;
}

/* 0: none of them is under way; -EIO: what is left neither ends nor can be stopped. A device is
 * waited for once: who comes after it was given up in vain is told at once. */
static int copies_wait(struct fab_gpu *gpu, const struct cut_whose *whose)
{
	uint64_t until = kvx_now_ns() + gpu->fence_ns;

	for (;;) {
		bool too_long = kvx_now_ns() >= until, left = false, hope = false;

		for (struct fab_bounce *b = gpu->bounces; b != NULL; b = b->next) {
			if (!bounce_is_of(b, whose))
				continue;
			fab_bounce_poll(b);
			if (b->n_out == 0)
				continue;
			left = true;
			hope |= bounce_may_end(b, too_long);
		}
		if (!left)
			return 0;
		if (!hope)
			return -EIO;
		pause_a_moment();
	}
}

int fab_bounce_fence(struct kvx_ep *ep)
{
	const struct cut_whose whose = {.ep = ep};

	return ep->dom->gpu != NULL ? copies_wait(ep->dom->gpu, &whose) : 0;
}

void fab_bounce_stop_in(struct kvx_ep *ep)
{
	const struct cut_whose whose = {.ep = ep, .in_only = true};

	if (ep->dom->gpu != NULL && copies_wait(ep->dom->gpu, &whose) < 0)
		kvx_error("fabric: endpoint %u: copies into a GPU that is given up neither end nor "
			  "can be stopped",
			  ep->index);
}

static void bounce_stuck(struct fab_bounce *bounce)
{
	struct fab_gpu *gpu = bounce->buf->dev->gpu;

	bounce->state = FAB_BOUNCE_STUCK;
	gpu->n_copying--;
	gpu->n_stuck++;
	if (bounce->ep != NULL)
		bounce->ep->n_bounces[bounce->kind]--;
	if (bounce->req != NULL)
		bounce->req->bounce = NULL;
	bounce->ep = NULL;
	bounce->req = NULL;
}

void fab_bounce_look_again(struct fab_bounce *bounce)
{
	struct fab_gpu *gpu = bounce->buf->dev->gpu;

	fab_bounce_poll(bounce);
	if (bounce->n_out > 0)
		return;
	gpu->n_stuck--;
	fab_bounce_end(bounce);
}

void fab_bounce_leave(struct kvx_ep *ep)
{
	struct fab_gpu *gpu = ep->dom->gpu;

	for (struct fab_bounce *b = gpu != NULL ? gpu->bounces : NULL; b != NULL; b = b->next) {
		if (b->ep != ep)
			continue;
		if (b->n_out > 0)
			bounce_stuck(b);
		else
			fab_bounce_end(b);
	}
}

/* Whoever it answers is told that the memory is gone; our own op is cancelled with it. */
static int gone_status(const struct fab_bounce *bounce)
{
	bool ours = bounce->kind == FAB_BOUNCE_WRITE || bounce->kind == FAB_BOUNCE_FILL;

	return ours ? -ECANCELED : -EOWNERDEAD;
}

void fab_bounce_forget(struct kvx_mr *mr)
{
	const struct cut_whose whose = {.mr = mr};
	struct fab_gpu *gpu = mr->dom->gpu;

	if (gpu == NULL)
		return;
	for (struct fab_bounce *b = gpu->bounces; b != NULL; b = b->next)
		if (b->state != FAB_BOUNCE_OVER && bounce_uses(b, mr))
			fab_bounce_fail(b, gone_status(b), NULL);
	if (copies_wait(gpu, &whose) < 0)
		kvx_error("fabric: copies of a GPU neither end nor can be stopped: memory that "
			  "they use is given back all the same");
	for (struct fab_bounce *b = gpu->bounces; b != NULL; b = b->next)
		if (b->n_out == 0 && bounce_uses(b, mr))
			b->n_places = b->at = 0; /* the mr's address may be another's soon */
}
