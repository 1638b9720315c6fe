/* When an ep, a region or a device goes in the middle of copies: what was not begun is not begun
 * any more, what is under way is waited for (by a fence, and before memory is given back: see
 * fabric_call.c), and a device whose copies do not end is given up. What even that does not stop
 * may land at any time: until it ends it keeps its buffer, and who waits for it waits. Worker
 * thread, which looks and never waits. */
#include <errno.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

#define CUT_WAIT_NS (4 * KVX_SEC) /* a device that is given up is reset within, if all is well */

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

static bool bounce_uses(const struct fab_bounce *bounce, const struct kvx_mr *mr)
{
	for (uint32_t i = 0; i < bounce->n_places; i++)
		if (bounce->places[i].mr == mr)
			return true;
	return false;
}

static bool bounce_is_of(const struct fab_bounce *bounce, const struct fab_cut *cut)
{
	if (bounce->n_out == 0 || (cut->in_only && fab_bounce_is_out(bounce)))
		return false;
	return cut->mr != NULL ? bounce_uses(bounce, cut->mr) : bounce->ep == cut->ep;
}

/* It was waited for as long already, before anybody asked. */
static bool bounce_hangs(const struct fab_bounce *bounce)
{
	return fab_dev_hangs(bounce->out[0].dev, fab_bounce_is_out(bounce));
}

static void bounce_give_up(const struct fab_bounce *bounce)
{
	struct fab_dev *dev = bounce->out[0].dev; /* all copies of a message are of one device */

	if (dev->cut_ns != 0)
		return;
	kvx_error("fabric: copies of a GPU do not end: giving the device up");
	dev->cut_ns = kvx_now_ns();
	dev->access->copier_cut(fab_bounce_copier(bounce, dev));
	fab_dev_lost(dev);
}

/* It was given up long ago, and in vain. */
static bool bounce_is_hopeless(const struct fab_bounce *bounce)
{
	const struct fab_dev *dev = bounce->out[0].dev;

	return dev->cut_ns != 0 && kvx_now_ns() >= dev->cut_ns + CUT_WAIT_NS;
}

/* Whose memory it may still write into, or who takes memory back that it reads, waits as long as
 * it takes. What leaves memory of an ep that goes is sent to nobody: without hope it is not waited
 * for, and keeps its buffer alone. */
static bool bounce_holds(const struct fab_bounce *bounce, struct fab_cut *cut)
{
	if (!bounce_is_hopeless(bounce))
		return true;
	if (cut->mr == NULL && fab_bounce_is_out(bounce))
		return false;
	if (!cut->told)
		kvx_error("fabric: copies of a GPU that was given up neither end nor can be "
			  "stopped: %s is kept until they do, or the device is reset",
			  cut->mr != NULL ? "memory that they use"
					  : "a lane whose data they write");
	cut->told = true;
	return true;
}

void fab_cut_begin(struct fab_cut *cut, const struct kvx_dom *dom)
{
	*cut = (struct fab_cut){.until_ns = kvx_now_ns()};
	if (dom->gpu != NULL)
		cut->until_ns += dom->gpu->fence_ns;
}

int fab_bounce_look(struct fab_gpu *gpu, struct fab_cut *cut)
{
	bool too_long = kvx_now_ns() >= cut->until_ns, left = false;

	for (struct fab_bounce *b = gpu->bounces; b != NULL; b = b->next) {
		if (!bounce_is_of(b, cut))
			continue;
		fab_bounce_poll(b);
		if (b->n_out == 0)
			continue;
		if (too_long || bounce_hangs(b))
			bounce_give_up(b);
		left |= bounce_holds(b, cut);
	}
	return left ? -EAGAIN : 0;
}

void fab_bounce_stuck(struct fab_bounce *bounce)
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
			fab_bounce_stuck(b);
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

void fab_bounce_withdraw(struct kvx_mr *mr)
{
	struct fab_gpu *gpu = mr->dom->gpu;

	for (struct fab_bounce *b = gpu != NULL ? gpu->bounces : NULL; b != NULL; b = b->next)
		if (b->state != FAB_BOUNCE_OVER && bounce_uses(b, mr))
			fab_bounce_fail(b, gone_status(b), NULL);
}

void fab_bounce_forget(struct kvx_mr *mr)
{
	struct fab_gpu *gpu = mr->dom->gpu;

	for (struct fab_bounce *b = gpu != NULL ? gpu->bounces : NULL; b != NULL; b = b->next)
		if (b->n_out == 0 && bounce_uses(b, mr))
			b->n_places = b->at = 0; /* the mr's address may be another's soon */
}
