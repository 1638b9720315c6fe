/* Endpoints: making one and telling its address, connecting it to the other side's, fence, lease
 * and close. An ep is a leg of a lane: qps_per_lane queue pairs, each connected to one of the other
 * side, and a page of memory by which the other side makes its writes visible. Called on the
 * threads that verbs_priv.h names. Posts nothing: that every queue pair works is proven by the data
 * thread before EP_UP (verbs_progress.c). */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport/verbs/verbs_chain.h"
#include "transport/verbs/verbs_priv.h"

#define PAGE_BYTES 4096u

/* Takes a place in the table and in the completion queue. The order matters: n_eps is counted up
 * before cq_broken is read, so that the queue is not replaced under an ep that is being made. */
static int ep_reserve(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;
	uint32_t used;
	uint32_t i = 0;

	atomic_fetch_add(&dom->n_eps, 1);
	if (atomic_load(&dom->cq_broken)) {
		atomic_fetch_sub(&dom->n_eps, 1);
		verbs_dom_attention(dom); /* which may have waited for the count */
		return -EBUSY;
	}
	used = atomic_fetch_add(&dom->cq_used, dom->ep_entries);
	while (i < VERBS_MAX_EPS && atomic_load(&dom->slots[i]))
		i++;
	if (used + dom->ep_entries > dom->cq_entries || i == VERBS_MAX_EPS) {
		atomic_fetch_sub(&dom->cq_used, dom->ep_entries);
		atomic_fetch_sub(&dom->n_eps, 1);
		kvx_warn("verbs: %s has no room for another endpoint: %u completions of %u are "
			 "spoken for, each needs %u (raise verbs.cq_depth or lower verbs.sq_depth "
			 "or verbs.qps_per_lane)",
			 dom->name, used, dom->cq_entries, dom->ep_entries);
		return -EDQUOT;
	}
	atomic_store(&dom->slots[i], true); /* helpers for set-up: there is one */
	ep->index = (uint16_t)i;
	ep->generation = dom->generations[i];
	if (i >= atomic_load(&dom->eps_end))
		atomic_store(&dom->eps_end, i + 1);
	return 0;
}

static void ep_unreserve(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;

	atomic_store(&dom->slots[ep->index], false);
	atomic_fetch_sub(&dom->cq_used, dom->ep_entries);
	atomic_fetch_sub(&dom->n_eps, 1);
}

/* The rings of all queue pairs in one piece. */
static int ep_make_rings(struct kvx_ep *ep)
{
	uint32_t depth = ep->dom->conf.sq_depth;
	uint32_t n_ring = 1;
	struct verbs_chain *rings;

	while (n_ring < depth)
		n_ring *= 2;
	rings = calloc((size_t)n_ring * ep->n_qps, sizeof(*rings));
	if (rings == NULL)
		return -ENOMEM;
	for (uint32_t i = 0; i < ep->n_qps; i++)
		verbs_fifo_init(&ep->qps[i].fifo, rings + (size_t)i * n_ring, n_ring, depth);
	return 0;
}

/* Memory of its own page, so that the other side finds nothing but zeros beside it. */
static int ep_make_flush(struct kvx_ep *ep)
{
	ep->pd = verbs_dom_pd(ep->dom, ep->tenant);
	ep->flush_page = aligned_alloc(PAGE_BYTES, PAGE_BYTES);
	if (ep->pd == NULL || ep->flush_page == NULL)
		return -ENOMEM;
	memset(ep->flush_page, 0, PAGE_BYTES);
	errno = 0;
	ep->flush_mr = ibv_reg_mr(ep->pd, ep->flush_page, PAGE_BYTES,
				  IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ);
	return ep->flush_mr != NULL ? 0 : verbs_err(errno != 0 ? errno : ENOMEM);
}

/* Frees what the ep has but its queue pairs, which are gone. */
static int ep_free_flush(struct kvx_ep *ep)
{
	int err = ep->flush_mr != NULL ? verbs_err(ibv_dereg_mr(ep->flush_mr)) : 0;

	if (err < 0) {
		kvx_error("verbs: %s: the memory of an endpoint cannot be unregistered: %s",
			  ep->dom->name, strerror(-err));
		return err;
	}
	ep->flush_mr = NULL;
	return 0;
}

static void ep_free(struct kvx_ep *ep)
{
	/* What a device may still write to is not given back to the heap. */
	if (ep->flush_mr == NULL)
		free(ep->flush_page);
	free(ep->qps[0].fifo.ring);
	free(ep);
}

/* What the port is called right now: addresses may have changed since the start. */
static int ep_read_port(struct kvx_ep *ep, struct verbs_addr *out_addr)
{
	struct kvx_dom *dom = ep->dom;
	struct kvx_why why; /* the data thread says it */
	struct verbs_port port;
	int err = verbs_port_read(dom, &port, &why);

	if ((err == 0) != (atomic_load(&dom->port_now.waits) == NULL))
		atomic_store(&dom->port_doubt, true); /* verbs_listen() wakes the data thread */
	if (err < 0)
		return err;
	memcpy(ep->gid, port.gid, sizeof(ep->gid));
	ep->gid_index = port.gid_index;
	ep->mtu = port.mtu;
	memcpy(out_addr->gid, port.gid, sizeof(out_addr->gid));
	out_addr->lid = port.lid;
	out_addr->mtu = port.mtu;
	return 0;
}

static int ep_make(struct kvx_ep *ep, void *addr, size_t *addr_len)
{
	const struct kvx_dom *dom = ep->dom;
	struct verbs_addr mine = {
	    .ethernet = dom->ethernet,
	    .max_reads = (uint8_t)dom->max_dest_reads,
	    .n_qps = ep->n_qps,
	};
	int err = ep_read_port(ep, &mine); /* first: it may be down for long */

	if (err < 0)
		return err;
	verbs_loop_mend(ep->dom, ep->tenant);
	err = ep_make_rings(ep);
	if (err == 0)
		err = ep_make_flush(ep);
	for (uint32_t i = 0; i < ep->n_qps && err == 0; i++) {
		err = verbs_qp_create(ep, &ep->qps[i]);
		mine.qps[i] = (struct verbs_addr_qp){ep->qps[i].qpn, ep->qps[i].psn};
	}
	if (err < 0)
		return err;
	mine.flush_addr = (uintptr_t)ep->flush_page;
	mine.flush_rkey = ep->flush_mr->rkey;
	*addr_len = verbs_addr_encode(&mine, addr);
	return 0;
}

int verbs_listen(struct kvx_dom *dom, uint32_t tenant, struct kvx_ep **out_ep, void *addr,
		 size_t *addr_len)
{
	struct kvx_ep *ep;
	int err;

	if (*addr_len < KVX_TRANSPORT_ADDR_MAX || tenant >= KVX_MAX_TENANTS)
		return -EINVAL;
	ep = calloc(1, sizeof(*ep));
	if (ep == NULL)
		return -ENOMEM;
	ep->dom = dom;
	ep->tenant = tenant;
	ep->n_qps = dom->conf.qps_per_lane;
	ep->lease_ns = UINT64_MAX;
	ep->prove_ns = UINT64_MAX;
	err = ep_reserve(ep);
	if (err < 0) {
		free(ep);
		return err;
	}
	err = ep_make(ep, addr, addr_len);
	if (err == 0) {
		/* From here on the data thread sees it; perhaps the device failed meanwhile. */
		atomic_store_explicit(&dom->eps[ep->index], ep, memory_order_release);
		verbs_dom_attention(dom);
		*out_ep = ep;
		return 0;
	}
	if (err == -ENETDOWN || err == -EHOSTUNREACH) /* the data thread has said it, or will */
		kvx_debug("verbs: %s: no endpoint: the port is down or has no address", dom->name);
	else
		kvx_warn("verbs: %s: no endpoint could be made: %s", dom->name, strerror(-err));
	verbs_ep_cut(ep);
	if (verbs_ep_wait_gone(ep) == 0 && ep_free_flush(ep) == 0) {
		ep_unreserve(ep);
		ep_free(ep);
	} else { /* its place and its memory stay taken: the device may still use them */
		atomic_fetch_sub(&dom->n_eps, 1);
	}
	verbs_dom_attention(dom);
	return err;
}

static int ep_check_remote(const struct kvx_ep *ep, const struct verbs_addr *remote)
{
	const struct kvx_dom *dom = ep->dom;

	if (remote->ethernet != dom->ethernet) {
		kvx_warn("verbs: %s is %s, the other side's port is not: they cannot reach each "
			 "other (see verbs.devices)",
			 dom->name, dom->ethernet ? "Ethernet" : "InfiniBand");
		return -EOPNOTSUPP;
	}
	if (remote->max_reads == 0) {
		kvx_warn("verbs: %s: the other side's device serves no RDMA reads", dom->name);
		return -EOPNOTSUPP;
	}
	return 0;
}

static int ep_connect_qps(struct kvx_ep *ep, const struct verbs_addr *remote)
{
	for (uint32_t i = 0; i < ep->n_used; i++) {
		int err = verbs_qp_connect(ep, &ep->qps[i], remote, &remote->qps[i]);

		if (err < 0) {
			kvx_warn("verbs: %s: queue pair %u cannot be connected: %s "
				 "(is there a way to the other side's address?)",
				 ep->dom->name, ep->qps[i].qpn, strerror(-err));
			return err;
		}
		if (verbs_ep_is_cut(ep))
			return -ECANCELED;
	}
	return 0;
}

int verbs_connect(struct kvx_ep *ep, const void *addr, size_t addr_len)
{
	struct verbs_addr remote;
	int err = verbs_addr_decode(addr, addr_len, &remote);

	if (err < 0 || atomic_load(&ep->connected))
		return err < 0 ? err : -EALREADY;
	/* Its EP_DOWN may have found nobody who knew it yet. */
	err = atomic_load_explicit(&ep->dead, memory_order_acquire);
	if (err == 0)
		err = ep_check_remote(ep, &remote);
	if (err < 0)
		return err;
	ep->n_used = remote.n_qps < ep->n_qps ? remote.n_qps : ep->n_qps;
	ep->remote_flush_addr = remote.flush_addr;
	ep->remote_flush_rkey = remote.flush_rkey;
	if (!verbs_ep_enter(ep))
		return -ECANCELED;
	err = ep_connect_qps(ep, &remote);
	verbs_ep_leave(ep);
	if (err < 0)
		return err;
	atomic_store_explicit(&ep->connected, true, memory_order_release);
	verbs_dom_attention(ep->dom);
	return 0;
}

int verbs_fence(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;
	int err;

	if (atomic_load_explicit(&ep->fenced, memory_order_acquire))
		return 0;
	atomic_store_explicit(&ep->stop, VERBS_STOP_FENCE, memory_order_release);
	verbs_ep_cut(ep);
	err = verbs_ep_wait_gone(ep);
	if (err < 0)
		return err;
	/* It holds nothing of a client: that it stays registered would not weaken the fence. */
	(void)ep_free_flush(ep);
	atomic_store_explicit(&ep->fenced, true, memory_order_release);
	verbs_dom_attention(dom);
	return 0;
}

void verbs_lease(struct kvx_ep *ep, uint64_t deadline_ns)
{
	struct kvx_dom *dom = ep->dom;
	uint32_t none = VERBS_STOP_NONE;

	if (deadline_ns != 0) { /* data thread */
		ep->lease_ns = deadline_ns;
		if (deadline_ns < dom->next_due_ns)
			dom->next_due_ns = deadline_ns;
		return;
	}
	/* A reliable connection has no one-way stop. */
	(void)atomic_compare_exchange_strong(&ep->stop, &none, VERBS_STOP_LEASE);
	verbs_ep_cut(ep);
	(void)verbs_ep_wait_gone(ep); /* what failed was logged; fence() tries again and says so */
	verbs_dom_attention(dom);
}

/* Completions of it may still be in the queue: its share of the queue is given back when that was
 * seen empty. */
void verbs_ep_close(struct kvx_ep *ep)
{
	struct kvx_dom *dom = ep->dom;

	atomic_store_explicit(&dom->eps[ep->index], NULL, memory_order_release);
	if (verbs_fence(ep) < 0) {
		kvx_error("verbs: %s: an endpoint could not be fenced; its memory stays taken",
			  dom->name);
		atomic_fetch_sub(&dom->n_eps, 1);
		return;
	}
	dom->generations[ep->index]++;
	dom->cq_closing += dom->ep_entries;
	atomic_store(&dom->slots[ep->index], false);
	atomic_fetch_sub(&dom->n_eps, 1);
	ep_free(ep);
}
