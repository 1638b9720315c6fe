/* Route: which transport a (local memory kind, target) pair uses. Pure. */
#ifndef KVX_ROUTE_H
#define KVX_ROUTE_H

#include <stdbool.h>

#include "transport/transport.h"

struct kvx_route_in {
	bool same_node;
	const char *const *remote_transports; /* what the peer offers, best first, NULL-terminated;
						 unused when same_node */
	const char *require;                  /* "" or the only one allowed */
};
/* The best transport of `usable` (NULL-terminated, best first) for the pair. 0, or -ENETUNREACH
 * with the reason. */
int kvx_route_choose(const struct kvx_route_in *in, const struct kvx_transport_ops *const *usable,
		     const struct kvx_transport_ops **out_ops, struct kvx_why *why);

#endif
