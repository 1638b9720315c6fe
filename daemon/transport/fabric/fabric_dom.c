/* Opening and closing a fabric domain: reading the provider's limits, making the queues and the one
 * fd that wakes a sleeping worker. Called by the worker that will own the domain. Owns the
 * libfabric objects that all endpoints share. Moves no bytes. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/log.h"
#include "mem/guard.h"
#include "transport/fabric/fabric_gpu.h"

#define FAB_CQ_ENTRIES 4096u

static void dom_read_limits(struct kvx_dom *dom, const struct kvx_dom_conf *conf)
{
	const struct fi_info *info = dom->info;
	uint64_t mode = info->domain_attr->mr_mode;
	uint64_t max_msg = info->ep_attr->max_msg_size;
	size_t iovs = info->tx_attr->iov_limit;
	size_t rma_iovs = info->tx_attr->rma_iov_limit;

	dom->connected_eps = info->ep_attr->type == FI_EP_MSG;
	dom->mr_local = (mode & FI_MR_LOCAL) != 0;
	dom->mr_virt = (mode & FI_MR_VIRT_ADDR) != 0;
	dom->mr_prov_key = (mode & FI_MR_PROV_KEY) != 0;
	dom->iov_limit = (unsigned)(iovs < FAB_IOV_MAX ? iovs : FAB_IOV_MAX);
	if (rma_iovs > iovs)
		rma_iovs = iovs;
	dom->rma_iov_limit = (unsigned)(rma_iovs < FAB_IOV_MAX ? rma_iovs : FAB_IOV_MAX);
	iovs = info->rx_attr->iov_limit;
	dom->rx_iov_limit = (unsigned)(iovs < FAB_IOV_MAX ? iovs : FAB_IOV_MAX);
	dom->inject_bytes = info->tx_attr->inject_size;
	/* The head that goes ahead is injected. */
	dom->placed_ops = (unsigned)((dom->inject_bytes - KVX_PACK_HDR_BYTES - KVX_PACK_KEY_BYTES) /
				     KVX_PACK_OP_BYTES);
	if (dom->placed_ops > dom->iov_limit)
		dom->placed_ops = dom->iov_limit;
	dom->placing = dom->connected_eps && !dom->rma && dom->rx_iov_limit > 0;
	dom->message_bytes = conf->fabric_message_bytes;
	if (dom->message_bytes > UINT32_MAX - KVX_PACK_HEAD_BYTES)
		dom->message_bytes = UINT32_MAX - KVX_PACK_HEAD_BYTES;
	if (dom->message_bytes > max_msg - KVX_PACK_HEAD_BYTES)
		dom->message_bytes = max_msg - KVX_PACK_HEAD_BYTES;
	dom->rma_min_bytes = conf->fabric_rma_min_bytes;
	dom->queue = conf->fabric_queue;
	if (dom->queue == 0)
		dom->queue = 1;
	if (dom->queue > FAB_MAX_QUEUE)
		dom->queue = FAB_MAX_QUEUE;
	dom->mem_kinds = conf->mem_kinds & (1u << KVX_MEM_HOST);
	dom->gpu_conf = conf->gpu;
}

static int dom_watch_fd(struct kvx_dom *dom, int fd)
{
	struct epoll_event ev = {.events = EPOLLIN};

	return epoll_ctl(dom->event_fd, EPOLL_CTL_ADD, fd, &ev) == 0 ? 0 : -errno;
}

static int dom_watch(struct kvx_dom *dom, struct fid *fid)
{
	int fd, rc;

	rc = fi_control(fid, FI_GETWAIT, &fd);
	return rc != 0 ? fabric_err(rc) : dom_watch_fd(dom, fd);
}

/* The queues, and what listening needs. On error dom_close_fids() undoes what is there. */
static int dom_open_fids(struct kvx_dom *dom, const char **out_what)
{
	struct fi_cq_attr cq_attr = {
	    .size = FAB_CQ_ENTRIES, .format = FI_CQ_FORMAT_MSG, .wait_obj = FI_WAIT_FD};
	struct fi_eq_attr eq_attr = {.wait_obj = FI_WAIT_FD};
	struct fi_av_attr av_attr = {.type = dom->info->domain_attr->av_type};
	int rc;

	*out_what = "fi_fabric";
	rc = fi_fabric(dom->info->fabric_attr, &dom->fabric, NULL);
	if (rc == 0) {
		*out_what = "fi_domain";
		rc = fi_domain(dom->fabric, dom->info, &dom->domain, NULL);
	}
	if (rc == 0) {
		*out_what = "fi_cq_open";
		rc = fi_cq_open(dom->domain, &cq_attr, &dom->cq, NULL);
	}
	if (rc == 0 && !dom->connected_eps) {
		*out_what = "fi_av_open";
		return fabric_err(fi_av_open(dom->domain, &av_attr, &dom->av, NULL));
	}
	if (rc == 0) {
		*out_what = "fi_eq_open";
		rc = fi_eq_open(dom->fabric, &eq_attr, &dom->eq, NULL);
	}
	if (rc == 0) {
		*out_what = "fi_passive_ep";
		rc = fi_passive_ep(dom->fabric, dom->info, &dom->pep, NULL);
	}
	if (rc == 0)
		rc = fi_pep_bind(dom->pep, &dom->eq->fid, 0);
	if (rc == 0) {
		*out_what = "fi_listen";
		rc = fi_listen(dom->pep);
	}
	return fabric_err(rc);
}

static void fid_close(struct fid *fid, const char *what)
{
	int rc = fi_close(fid);

	if (rc != 0)
		kvx_error("fabric: closing the %s failed: %s", what, fi_strerror(-rc));
}

static void dom_close_fids(struct kvx_dom *dom)
{
	if (dom->pep != NULL)
		fid_close(&dom->pep->fid, "passive endpoint");
	if (dom->eq != NULL)
		fid_close(&dom->eq->fid, "event queue");
	if (dom->av != NULL)
		fid_close(&dom->av->fid, "address vector");
	if (dom->cq != NULL)
		fid_close(&dom->cq->fid, "completion queue");
	if (dom->domain != NULL)
		fid_close(&dom->domain->fid, "domain");
	if (dom->fabric != NULL)
		fid_close(&dom->fabric->fid, "fabric");
}

static int dom_open_event_fd(struct kvx_dom *dom)
{
	int rc;

	dom->event_fd = epoll_create1(EPOLL_CLOEXEC);
	if (dom->event_fd < 0)
		return -errno;
	rc = dom_watch(dom, &dom->cq->fid);
	if (rc == 0 && dom->eq != NULL)
		rc = dom_watch(dom, &dom->eq->fid);
	if (rc < 0)
		return rc;
	/* For GPU memory; here, so that the domain has the same descriptors all its life. */
	dom->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (dom->timer_fd < 0)
		return -errno;
	rc = dom_watch_fd(dom, dom->timer_fd);
	return rc < 0 ? rc : dom_watch_fd(dom, dom->call_fd);
}

static void dom_fill_limits(const struct kvx_dom *dom, struct kvx_transport_limits *out_limits)
{
	*out_limits = (struct kvx_transport_limits){
	    .settle_ns = UINT64_MAX, /* the other side's buffers may hold it for as long */
	    .max_op_bytes = dom->message_bytes,
	    .batch_bytes = dom->message_bytes,
	    .batch_ops = KVX_PACK_MAX_OPS,
	    .queue_batches = dom->queue,
	    .event_fd = dom->event_fd,
	    .counters = &dom->counters,
	};
}

int fabric_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	struct kvx_dom *dom = calloc(1, sizeof(*dom));
	const char *what = "eventfd";
	int rc;

	if (dom == NULL)
		return kvx_why(why, -ENOMEM, "fabric: out of memory");
	dom->event_fd = -1;
	dom->timer_fd = -1;
	dom->done_tail = &dom->done_head;
	dom->news_tail = &dom->news_head;
	rc = kvx_guard_install();
	if (rc < 0) {
		(void)kvx_why(why, rc, "fabric: cannot handle SIGBUS: %s", strerror(-rc));
		goto err_free;
	}
	rc = fab_info_get(conf, &dom->info, &dom->rma, why);
	if (rc < 0)
		goto err_free;
	dom_read_limits(dom, conf);
	rc = kvx_idmap_create(FAB_MAX_MRS, &dom->mrs);
	if (rc < 0)
		goto err_info;
	rc = fab_calls_open(dom);
	if (rc == 0)
		rc = dom_open_fids(dom, &what);
	if (rc == 0) {
		what = "fi_control(FI_GETWAIT)";
		rc = dom_open_event_fd(dom);
	}
	if (rc < 0) {
		(void)kvx_why(why, rc, "fabric: %s of provider %s on %s failed: %s", what,
			      dom->info->fabric_attr->prov_name, conf->bind_host, strerror(-rc));
		goto err_fids;
	}
	kvx_info("fabric: provider %s endpoints %s address %s rma %s",
		 dom->info->fabric_attr->prov_name, dom->connected_eps ? "msg" : "rdm",
		 conf->bind_host, dom->rma ? "on" : "off");
	dom_fill_limits(dom, out_limits);
	*out_dom = dom;
	return 0;

err_fids:
	dom_close_fids(dom);
	if (dom->timer_fd >= 0)
		close(dom->timer_fd);
	if (dom->event_fd >= 0)
		close(dom->event_fd);
	fab_calls_close(dom);
	kvx_idmap_destroy(dom->mrs);
err_info:
	fi_freeinfo(dom->info);
err_free:
	free(dom);
	return rc;
}

void fabric_close(struct kvx_dom *dom)
{
	if (dom == NULL)
		return;
	for (unsigned i = 0; i < dom->n_eps; i++)
		kvx_assert(dom->eps[i] == NULL);
	kvx_assert(kvx_idmap_count(dom->mrs) == 0);
	if (dom->n_bad > 0)
		kvx_info("fabric: %llu requests or messages of peers were refused",
			 (unsigned long long)dom->n_bad);
	fab_gpu_close(dom->gpu);
	dom_close_fids(dom);
	close(dom->timer_fd);
	close(dom->event_fd);
	fab_calls_close(dom);
	kvx_idmap_destroy(dom->mrs);
	fi_freeinfo(dom->info);
	free(dom->eps);
	free(dom->gens);
	free(dom);
}
