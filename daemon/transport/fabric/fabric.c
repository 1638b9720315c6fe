/* The fabric backend: node to node over libfabric (tcp everywhere, other providers where they
 * are). This file is its table and the two calls that only choose between packed messages and RMA.
 * Owned by one worker thread per domain; its helpers' calls come by fabric_call.c.
 *
 * Small ops are packed into messages and scattered by the receiving daemon's worker; large ones are
 * announced by a message and received straight into their place (fabric_place.c), or go by RMA
 * where fabric_rma_min_bytes says so. Except for RMA the receiver checks each op against its own
 * memory table. See fabric_priv.h for the objects and pack.h for the messages. */
#include "transport/fabric/fabric_priv.h"

#include <errno.h>

static int fabric_post(struct kvx_ep *ep, const struct kvx_op *ops, unsigned n)
{
	unsigned taken = 0;
	int rc = 0;

	if (ep->state != FAB_EP_UP)
		return ep->state == FAB_EP_DOWN ? ep->down_status : -EHOSTDOWN;
	while (taken < n) {
		if (fab_rma_wants(ep, &ops[taken]))
			rc = fab_rma_post(ep, ops + taken, n - taken);
		else
			rc = fab_msg_post(ep, ops + taken, n - taken);
		if (rc <= 0)
			break;
		taken += (unsigned)rc;
	}
	return taken > 0 || rc == 0 ? (int)taken : rc;
}

const struct kvx_transport_ops kvx_fabric_ops = {
    .name = "fabric",
    .caps = KVX_CAP_CROSS_NODE | KVX_CAP_CONNECT | KVX_CAP_EVENT_FD | KVX_CAP_ANY_MEMORY |
	    KVX_CAP_BLOCKING_CONTROL,
    .probe = fabric_probe,
    .open = fabric_open,
    .close = fabric_close,
    .listen = fabric_listen,
    .connect = fabric_connect,
    .ep_close = fabric_ep_close,
    .mem_reg = fabric_mem_reg,
    .mem_dereg = fabric_mem_dereg,
    .mkey_pack = fabric_mkey_pack,
    .rkey_unpack = fabric_rkey_unpack,
    .rkey_free = fabric_rkey_free,
    .post = fabric_post,
    .progress = fabric_progress,
    .arm = fabric_arm,
    .fence = fabric_fence,
    .lease = fabric_lease,
};
