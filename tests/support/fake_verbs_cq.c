/* The verbs stand-in's completion queues, their channels, and asynchronous events. A CQ has no more
 * room than it says; what does not fit is lost, as on a device, and noted. Any thread. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#define MAX_EVENTS 256

/* What a get_event call does when there is nothing: EAGAIN, or it would sleep. */
static int fd_empty(int fd, const char *what)
{
	if ((fcntl(fd, F_GETFL) & O_NONBLOCK) == 0)
		fv_violate("%s without an event would wait for ever", what);
	fv_leave(EAGAIN);
	return -1;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
	int err = fv_enter(FV_CREATE_CHANNEL);
	struct fv_channel *channel;

	if (err == 0 && fv_dev_of(context)->fatal)
		err = EIO;
	if (err != 0)
		return fv_leave_null(err);
	channel = calloc(1, sizeof(*channel));
	if (channel == NULL)
		return fv_leave_null(ENOMEM);
	channel->channel.context = context;
	channel->channel.fd = fv_fd_open();
	if (channel->channel.fd < 0) {
		err = errno;
		free(channel);
		return fv_leave_null(err);
	}
	fv_object_init(&channel->obj, FV_K_CHANNEL);
	fv_ctx_of(context)->n_children++;
	fv.count.channels++;
	fv_unlock();
	return &channel->channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *ibchannel)
{
	struct fv_channel *channel = (struct fv_channel *)ibchannel;
	int err = fv_enter(FV_DESTROY_CHANNEL);

	if (!fv_alive(&channel->obj, FV_K_CHANNEL, "destroy_comp_channel"))
		return fv_leave(EINVAL);
	if (channel->channel.refcnt > 0) {
		fv_violate("destroy_comp_channel with %d CQs on it", channel->channel.refcnt);
		return fv_leave(EBUSY);
	}
	if (err != 0)
		return fv_leave(err);
	fv_fd_close(channel->channel.fd);
	fv_ctx_of(channel->channel.context)->n_children--;
	fv.count.channels--;
	fv_object_end(&channel->obj);
	return fv_leave(0);
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
			     struct ibv_comp_channel *channel, int comp_vector)
{
	struct fake_verbs_dev *dev = fv_dev_of(context);
	int err = fv_enter(FV_CREATE_CQ);
	struct fv_cq *cq;

	if (err == 0 && (cqe < 1 || cqe > dev->attr.max_cqe || comp_vector != 0))
		err = EINVAL;
	if (err == 0 && dev->fatal)
		err = EIO;
	if (err != 0)
		return fv_leave_null(err);
	cq = calloc(1, sizeof(*cq));
	if (cq != NULL)
		cq->ring = calloc((size_t)cqe + dev->cq_extra, sizeof(*cq->ring));
	if (cq == NULL || cq->ring == NULL) {
		free(cq);
		return fv_leave_null(ENOMEM);
	}
	cq->cq.context = context;
	cq->cq.channel = channel;
	cq->cq.cq_context = cq_context;
	cq->cq.cqe = cqe + (int)dev->cq_extra;
	if (channel != NULL)
		channel->refcnt++;
	fv_object_init(&cq->obj, FV_K_CQ);
	fv_ctx_of(context)->n_children++;
	fv.count.cqs++;
	fv_unlock();
	return &cq->cq;
}

static void channel_purge(struct fv_channel *channel, const struct ibv_cq *cq)
{
	unsigned kept = channel->head;

	for (unsigned i = channel->head; i != channel->tail; i++) {
		struct ibv_cq *at = channel->events[i % MAX_EVENTS];

		if (at == cq)
			fv_fd_take(channel->channel.fd);
		else
			channel->events[kept++ % MAX_EVENTS] = at;
	}
	channel->tail = kept;
}

static bool cq_is_acked(void *arg)
{
	const struct fv_cq *cq = arg;

	return cq->events_got == cq->cq.comp_events_completed &&
	       cq->async_got == cq->cq.async_events_completed;
}

int ibv_destroy_cq(struct ibv_cq *ibcq)
{
	struct fv_cq *cq = (struct fv_cq *)ibcq;
	int err = fv_enter(FV_DESTROY_CQ);

	if (!fv_alive(&cq->obj, FV_K_CQ, "destroy_cq"))
		return fv_leave(EINVAL);
	if (cq->n_qps > 0) {
		fv_violate("destroy_cq with %u QPs on it", cq->n_qps);
		return fv_leave(EBUSY);
	}
	if (err != 0)
		return fv_leave(err);
	if (cq->cq.channel != NULL) {
		channel_purge((struct fv_channel *)cq->cq.channel, ibcq);
		cq->cq.channel->refcnt--;
	}
	fv_events_purge(fv_ctx_of(cq->cq.context), ibcq);
	if (!fv_wait(cq_is_acked, cq))
		fv_violate("destroy_cq would wait for ever: events not acked");
	fv_ctx_of(cq->cq.context)->n_children--;
	fv.count.cqs--;
	fv_object_end(&cq->obj);
	return fv_leave(0);
}

/* Makes completions visible up to `shown` and wakes who asked for it. */
static void cq_show(struct fv_cq *cq, uint64_t shown)
{
	struct fv_channel *channel = (struct fv_channel *)cq->cq.channel;

	if (cq->shown == shown)
		return;
	cq->shown = shown;
	if (!cq->armed || channel == NULL)
		return;
	cq->armed = false;
	channel->events[channel->tail++ % MAX_EVENTS] = &cq->cq;
	fv_fd_add(channel->channel.fd);
}

void fv_cq_push(struct fv_qp *qp, uint64_t wqe, enum ibv_wc_status status, uint32_t vendor_err)
{
	struct fv_cq *cq = (struct fv_cq *)qp->qp.send_cq;
	const struct fv_wqe *w = &qp->sq[wqe % qp->cap.max_send_wr];
	struct fv_cqe *cqe;

	if (cq->broken)
		return;
	if (cq->head - cq->tail >= (uint64_t)cq->cq.cqe) {
		fv_violate("CQ of %d entries overflowed", cq->cq.cqe);
		return;
	}
	cqe = &cq->ring[cq->head++ % (uint64_t)cq->cq.cqe];
	memset(cqe, 0, sizeof(*cqe));
	cqe->qp = qp;
	cqe->wqe = wqe;
	cqe->wc.wr_id = w->wr_id;
	cqe->wc.status = status;
	cqe->wc.qp_num = qp->qp.qp_num;
	cqe->wc.vendor_err = vendor_err;
	/* Of an error only these are valid: what is not must not be used. */
	cqe->wc.opcode = status != IBV_WC_SUCCESS        ? (enum ibv_wc_opcode)0x7e
			 : w->opcode == IBV_WR_RDMA_READ ? IBV_WC_RDMA_READ
							 : IBV_WC_RDMA_WRITE;
	cqe->wc.byte_len = status != IBV_WC_SUCCESS ? 0xdeadbeef : (uint32_t)w->len;
	fv.count.cqes++;
	fv.count.flushed += status == IBV_WC_WR_FLUSH_ERR;
	if (!fv.hold_completions)
		cq_show(cq, cq->head);
}

void fake_verbs_hold_completions(bool hold)
{
	fv_lock();
	fv.hold_completions = hold;
	fv_unlock();
}

unsigned fake_verbs_release(unsigned n)
{
	unsigned released = 0;

	fv_lock();
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
		struct fv_cq *cq = (struct fv_cq *)((uint8_t *)obj - offsetof(struct fv_cq, obj));
		uint64_t more;

		if (obj->kind != FV_K_CQ || obj->dead)
			continue;
		more = cq->head - cq->shown;
		more = more > n - released ? n - released : more;
		released += (unsigned)more;
		cq_show(cq, cq->shown + more);
	}
	fv_unlock();
	return released;
}

/* A provider's clean-up when a QP goes; with keeps_dead they stay, as on rxe. */
void fv_cq_drop_qp(struct fv_cq *cq, struct fv_qp *qp)
{
	uint64_t size = (uint64_t)cq->cq.cqe, kept = cq->tail, shown = cq->tail;

	if (fv_dev_of(cq->cq.context)->keeps_dead) {
		for (uint64_t i = cq->tail; i != cq->head; i++)
			cq->n_stale += cq->ring[i % size].qp == qp;
		return;
	}
	for (uint64_t i = cq->tail; i != cq->head; i++) {
		if (cq->ring[i % size].qp == qp)
			continue;
		cq->ring[kept++ % size] = cq->ring[i % size];
		shown += i < cq->shown;
	}
	cq->head = kept;
	cq->shown = shown;
}

/* Send queue slots are given back when a completion at or behind them is taken. */
static void qp_retire(struct fv_qp *qp, uint64_t wqe)
{
	struct fv_cq *cq = (struct fv_cq *)qp->qp.send_cq;

	for (; qp->retired <= wqe; qp->retired++)
		cq->n_open_wrs--;
}

int fv_poll_cq(struct ibv_cq *ibcq, int n, struct ibv_wc *wc)
{
	struct fv_cq *cq = (struct fv_cq *)ibcq;
	int err = fv_enter(FV_POLL_CQ), got = 0;

	if (!fv_alive(&cq->obj, FV_K_CQ, "poll_cq"))
		err = EINVAL;
	if (err != 0) {
		fv_unlock();
		return -err;
	}
	fv_cq_step(cq);
	while (got < n && cq->tail != cq->shown) {
		struct fv_cqe *cqe = &cq->ring[cq->tail++ % (uint64_t)cq->cq.cqe];

		wc[got++] = cqe->wc;
		if (cqe->qp->obj.dead)
			cq->n_stale--;
		else
			qp_retire(cqe->qp, cqe->wqe);
	}
	fv_unlock();
	return got;
}

int fv_req_notify_cq(struct ibv_cq *ibcq, int solicited_only)
{
	struct fv_cq *cq = (struct fv_cq *)ibcq;
	int err = fv_enter(FV_NOTIFY_CQ);

	if (!fv_alive(&cq->obj, FV_K_CQ, "req_notify_cq"))
		err = EINVAL;
	if (err == 0)
		cq->armed = true;
	return fv_leave(err);
}

int ibv_get_cq_event(struct ibv_comp_channel *ibchannel, struct ibv_cq **out_cq, void **out_context)
{
	struct fv_channel *channel = (struct fv_channel *)ibchannel;
	int err = fv_enter(FV_GET_CQ_EVENT);
	struct fv_cq *cq;

	if (err == 0 && !fv_alive(&channel->obj, FV_K_CHANNEL, "get_cq_event"))
		err = EINVAL;
	if (err != 0) {
		fv_leave(err);
		return -1;
	}
	if (channel->head == channel->tail)
		return fd_empty(channel->channel.fd, "get_cq_event");
	cq = (struct fv_cq *)channel->events[channel->head++ % MAX_EVENTS];
	fv_fd_take(channel->channel.fd);
	cq->events_got++;
	fv.count.unacked_events++;
	*out_cq = &cq->cq;
	*out_context = cq->cq.cq_context;
	fv_unlock();
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *ibcq, unsigned int n)
{
	struct fv_cq *cq = (struct fv_cq *)ibcq;

	fv_lock();
	if (fv_alive(&cq->obj, FV_K_CQ, "ack_cq_events")) {
		cq->cq.comp_events_completed += n;
		fv.count.unacked_events -= n;
	}
	fv_unlock();
}

struct ibv_cq *fake_verbs_cq(unsigned i)
{
	struct ibv_cq *found = NULL;

	fv_lock();
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next)
		if (obj->kind == FV_K_CQ && !obj->dead && i-- == 0)
			found = (struct ibv_cq *)((uint8_t *)obj - offsetof(struct fv_cq, obj));
	fv_unlock();
	return found;
}
