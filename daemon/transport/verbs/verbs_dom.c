/* Opens a rail as a domain and closes it: the device, its completion queue, the protection domain
 * of each tenant, and the one fd that wakes a sleeping worker. Worker thread, but for
 * verbs_dom_pd(). Moves no bytes: what the queue pairs do is begun by verbs_path_init(). */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define BATCH_OPS        128u /* what a worker's batch holds */
#define MIN_BATCH_BYTES  (1u << 20)
#define MAX_BATCHES      32u /* in flight per ep: more only lengthen the queues */
#define WORDS_BYTES      4096
#define COMMON_MSG_BYTES (1u << 30)

bool verbs_device_is_gone(struct ibv_context *context)
{
	struct ibv_device_attr attr;
	int rc = ibv_query_device(context, &attr);

	/* Some providers return -1 and set errno. */
	return rc == EIO || rc == ENODEV || (rc == -1 && (errno == EIO || errno == ENODEV));
}

uint32_t verbs_mtu_bytes(enum ibv_mtu mtu)
{
	return mtu >= IBV_MTU_256 && mtu <= IBV_MTU_4096 ? 128u << mtu : 0;
}

static int fd_unblock(int fd)
{
	int flags = fcntl(fd, F_GETFL);

	return flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ? -errno : 0;
}

static int fd_watch(const struct kvx_dom *dom, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	return epoll_ctl(dom->event_fd, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

/* On error dom_close_fds() undoes what is there. */
static int dom_open_fds(struct kvx_dom *dom)
{
	int rc;

	dom->event_fd = epoll_create1(EPOLL_CLOEXEC);
	dom->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	dom->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (dom->event_fd < 0 || dom->timer_fd < 0 || dom->wake_fd < 0)
		return -errno;
	rc = fd_unblock(dom->context->async_fd);
	if (rc == 0)
		rc = fd_unblock(dom->channel->fd);
	if (rc == 0)
		rc = fd_watch(dom, dom->channel->fd);
	if (rc == 0)
		rc = fd_watch(dom, dom->context->async_fd);
	if (rc == 0)
		rc = fd_watch(dom, dom->timer_fd);
	if (rc == 0)
		rc = fd_watch(dom, dom->wake_fd);
	return rc;
}

static void dom_close_fds(struct kvx_dom *dom)
{
	if (dom->event_fd >= 0)
		close(dom->event_fd);
	if (dom->timer_fd >= 0)
		close(dom->timer_fd);
	if (dom->wake_fd >= 0)
		close(dom->wake_fd);
}

static int context_open(struct kvx_dom *dom, const char *device, struct kvx_why *why)
{
	char words[WORDS_BYTES]; /* probe has said them */
	struct ibv_device **list;
	int n = 0, error = 0;

	list = verbs_list(&n, words, sizeof(words));
	for (int i = 0; list != NULL && i < n && dom->context == NULL; i++) {
		if (strcmp(ibv_get_device_name(list[i]), device) != 0)
			continue;
		errno = 0;
		dom->context = ibv_open_device(list[i]);
		error = errno != 0 ? errno : EIO;
	}
	if (list != NULL)
		ibv_free_device_list(list);
	if (dom->context != NULL)
		return 0;
	if (error == 0)
		return kvx_why(why, -ENODEV, "%s: the device is gone", dom->name);
	return kvx_why(why, verbs_err(error),
		       "%s: ibv_open_device: %s; `kvxferctl doctor` says more", dom->name,
		       strerror(error));
}

static int context_ask(struct kvx_dom *dom, const struct kvx_dom_conf *conf, struct kvx_why *why)
{
	struct ibv_port_attr port;
	int rc = ibv_query_device(dom->context, &dom->device);

	if (rc != 0)
		return kvx_why(why, verbs_err(rc), "%s: ibv_query_device: %s", dom->name,
			       strerror(rc));
	rc = ibv_query_port(dom->context, dom->port, &port);
	if (rc != 0)
		return kvx_why(why, verbs_err(rc), "%s: ibv_query_port: %s", dom->name,
			       strerror(rc));
	dom->ethernet = port.link_layer == IBV_LINK_LAYER_ETHERNET;
	/* 0: the driver does not say while the port is down. */
	dom->max_msg_bytes = port.max_msg_sz != 0 ? port.max_msg_sz : COMMON_MSG_BYTES;
	dom->max_mr_bytes = dom->device.max_mr_size != 0 ? dom->device.max_mr_size : UINT64_MAX;
	return verbs_conf_fit(dom, &conf->verbs, why);
}

int verbs_cq_create(struct kvx_dom *dom)
{
	errno = 0;
	dom->cq = ibv_create_cq(dom->context, (int)dom->cq_entries, NULL, dom->channel, 0);
	if (dom->cq == NULL)
		return verbs_err(errno != 0 ? errno : ENOMEM);
	dom->cq_entries = (uint32_t)dom->cq->cqe; /* at least what was asked for */
	return 0;
}

int verbs_cq_destroy(struct kvx_dom *dom)
{
	int rc = dom->cq != NULL ? ibv_destroy_cq(dom->cq) : 0;

	if (rc != 0)
		return verbs_err(rc);
	dom->cq = NULL;
	return 0;
}

struct ibv_pd *verbs_dom_pd(struct kvx_dom *dom, uint32_t tenant)
{
	struct ibv_pd *pd, *other = NULL;

	kvx_assert(tenant < KVX_MAX_TENANTS);
	pd = atomic_load_explicit(&dom->pds[tenant], memory_order_acquire);
	if (pd != NULL)
		return pd;
	pd = ibv_alloc_pd(dom->context);
	if (pd == NULL)
		return NULL;
	if (atomic_compare_exchange_strong_explicit(&dom->pds[tenant], &other, pd,
						    memory_order_acq_rel, memory_order_acquire))
		return pd;
	(void)ibv_dealloc_pd(pd); /* another helper was first */
	return other;
}

static void dom_free(struct kvx_dom *dom)
{
	int rc;

	dom_close_fds(dom);
	for (unsigned i = 0; i < KVX_MAX_TENANTS; i++) {
		struct ibv_pd *pd = atomic_load_explicit(&dom->pds[i], memory_order_acquire);

		rc = pd != NULL ? ibv_dealloc_pd(pd) : 0;
		if (rc != 0)
			kvx_error("verbs: %s: ibv_dealloc_pd: %s", dom->name, strerror(rc));
	}
	rc = verbs_cq_destroy(dom);
	if (rc != 0)
		kvx_error("verbs: %s: ibv_destroy_cq: %s", dom->name, strerror(-rc));
	rc = dom->channel != NULL ? ibv_destroy_comp_channel(dom->channel) : 0;
	if (rc != 0)
		kvx_error("verbs: %s: ibv_destroy_comp_channel: %s", dom->name, strerror(rc));
	rc = dom->context != NULL ? ibv_close_device(dom->context) : 0;
	if (rc != 0)
		kvx_error("verbs: %s: ibv_close_device: %s", dom->name, strerror(errno));
	dom->magic = 0;
	free(dom);
}

static void fill_limits(struct kvx_dom *dom, struct kvx_transport_limits *out_limits)
{
	const struct kvx_verbs_conf *conf = &dom->conf;
	uint64_t batch_bytes = conf->stripe_bytes * conf->qps_per_lane;
	uint32_t batches = dom->ep_entries / BATCH_OPS;

	if (batches < 2)
		batches = 2; /* one that moves, one that waits */
	*out_limits = (struct kvx_transport_limits){
	    .max_op_bytes = dom->limits.max_op_bytes,
	    .batch_bytes = batch_bytes > MIN_BATCH_BYTES ? batch_bytes : MIN_BATCH_BYTES,
	    .batch_ops = BATCH_OPS,
	    .queue_batches = batches < MAX_BATCHES ? batches : MAX_BATCHES,
	    .event_fd = dom->event_fd,
	    .settle_ns = conf->settle_ms * 1000000ull,
	    .counters = &dom->counters,
	    .port = &dom->port_now,
	};
}

/* The first rail that can be used, for callers that have not looked. */
static int rail_default(const struct kvx_dom_conf *conf, struct kvx_rail *out_rail,
			struct kvx_why *why)
{
	struct kvx_rail rails[KVX_MAX_RAILS];
	int n = verbs_probe(conf, rails, KVX_MAX_RAILS, why);

	if (n < 0)
		return n;
	if (n == 0 || !rails[0].usable)
		return kvx_why(why, -ENODEV, "no usable RDMA port: %s",
			       n > 0 ? rails[0].reason : "none was found");
	*out_rail = rails[0];
	return 0;
}

/* On error dom_free() undoes what is there. */
static int dom_open(struct kvx_dom *dom, const struct kvx_dom_conf *conf,
		    const struct kvx_rail *rail, struct kvx_why *why)
{
	int rc = context_open(dom, rail->device, why);

	if (rc == 0)
		rc = context_ask(dom, conf, why);
	if (rc < 0)
		return rc;
	dom->channel = ibv_create_comp_channel(dom->context);
	if (dom->channel == NULL)
		return kvx_why(why, verbs_err(errno), "%s: ibv_create_comp_channel: %s", dom->name,
			       strerror(errno));
	rc = verbs_cq_create(dom);
	if (rc < 0)
		return kvx_why(why, rc,
			       "%s: a completion queue of %u entries cannot be made: %s; lower "
			       "verbs.cq_depth or raise LimitMEMLOCK",
			       dom->name, dom->cq_entries, strerror(-rc));
	rc = dom_open_fds(dom);
	if (rc < 0)
		return kvx_why(why, rc, "%s: its event fds cannot be made: %s", dom->name,
			       strerror(-rc));
	return verbs_path_init(dom, why);
}

int verbs_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
	       struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	const struct kvx_rail *rail = conf->rail;
	struct kvx_rail found;
	struct kvx_dom *dom;
	int rc;

	if (rail == NULL) {
		rc = rail_default(conf, &found, why);
		if (rc < 0)
			return rc;
		rail = &found;
	}
	if (!rail->usable)
		return kvx_why(why, -ENODEV, "%s: %s", rail->name, rail->reason);
	dom = calloc(1, sizeof(*dom));
	if (dom == NULL)
		return kvx_why(why, -ENOMEM, "verbs: out of memory");
	dom->magic = VERBS_DOM_MAGIC;
	dom->event_fd = dom->timer_fd = dom->wake_fd = -1;
	memcpy(dom->name, rail->name, sizeof(dom->name));
	dom->port = (uint8_t)rail->port;
	memcpy(dom->netdev, rail->netdev, sizeof(dom->netdev));
	atomic_init(&dom->port_now.waits, "it has not been looked at yet");
	dom->mem_kinds = conf->mem_kinds;
	rc = dom_open(dom, conf, rail, why);
	if (rc < 0) {
		dom_free(dom);
		return rc;
	}
	kvx_info("verbs: %s open, queue pairs %u depth %u completions %u", dom->name,
		 dom->conf.qps_per_lane, dom->conf.sq_depth, dom->cq_entries);
	(void)verbs_port_look(dom);
	fill_limits(dom, out_limits);
	*out_dom = dom;
	return 0;
}

void verbs_close(struct kvx_dom *dom)
{
	if (dom == NULL)
		return;
	KVX_CHECK_MAGIC(dom, VERBS_DOM_MAGIC);
	kvx_assert(atomic_load(&dom->n_eps) == 0);
	kvx_assert(dom->flushes == NULL); /* no region is registered */
	verbs_loops_close(dom);
	verbs_path_fini(dom);
	dom_free(dom);
}
