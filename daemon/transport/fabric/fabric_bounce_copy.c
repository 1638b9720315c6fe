/* Copies of a bounce between its buffer and the device: started in the order in which messages
 * come, as far as tickets go, polled every turn, never waited for. Parts of a message in host
 * memory are copied by the CPU in between. Worker thread. */
#include <errno.h>

#include "transport/fabric/fabric_gpu.h"

struct kvx_gpu_copier *fab_bounce_copier(const struct fab_bounce *bounce, const struct fab_dev *dev)
{
	return dev->copiers[fab_bounce_is_out(bounce)];
}

static void ticket_failed(struct fab_bounce *bounce, struct fab_dev *dev, int status)
{
	if (status == -ENODEV)
		fab_dev_lost(dev);
	fab_bounce_fail(bounce, status,
			status == -ENODEV ? "the GPU of the memory is lost"
					  : "a copy between the GPU and host memory failed");
}

void fab_bounce_poll(struct fab_bounce *bounce)
{
	for (unsigned i = bounce->n_out; i-- > 0;) {
		struct fab_ticket *t = &bounce->out[i];
		struct fab_dev *dev = t->dev;
		int rc = dev->access->copier_poll(fab_bounce_copier(bounce, dev), t->ticket);

		if (rc == 0)
			continue;
		*t = bounce->out[--bounce->n_out];
		dev->gpu->n_moves++;
		if (rc < 0)
			ticket_failed(bounce, dev, rc);
		fab_dev_ticket_back(dev, fab_bounce_is_out(bounce));
	}
}

/* Pieces of one device, from where the bounce is on; returns how many and moves on. */
static unsigned bounce_pieces(struct fab_bounce *bounce, struct kvx_gpu_piece *pieces)
{
	const struct fab_dev *dev = bounce->places[bounce->at].mr->dev;
	bool out = fab_bounce_is_out(bounce);
	uint64_t next = 0; /* address behind the last piece */
	unsigned n = 0;

	while (bounce->at < bounce->n_places && n < FAB_PIECES) {
		const struct fab_place *p = &bounce->places[bounce->at];
		uint64_t left = p->len_bytes - bounce->done, room;

		if (p->mr->dev != dev)
			break;
		uint64_t addr = kvx_gpu_mem_addr(p->mr->gpu_mem, p->offset + bounce->done, &room);
		uint64_t len = left < room ? left : room;
		uint64_t run = (uintptr_t)bounce->run;

		if (n > 0 && next == addr)
			pieces[n - 1].len_bytes += len;
		else
			pieces[n++] = out ? (struct kvx_gpu_piece){run, addr, len}
					  : (struct kvx_gpu_piece){addr, run, len};
		next = addr + len;
		bounce->run += len;
		bounce->done += len;
		if (bounce->done == p->len_bytes) {
			bounce->at++;
			bounce->done = 0;
		}
	}
	return n;
}

static int bounce_start_device(struct fab_bounce *bounce)
{
	struct kvx_gpu_piece pieces[FAB_PIECES];
	struct fab_dev *dev = bounce->places[bounce->at].mr->dev;
	uint32_t at = bounce->at;
	uint64_t done = bounce->done;
	uint8_t *run = bounce->run;
	unsigned ticket, n = bounce_pieces(bounce, pieces);
	int rc = fab_dev_ready(dev);

	if (rc == 0)
		rc = dev->access->copier_start(fab_bounce_copier(bounce, dev), pieces, n, &ticket);
	if (rc == 0) {
		bounce->out[bounce->n_out++] = (struct fab_ticket){dev, ticket};
		dev->gpu->n_moves++;
		fab_dev_ticket_out(dev, fab_bounce_is_out(bounce));
		return 0;
	}
	if (rc == -EAGAIN) {
		bounce->at = at;
		bounce->done = done;
		bounce->run = run;
		return rc;
	}
	ticket_failed(bounce, dev, rc);
	return rc;
}

static int bounce_start_host(struct fab_bounce *bounce)
{
	const struct fab_place *p = &bounce->places[bounce->at];
	int rc = fab_bounce_is_out(bounce) ? fab_gather(bounce->run, p, 1)
					   : fab_scatter(bounce->ep, bounce->run, p, 1);

	bounce->run += p->len_bytes;
	bounce->at++;
	if (rc < 0)
		fab_bounce_fail(bounce, rc, NULL);
	return rc;
}

/* What a lease that is over lets not begin is everything for the peer. */
static bool bounce_may_start(struct fab_bounce *bounce)
{
	if (bounce->at == bounce->n_places || bounce->n_out == FAB_BOUNCE_OUT)
		return false;
	if (bounce->kind != FAB_BOUNCE_WRITE && fab_ep_lease_over(bounce->ep)) {
		fab_bounce_fail(bounce, -EHOSTDOWN, NULL);
		return false;
	}
	return true;
}

/* The device does not answer: no further copy begins. What leaves it is left behind with its
 * buffer: it is never sent, so whoever asked for it can be told. What comes in may still land. */
static bool bounce_is_left(struct fab_bounce *bounce)
{
	if (!fab_dev_hangs(bounce->buf->dev, fab_bounce_is_out(bounce)))
		return false;
	bool left = fab_bounce_is_out(bounce) && bounce->n_out > 0;
	if (left || bounce->at < bounce->n_places)
		fab_bounce_fail(bounce, -EBUSY, FAB_HANGS_TEXT);
	if (!left)
		return false;
	fab_bounce_out_leave(bounce);
	return true;
}

void fab_bounce_step(struct fab_bounce *bounce)
{
	struct kvx_dom_counters *counters = &bounce->buf->dev->gpu->dom->counters;
	int rc = 0;

	fab_bounce_poll(bounce);
	if (bounce_is_left(bounce))
		return;
	while (rc == 0 && bounce_may_start(bounce))
		rc = bounce->places[bounce->at].mr->dev != NULL ? bounce_start_device(bounce)
								: bounce_start_host(bounce);
	if (bounce->n_out > 0 || bounce->at < bounce->n_places)
		return;
	if (bounce->status == 0) {
		kvx_counter_add(&counters->bounced_ops, bounce->n_places);
		kvx_counter_add(&counters->bounced_bytes, bounce->data_bytes);
	}
	if (fab_bounce_is_out(bounce))
		fab_bounce_out_copied(bounce);
	else
		fab_bounce_in_copied(bounce);
}

void fab_bounce_copy(struct fab_bounce *bounce)
{
	bounce->state = FAB_BOUNCE_COPYING;
	bounce->buf->dev->gpu->n_receiving--;
	bounce->buf->dev->gpu->n_copying++;
	fab_bounce_step(bounce);
}
