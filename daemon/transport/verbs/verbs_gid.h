/* The rule that picks the address (GID) by which a port is reached. Pure: the table is handed in,
 * by the backend from the device, by kvxferctl doctor from sysfs. Any thread. */
#ifndef KVX_VERBS_GID_H
#define KVX_VERBS_GID_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/kvx_err.h"

#define VERBS_GID_TEXT_BYTES 46 /* as inet_ntop(3) writes it */

enum verbs_gid_kind { VERBS_GID_IB, VERBS_GID_ROCE_V1, VERBS_GID_ROCE_V2 };

/* One entry of a port's table. */
struct verbs_gid {
	uint8_t raw[16];
	uint32_t index;
	enum verbs_gid_kind kind;
	char netdev[16]; /* RoCE: its network interface; "" when unknown */
};

/* Forced (>= 0): the entry with that index, if it is not empty. InfiniBand: index 0. RoCE: of the
 * RoCE v2 entries one with an IPv4 address, then one with a global IPv6 address, then one that
 * reaches only this node (127.0.0.1, ::1); of equal ones that with the lowest index. Never a
 * link-local one, which names no place outside of its segment; one whose interface is not known
 * only when there is no other. 0, or -EADDRNOTAVAIL with the reason and what to do. */
int verbs_gid_choose(const struct verbs_gid *gids, unsigned n, bool infiniband, int forced,
		     const struct verbs_gid **out_gid, struct kvx_why *why);
char *verbs_gid_text(const uint8_t raw[16], char buf[VERBS_GID_TEXT_BYTES]); /* buf */

#endif
