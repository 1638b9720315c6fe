/* What a device says of itself, out of the order of completions: queue pairs and completion queues
 * that failed, ports that went down or came back, a device that is gone. Data thread, from
 * progress(). An event is acknowledged as soon as it is read: destroying a queue pair waits for
 * that. */
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define MEND_RETRY_NS KVX_SEC

void verbs_dom_lost(struct kvx_dom *dom, const char *text)
{
	if (dom->lost)
		return;
	kvx_error("verbs: %s: %s", dom->name, text);
	dom->lost = true;
	dom->lost_text = text;
	dom->scan_due = true;
	atomic_store(&dom->cq_broken, true); /* and so no more eps */
	/* Whatever they say from now on, it is no reason to wake up. */
	(void)epoll_ctl(dom->event_fd, EPOLL_CTL_DEL, dom->context->async_fd, NULL);
	(void)epoll_ctl(dom->event_fd, EPOLL_CTL_DEL, dom->channel->fd, NULL);
	verbs_dom_break_eps(dom, -ENODEV, 0, text);
	verbs_park_break(dom, NULL, text);
}

void verbs_cq_break(struct kvx_dom *dom, const char *text)
{
	if (atomic_load(&dom->cq_broken))
		return;
	kvx_error("verbs: %s: %s; its endpoints are made anew", dom->name, text);
	atomic_store(&dom->cq_broken, true);
	dom->scan_due = true;
	verbs_dom_break_eps(dom, -EIO, 0, text);
}

/* listen() counts n_eps up before it reads cq_broken: once the count is seen at 0 here, nobody uses
 * the queue until cq_broken is taken back. */
bool verbs_cq_can_mend(const struct kvx_dom *dom)
{
	return atomic_load_explicit(&dom->cq_broken, memory_order_relaxed) && !dom->lost &&
	       atomic_load(&dom->n_eps) == 0 && (dom->mend_ns == 0 || kvx_now_ns() >= dom->mend_ns);
}

/* Memory may come back, a device does not. */
static void cq_mend_failed(struct kvx_dom *dom, int err)
{
	if (err != -ENOMEM && err != -EAGAIN && err != -EBUSY) {
		verbs_dom_lost(dom, "its completion queue was lost and cannot be made anew");
		return;
	}
	kvx_warn("verbs: %s: no new completion queue: %s; trying again", dom->name, strerror(-err));
	dom->mend_ns = kvx_now_ns() + MEND_RETRY_NS;
	if (dom->mend_ns < dom->next_due_ns)
		dom->next_due_ns = dom->mend_ns;
}

void verbs_cq_mend(struct kvx_dom *dom)
{
	int err;

	if (!verbs_cq_can_mend(dom))
		return;
	err = verbs_cq_destroy(dom);
	if (err == 0)
		err = verbs_cq_create(dom);
	if (err < 0) {
		cq_mend_failed(dom, err);
		return;
	}
	kvx_info("verbs: %s: a new completion queue", dom->name);
	dom->mend_ns = 0;
	dom->n_stash = 0;
	atomic_fetch_sub(&dom->cq_used, dom->cq_closing);
	dom->cq_closing = 0;
	atomic_store(&dom->cq_broken, false);
	dom->port_up_due = true;
	dom->scan_due = true;
}

static void on_qp_event(struct kvx_dom *dom, const struct ibv_async_event *event)
{
	uint64_t context = (uint64_t)(uintptr_t)event->element.qp->qp_context;
	struct kvx_ep *ep = verbs_ep_find(dom, context);
	const char *text = "the device reports a failed queue pair";

	if (event->event_type == IBV_EVENT_QP_ACCESS_ERR)
		text = "the other side tried to reach memory that it may not";
	else if (event->event_type == IBV_EVENT_QP_REQ_ERR)
		text = "the other side sent an invalid request";
	if (ep != NULL)
		verbs_ep_break(ep, -EIO, (int)event->event_type, text);
}

/* It may be up again by now: then its PORT_ACTIVE comes after this. */
static void on_port_down(struct kvx_dom *dom)
{
	static const char text[] = "the port of this node's RDMA device went down";

	(void)verbs_port_look(dom);
	verbs_dom_break_eps(dom, -EHOSTUNREACH, IBV_EVENT_PORT_ERR, text);
	verbs_park_break(dom, NULL, text); /* it may come back with another address */
}

void verbs_port_check(struct kvx_dom *dom)
{
	if (dom->lost || !verbs_port_look(dom))
		return;
	dom->port_up_due = true;
	dom->scan_due = true;
}

static void on_event(struct kvx_dom *dom, const struct ibv_async_event *event)
{
	bool my_port = event->element.port_num == dom->port; /* of port events */

	switch (event->event_type) {
	case IBV_EVENT_QP_FATAL:
	case IBV_EVENT_QP_REQ_ERR:
	case IBV_EVENT_QP_ACCESS_ERR:
	case IBV_EVENT_PATH_MIG_ERR:
		on_qp_event(dom, event);
		break;
	case IBV_EVENT_CQ_ERR:
		if (event->element.cq == dom->cq)
			verbs_cq_break(dom, "the completion queue overran");
		else
			verbs_park_break(dom, event->element.cq,
					 "a loopback's completion queue overran");
		break;
	case IBV_EVENT_DEVICE_FATAL:
		verbs_dom_lost(dom, "the device reports a fatal error (see the kernel's log)");
		break;
	case IBV_EVENT_PORT_ERR:
		if (my_port)
			on_port_down(dom);
		break;
	case IBV_EVENT_PORT_ACTIVE:
	case IBV_EVENT_GID_CHANGE: /* its address may come after the port */
	case IBV_EVENT_PKEY_CHANGE:
		if (my_port) {
			atomic_fetch_add(&dom->port_news, 1);
			verbs_port_check(dom);
		}
		break;
	default: /* nothing that an endpoint would not notice by itself */
		break;
	}
}

void verbs_async_read(struct kvx_dom *dom)
{
	struct ibv_async_event event;

	errno = 0;
	while (!dom->lost && ibv_get_async_event(dom->context, &event) == 0) {
		kvx_counter_add(&dom->counters.async_events, 1);
		kvx_debug("verbs: %s: async event %d", dom->name, (int)event.event_type);
		on_event(dom, &event);
		ibv_ack_async_event(&event);
		errno = 0;
	}
	if (!dom->lost && errno != EAGAIN && errno != EINTR)
		verbs_dom_lost(dom, "the device is gone: its events cannot be read");
}
