/* The life of a bounce: who may have one, and a buffer with it, and when; its end; the turn in
 * which all of them are looked at. Its copies are in fabric_bounce_copy.c, what begins before and
 * follows after them in fabric_bounce_out.c and fabric_bounce_in.c, what ends it early in
 * fabric_bounce_cut.c. Worker thread. A bounce is made when more are under way than ever before,
 * never freed before the domain is closed. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/fabric/fabric_gpu.h"

bool fab_places_bounce(const struct fab_place *places, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		if (places[i].mr->dev != NULL)
			return true;
	return false;
}

/* ---- beginning and end */

static void mr_tell(struct kvx_mr *mr)
{
	if (mr->told)
		return;
	mr->told = true;
	kvx_info("fabric: %" PRIu64 " bytes of GPU memory are reached by peers through host "
		 "memory: every byte is copied once more at this end, which costs time and host "
		 "memory bandwidth; an RDMA device that reaches the GPU would spare that (see "
		 "kvxferctl doctor)",
		 mr->len_bytes);
}

/* The device of the places can copy. It is one: nobody builds messages of two, and what hangs with
 * one device is not to hold up another. */
static int places_ready(const struct fab_place *places, uint32_t n, bool out,
			struct fab_dev **out_dev)
{
	struct fab_dev *dev = NULL;
	int rc;

	for (uint32_t i = 0; i < n; i++) {
		if (places[i].mr->dev == NULL)
			continue;
		if (dev != NULL && places[i].mr->dev != dev)
			return -EINVAL;
		dev = places[i].mr->dev;
	}
	rc = fab_dev_ready(dev);
	if (rc == 0 && fab_dev_hangs(dev, out))
		rc = -EBUSY;
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < n; i++)
		if (places[i].mr->dev != NULL)
			mr_tell(places[i].mr);
	*out_dev = dev;
	return 0;
}

static struct fab_bounce *bounce_new(struct fab_gpu *gpu)
{
	struct fab_bounce *bounce = gpu->free_bounces;
	struct fab_bounce **by_index;

	if (bounce != NULL) {
		gpu->free_bounces = bounce->next;
		return bounce;
	}
	if (gpu->n_by_index == FAB_MAX_BOUNCES)
		return NULL;
	by_index = realloc(gpu->by_index, (gpu->n_by_index + 1) * sizeof(struct fab_bounce *));
	if (by_index == NULL)
		return NULL;
	gpu->by_index = by_index;
	bounce = calloc(1, sizeof(*bounce));
	if (bounce == NULL)
		return NULL;
	bounce->index = gpu->n_by_index;
	gpu->by_index[gpu->n_by_index++] = bounce;
	return bounce;
}

static bool kind_is_out(enum fab_bounce_kind kind)
{
	return kind == FAB_BOUNCE_WRITE || kind == FAB_BOUNCE_REPLY;
}

bool fab_bounce_is_out(const struct fab_bounce *bounce)
{
	return kind_is_out(bounce->kind);
}

/* What comes in shares its slots: WRITEs of the peer and answers to READs of ours. */
static bool kinds_share(enum fab_bounce_kind a, enum fab_bounce_kind b)
{
	return a == b || (!kind_is_out(a) && !kind_is_out(b));
}

/* Each device has slots of its own: one that hangs fills those only. */
static bool slots_full(const struct kvx_ep *ep, enum fab_bounce_kind kind,
		       const struct fab_dev *dev)
{
	const struct fab_gpu *gpu = ep->dom->gpu;
	unsigned n = 0;

	for (unsigned k = 0; k < FAB_BOUNCE_KINDS; k++)
		if (kinds_share(kind, (enum fab_bounce_kind)k))
			n += ep->n_bounces[k];
	if (n < gpu->slots || gpu->devs->next == NULL)
		return n >= gpu->slots;
	n = 0;
	for (const struct fab_bounce *b = gpu->bounces; b != NULL; b = b->next)
		n += b->ep == ep && b->buf->dev == dev && kinds_share(kind, b->kind);
	return n >= gpu->slots;
}

static bool ep_is_alone(const struct kvx_ep *ep)
{
	const struct kvx_dom *dom = ep->dom;

	for (unsigned i = 0; i < dom->n_eps; i++)
		if (dom->eps[i] != NULL && dom->eps[i] != ep && dom->eps[i]->state == FAB_EP_UP)
			return false;
	return true;
}

/* What goes out waits for its peer: once buffers are few, a peer that does not read holds one of
 * each kind, and leaves the others to others. */
static bool share_used(const struct kvx_ep *ep, enum fab_bounce_kind kind)
{
	const struct fab_gpu *gpu = ep->dom->gpu;

	return kind_is_out(kind) && ep->n_bounces[kind] > 0 &&
	       gpu->n_out_bufs >= gpu->max_bufs / 4 && !ep_is_alone(ep);
}

static int bounce_take(struct kvx_ep *ep, enum fab_bounce_kind kind, const struct fab_place *places,
		       uint32_t n, struct fab_bounce **out_bounce)
{
	struct fab_gpu *gpu = ep->dom->gpu;
	struct fab_bounce *bounce;
	struct fab_dev *dev;
	struct fab_buf *buf;
	int rc = places_ready(places, n, kind_is_out(kind), &dev);

	if (rc < 0)
		return rc;
	if (slots_full(ep, kind, dev) || share_used(ep, kind))
		return -EAGAIN;
	rc = fab_buf_get(dev, kind_is_out(kind), &buf);
	if (rc < 0)
		return rc;
	bounce = bounce_new(gpu);
	if (bounce == NULL) {
		fab_buf_put(buf);
		return -ENOMEM;
	}
	bounce->kind = kind;
	bounce->state = FAB_BOUNCE_RECEIVING;
	gpu->n_receiving++;
	bounce->ep = ep;
	bounce->req = NULL;
	bounce->buf = buf;
	bounce->ahead = false;
	bounce->head_len = bounce->data_bytes = 0;
	bounce->status = 0;
	bounce->text = NULL;
	bounce->at = 0;
	bounce->done = 0;
	bounce->run = fab_buf_data(buf);
	bounce->n_out = 0;
	bounce->n_places = n;
	memcpy(bounce->places, places, n * sizeof(*places));
	ep->n_bounces[kind]++;
	bounce->next = NULL;
	*gpu->bounces_tail = bounce;
	gpu->bounces_tail = &bounce->next;
	*out_bounce = bounce;
	return 0;
}

int fab_bounce_get(struct kvx_ep *ep, enum fab_bounce_kind kind, const struct fab_place *places,
		   uint32_t n, struct fab_bounce **out_bounce)
{
	int rc = bounce_take(ep, kind, places, n, out_bounce);

	if (rc == -EAGAIN && kind == FAB_BOUNCE_WRITE) {
		ep->dom->gpu->post_waiting = true;
	} else if (rc == -EAGAIN) {
		ep->bounce_wait = true;
		ep->dom->gpu->waiting = true;
	}
	return rc;
}

void fab_bounce_end(struct fab_bounce *bounce)
{
	struct fab_gpu *gpu = bounce->buf->dev->gpu;

	switch (bounce->state) {
	case FAB_BOUNCE_RECEIVING:
		gpu->n_receiving--;
		break;
	case FAB_BOUNCE_COPYING:
		gpu->n_copying--;
		break;
	case FAB_BOUNCE_READY:
		gpu->n_ready--;
		break;
	case FAB_BOUNCE_SENDING:
		bounce->ep->n_replies_sent -= bounce->kind == FAB_BOUNCE_REPLY;
		break;
	default:
		break;
	}
	bounce->state = FAB_BOUNCE_OVER;
	fab_buf_put(bounce->buf);
	if (bounce->req != NULL && bounce->req->bounce == bounce)
		bounce->req->bounce = NULL;
	if (bounce->ep != NULL)
		bounce->ep->n_bounces[bounce->kind]--;
	bounce->ep = NULL;
	bounce->req = NULL;
}

void fab_bounce_fail(struct fab_bounce *bounce, int status, const char *text)
{
	if (bounce->status == 0) {
		bounce->status = status;
		bounce->text = text;
	}
	bounce->at = bounce->n_places; /* which stay: what is under way uses them */
}

bool fab_bounce_scarce(const struct kvx_ep *ep)
{
	const struct fab_gpu *gpu = ep->dom->gpu;

	return gpu->n_receiving >= gpu->max_bufs / 4;
}

struct fab_bounce *fab_bounce_find(const struct kvx_ep *ep, uint32_t index)
{
	const struct fab_gpu *gpu = ep->dom->gpu;

	kvx_assert(gpu != NULL && index < gpu->n_by_index);
	struct fab_bounce *bounce = gpu->by_index[index];
	kvx_assert(bounce->ep == ep && bounce->state == FAB_BOUNCE_SENDING);
	return bounce;
}

/* ---- the turn */

static void bounces_sweep(struct fab_gpu *gpu)
{
	struct fab_bounce **at = &gpu->bounces;

	while (*at != NULL) {
		struct fab_bounce *bounce = *at;

		if (bounce->state != FAB_BOUNCE_OVER) {
			at = &bounce->next;
			continue;
		}
		*at = bounce->next;
		bounce->state = FAB_BOUNCE_FREE;
		bounce->next = gpu->free_bounces;
		gpu->free_bounces = bounce;
	}
	gpu->bounces_tail = at;
}

void fab_bounce_progress(struct fab_gpu *gpu)
{
	struct kvx_dom *dom = gpu->dom;

	fab_gpu_jobs(gpu);
	for (struct fab_bounce *b = gpu->bounces; b != NULL; b = b->next) {
		if (b->state == FAB_BOUNCE_COPYING)
			fab_bounce_step(b);
		else if (b->state == FAB_BOUNCE_READY)
			fab_bounce_out_send(b);
		else if (b->state == FAB_BOUNCE_STUCK)
			fab_bounce_look_again(b);
	}
	bounces_sweep(gpu);
	fab_dev_looked(gpu);
	if (!gpu->waiting)
		return;
	gpu->waiting = false;
	for (unsigned i = 0; i < dom->n_eps; i++) {
		struct kvx_ep *ep = dom->eps[i];

		if (ep != NULL && ep->bounce_wait)
			fab_ep_dirty(ep);
	}
}
