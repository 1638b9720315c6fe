/* The verbs stand-in's asynchronous events: what a device says unasked. Any thread. */
#include "fake_verbs_priv.h"

#include <errno.h>
#include <fcntl.h>

#define MAX_EVENTS 256

static bool event_is_qps(enum ibv_event_type type)
{
	return type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_REQ_ERR ||
	       type == IBV_EVENT_QP_ACCESS_ERR || type == IBV_EVENT_COMM_EST ||
	       type == IBV_EVENT_SQ_DRAINED || type == IBV_EVENT_PATH_MIG ||
	       type == IBV_EVENT_PATH_MIG_ERR || type == IBV_EVENT_QP_LAST_WQE_REACHED;
}

void fv_event_push(struct fv_ctx *ctx, const struct ibv_async_event *event)
{
	if (ctx->obj.dead || ctx->events_tail - ctx->events_head >= MAX_EVENTS)
		return;
	ctx->events[ctx->events_tail++ % MAX_EVENTS] = *event;
	fv_fd_add(ctx->verbs.context.async_fd);
}

void fv_events_purge(struct fv_ctx *ctx, const void *element)
{
	unsigned kept = ctx->events_head;

	for (unsigned i = ctx->events_head; i != ctx->events_tail; i++) {
		struct ibv_async_event *e = &ctx->events[i % MAX_EVENTS];
		bool has_element = event_is_qps(e->event_type) || e->event_type == IBV_EVENT_CQ_ERR;

		if (!has_element || (const void *)e->element.qp != element)
			ctx->events[kept++ % MAX_EVENTS] = *e;
		else
			fv_fd_take(ctx->verbs.context.async_fd);
	}
	ctx->events_tail = kept;
}

int ibv_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
	struct fv_ctx *ctx = fv_ctx_of(context);
	int err = fv_enter(FV_GET_ASYNC_EVENT);

	if (err == 0 && !fv_alive(&ctx->obj, FV_K_CTX, "get_async_event"))
		err = EINVAL;
	if (err == 0 && ctx->events_head == ctx->events_tail) {
		if ((fcntl(context->async_fd, F_GETFL) & O_NONBLOCK) == 0)
			fv_violate("get_async_event without an event would wait for ever");
		err = EAGAIN;
	}
	if (err != 0) {
		fv_leave(err);
		return -1;
	}
	*event = ctx->events[ctx->events_head++ % MAX_EVENTS];
	fv_fd_take(context->async_fd);
	if (event_is_qps(event->event_type))
		((struct fv_qp *)event->element.qp)->async_got++;
	else if (event->event_type == IBV_EVENT_CQ_ERR)
		((struct fv_cq *)event->element.cq)->async_got++;
	fv.count.unacked_events++;
	fv_unlock();
	return 0;
}

void ibv_ack_async_event(struct ibv_async_event *event)
{
	fv_lock();
	fv.count.unacked_events--;
	if (event_is_qps(event->event_type)) {
		struct fv_qp *qp = (struct fv_qp *)event->element.qp;

		if (fv_alive(&qp->obj, FV_K_QP, "ack_async_event"))
			qp->qp.events_completed++;
	} else if (event->event_type == IBV_EVENT_CQ_ERR) {
		struct fv_cq *cq = (struct fv_cq *)event->element.cq;

		if (fv_alive(&cq->obj, FV_K_CQ, "ack_async_event"))
			cq->cq.async_events_completed++;
	}
	fv_unlock();
}

static void raise_qp(struct ibv_qp *ibqp, enum ibv_event_type type)
{
	struct ibv_async_event event = {.element.qp = ibqp, .event_type = type};
	struct fv_qp *qp = (struct fv_qp *)ibqp;

	if (type == IBV_EVENT_QP_FATAL || type == IBV_EVENT_QP_ACCESS_ERR)
		fv_qp_fail(qp);
	fv_event_push(fv_ctx_of(ibqp->context), &event);
}

static void raise_cq(struct ibv_cq *ibcq)
{
	struct ibv_async_event event = {.element.cq = ibcq, .event_type = IBV_EVENT_CQ_ERR};

	((struct fv_cq *)ibcq)->broken = true;
	fv_event_push(fv_ctx_of(ibcq->context), &event);
}

void fake_verbs_raise_qp(struct ibv_qp *ibqp, enum ibv_event_type type)
{
	fv_lock();
	raise_qp(ibqp, type);
	fv_unlock();
}

void fake_verbs_raise_cq(struct ibv_cq *ibcq)
{
	fv_lock();
	raise_cq(ibcq);
	fv_unlock();
}

void fake_verbs_raise_some(uint64_t random, enum ibv_event_type type)
{
	enum fv_kind kind = type == IBV_EVENT_CQ_ERR ? FV_K_CQ : FV_K_QP;
	unsigned n, at;

	fv_lock();
	n = kind == FV_K_CQ ? fv.count.cqs : fv.count.qps;
	at = n == 0 ? 0 : (unsigned)(random % n);
	for (struct fv_object *obj = fv.objects; obj != NULL && n > 0; obj = obj->next) {
		if (obj->kind != kind || obj->dead || at-- > 0)
			continue;
		if (kind == FV_K_CQ)
			raise_cq((struct ibv_cq *)((uint8_t *)obj - offsetof(struct fv_cq, obj)));
		else
			raise_qp((struct ibv_qp *)((uint8_t *)obj - offsetof(struct fv_qp, obj)),
				 type);
		break;
	}
	fv_unlock();
}

/* Tells every context of a device. */
static void raise_all(struct fake_verbs_dev *dev, const struct ibv_async_event *event)
{
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
		struct fv_ctx *ctx = (struct fv_ctx *)obj;

		if (obj->kind == FV_K_CTX && !obj->dead && ctx->dev == dev)
			fv_event_push(ctx, event);
	}
}

void fake_verbs_raise_fatal(struct fake_verbs_dev *dev)
{
	struct ibv_async_event event = {.event_type = IBV_EVENT_DEVICE_FATAL};

	fv_lock();
	dev->fatal = true;
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
		struct fv_cq *cq = (struct fv_cq *)((uint8_t *)obj - offsetof(struct fv_cq, obj));

		if (obj->kind == FV_K_CQ && !obj->dead && fv_dev_of(cq->cq.context) == dev)
			cq->broken = dev->dies_silently;
	}
	for (struct fv_object *obj = fv.objects; obj != NULL; obj = obj->next) {
		struct fv_qp *qp = fv_qp_of(obj);

		if (obj->kind == FV_K_QP && !obj->dead && fv_dev_of(qp->qp.context) == dev)
			fv_qp_fail(qp);
	}
	raise_all(dev, &event);
	fv_unlock();
}

void fake_verbs_raise_port(struct fake_verbs_dev *dev, unsigned port, enum ibv_event_type type)
{
	struct ibv_async_event event = {.element.port_num = (int)port, .event_type = type};

	fv_lock();
	if (type == IBV_EVENT_PORT_ERR)
		dev->ports[port - 1].attr.state = IBV_PORT_DOWN;
	if (type == IBV_EVENT_PORT_ACTIVE)
		dev->ports[port - 1].attr.state = IBV_PORT_ACTIVE;
	raise_all(dev, &event);
	fv_unlock();
}
