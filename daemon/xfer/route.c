/* Route: see route.h. A pure choice among the tables that are handed in; knows no backend by name.
 * Called by xfer for each transfer and by the peer channel for each lane. */
#include "xfer/route.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static bool name_listed(const char *const *names, const char *name)
{
	for (; names != NULL && *names != NULL; names++) {
		if (strcmp(*names, name) == 0)
			return true;
	}
	return false;
}

static bool route_reaches(const struct kvx_route_in *in, const struct kvx_transport_ops *ops)
{
	if (in->same_node)
		return (ops->caps & KVX_CAP_SAME_NODE) != 0;
	return (ops->caps & KVX_CAP_CROSS_NODE) != 0 &&
	       name_listed(in->remote_transports, ops->name);
}

/* The names that would do, for the refusal; cut off silently when there are very many. */
static void route_list(const struct kvx_route_in *in, const struct kvx_transport_ops *const *usable,
		       char *out, size_t out_bytes)
{
	size_t at = 0;
	out[0] = '\0';
	for (; *usable != NULL; usable++) {
		if (!route_reaches(in, *usable))
			continue;
		int n =
		    snprintf(out + at, out_bytes - at, "%s%s", at > 0 ? ", " : "", (*usable)->name);
		if (n < 0 || (size_t)n >= out_bytes - at)
			return;
		at += (size_t)n;
	}
}

int kvx_route_choose(const struct kvx_route_in *in, const struct kvx_transport_ops *const *usable,
		     const struct kvx_transport_ops **out_ops, struct kvx_why *why)
{
	const char *require = in->require != NULL ? in->require : "";
	char names[128];
	for (const struct kvx_transport_ops *const *ops = usable; *ops != NULL; ops++) {
		if (!route_reaches(in, *ops) ||
		    (require[0] != '\0' && strcmp(require, (*ops)->name) != 0))
			continue;
		*out_ops = *ops;
		return 0;
	}
	route_list(in, usable, names, sizeof(names));
	const char *where = in->same_node ? "on this node" : "between the two nodes";
	if (names[0] == '\0')
		return kvx_why(why, -ENETUNREACH, "no transport in common %s", where);
	return kvx_why(why, -ENETUNREACH,
		       "transport \"%.32s\" is required, but not usable %s: usable is %s", require,
		       where, names);
}
