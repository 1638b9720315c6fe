/* Which entry of a port's GID table peers are told. Pure functions, called when rails are looked
 * for and by kvxferctl doctor; asks no device and no library. */
#include "transport/verbs/verbs_gid.h"

#include <arpa/inet.h>
#include <errno.h>
#include <string.h>

static const uint8_t ipv4_mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};
static const uint8_t ipv6_loopback[16] = {[15] = 1};

#define MAX_INDEX 255u /* that a packet's path can name */

/* How far an address reaches: the rule's order. */
enum reach { REACH_NONE, REACH_NODE, REACH_IPV6, REACH_IPV4 };

static bool gid_is_empty(const struct verbs_gid *gid)
{
	static const uint8_t zero[16];

	return memcmp(gid->raw, zero, sizeof(zero)) == 0;
}

static enum reach gid_reach(const struct verbs_gid *gid)
{
	const uint8_t *raw = gid->raw;

	if (gid_is_empty(gid))
		return REACH_NONE;
	if (memcmp(raw, ipv4_mapped, sizeof(ipv4_mapped)) == 0) {
		const uint8_t *ipv4 = raw + sizeof(ipv4_mapped);

		if ((ipv4[0] == 169 && ipv4[1] == 254) || ipv4[0] == 0 || ipv4[0] >= 224)
			return REACH_NONE; /* link-local, this network, multicast and up */
		return ipv4[0] == 127 ? REACH_NODE : REACH_IPV4;
	}
	if (memcmp(raw, ipv6_loopback, sizeof(ipv6_loopback)) == 0)
		return REACH_NODE;
	if (raw[0] == 0xff || (raw[0] == 0xfe && (raw[1] & 0xc0) == 0x80))
		return REACH_NONE; /* multicast, link-local */
	return REACH_IPV6;
}

/* An entry whose interface is not seen here may belong to another network namespace: last choice.
 */
static bool gid_is_better(const struct verbs_gid *gid, const struct verbs_gid *than)
{
	bool here = gid->netdev[0] != '\0', there = than->netdev[0] != '\0';
	enum reach reach = gid_reach(gid), other = gid_reach(than);

	if (here != there)
		return here;
	return reach != other ? reach > other : gid->index < than->index;
}

char *verbs_gid_text(const uint8_t raw[16], char buf[VERBS_GID_TEXT_BYTES])
{
	if (inet_ntop(AF_INET6, raw, buf, VERBS_GID_TEXT_BYTES) == NULL)
		buf[0] = '\0';
	return buf;
}

static const struct verbs_gid *gid_find(const struct verbs_gid *gids, unsigned n, uint32_t index)
{
	for (unsigned i = 0; i < n; i++)
		if (gids[i].index == index && index <= MAX_INDEX && !gid_is_empty(&gids[i]))
			return &gids[i];
	return NULL;
}

/* Says what the table has instead of a usable entry, because the cure depends on it. */
static int why_none(const struct verbs_gid *gids, unsigned n, struct kvx_why *why)
{
	const struct verbs_gid *v2 = NULL, *v1 = NULL;

	for (unsigned i = 0; i < n; i++) {
		if (gid_is_empty(&gids[i]))
			continue;
		if (gids[i].kind == VERBS_GID_ROCE_V2 && v2 == NULL)
			v2 = &gids[i];
		if (gids[i].kind == VERBS_GID_ROCE_V1 && v1 == NULL)
			v1 = &gids[i];
	}
	if (v2 != NULL)
		return kvx_why(why, -EADDRNOTAVAIL,
			       "no RoCE v2 GID that other nodes reach, only link-local ones: give "
			       "%s an IPv4 or global IPv6 address, or set verbs.gid_index = %u",
			       v2->netdev[0] != '\0' ? v2->netdev : "its network interface",
			       v2->index);
	if (v1 != NULL)
		return kvx_why(why, -EADDRNOTAVAIL,
			       "its GIDs are RoCE v1 only: turn RoCE v2 on for the device, or set "
			       "verbs.gid_index = %u",
			       v1->index);
	return kvx_why(why, -EADDRNOTAVAIL,
		       "its GID table is empty: bring its network interface up and give it an "
		       "address");
}

int verbs_gid_choose(const struct verbs_gid *gids, unsigned n, bool infiniband, int forced,
		     const struct verbs_gid **out_gid, struct kvx_why *why)
{
	const struct verbs_gid *best = NULL;

	if (forced >= 0 || infiniband) {
		best = gid_find(gids, n, forced >= 0 ? (uint32_t)forced : 0);
		if (best == NULL && forced >= 0)
			return kvx_why(
			    why, -EADDRNOTAVAIL,
			    "its GID table has nothing at verbs.gid_index = %d: "
			    "`kvxferctl doctor` shows what there is; auto chooses by rule",
			    forced);
		if (best == NULL)
			return kvx_why(why, -EADDRNOTAVAIL,
				       "no GID at index 0: the port is not configured yet, is a "
				       "subnet manager running?");
		*out_gid = best;
		return 0;
	}
	for (unsigned i = 0; i < n; i++)
		if (gids[i].kind == VERBS_GID_ROCE_V2 && gid_reach(&gids[i]) != REACH_NONE &&
		    gids[i].index <= MAX_INDEX && (best == NULL || gid_is_better(&gids[i], best)))
			best = &gids[i];
	if (best == NULL)
		return why_none(gids, n, why);
	*out_gid = best;
	return 0;
}
