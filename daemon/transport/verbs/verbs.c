/* The verbs backend: node to node over RDMA devices (InfiniBand, RoCE; not iWARP, whose connections
 * can be made by librdmacm only). This file is its table and the data path's part of opening a
 * domain. See verbs_priv.h for the objects, the files and who runs what on which thread.
 *
 * Connections are made through the peer channel, not through librdmacm: that channel has
 * authenticated the other side, ties the queue pairs to a lane's generation, and needs no second
 * port; and a lane's queue pairs are made in one round trip, whatever their number. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "mem/guard.h"
#include "transport/verbs/verbs_priv.h"

int verbs_path_init(struct kvx_dom *dom, struct kvx_why *why)
{
	int err = kvx_guard_install();

	if (err < 0)
		return kvx_why(why, err, "verbs: cannot handle SIGBUS: %s", strerror(-err));
	err = verbs_qp_try(dom, why);
	if (err < 0)
		return err;
	dom->next_due_ns = dom->look_ns != 0 ? dom->look_ns : UINT64_MAX;
	dom->timer_ns = UINT64_MAX;
	dom->stash = calloc(VERBS_STASH, sizeof(*dom->stash));
	err = dom->stash != NULL ? verbs_build_init(&dom->build, &dom->limits) : -ENOMEM;
	if (err < 0) {
		free(dom->stash);
		dom->stash = NULL;
		return kvx_why(why, err, "verbs: no memory for the work requests of %s", dom->name);
	}
	return 0;
}

void verbs_path_fini(struct kvx_dom *dom)
{
	verbs_build_fini(&dom->build);
	free(dom->stash);
	dom->stash = NULL;
}

const struct kvx_transport_ops kvx_verbs_ops = {
    .name = "verbs",
    .caps = KVX_CAP_CROSS_NODE | KVX_CAP_CONNECT | KVX_CAP_EVENT_FD | KVX_CAP_BLOCKING_CONTROL |
	    KVX_CAP_DMABUF,
    .probe = verbs_probe,
    .open = verbs_open,
    .close = verbs_close,
    .listen = verbs_listen,
    .connect = verbs_connect,
    .ep_close = verbs_ep_close,
    .mem_reg = verbs_mem_reg,
    .mem_dereg = verbs_mem_dereg,
    .mkey_pack = verbs_mkey_pack,
    .rkey_unpack = verbs_rkey_unpack,
    .rkey_free = verbs_rkey_free,
    .post = verbs_post,
    .progress = verbs_progress,
    .arm = verbs_arm,
    .fence = verbs_fence,
    .lease = verbs_lease,
};
