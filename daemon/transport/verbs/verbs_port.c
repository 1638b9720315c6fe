/* A port as it is right now: whether it is up, and by which address (GID) it is reached. The
 * kernel's table changes with the addresses of the network interface and when its link goes down
 * and up again, and an entry may come back under another index: so it is looked at for every
 * endpoint [setup], and when the device says that something has changed [data]. A port that is down
 * or has no address is no error: it is waited for. */
#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_priv.h"
#include "transport/verbs/verbs_rail.h"
#include "transport/verbs/verbs_sysfs.h"

#define LOOK_RETRY_NS KVX_SEC

/* What fits into one attribute of a call to the kernel, whose length has 16 bits. */
#define MAX_GID_ENTRIES (UINT16_MAX / sizeof(struct ibv_gid_entry))

int verbs_read_gids(struct ibv_context *context, uint32_t port, const struct ibv_port_attr *attr,
		    struct verbs_gid *out_gids, unsigned max)
{
	/* The library gives the entries of all ports, those in use only. */
	size_t room = (size_t)(attr->gid_tbl_len > 0 ? attr->gid_tbl_len : 1) * VERBS_MAX_PORTS;
	struct ibv_gid_entry *entries;
	unsigned n = 0;
	ssize_t found;

	if (room > MAX_GID_ENTRIES)
		room = MAX_GID_ENTRIES;
	entries = calloc(room, sizeof(*entries));
	if (entries == NULL)
		return -ENOMEM;
	found = ibv_query_gid_table(context, entries, room, 0);
	for (ssize_t i = 0; i < found && n < max; i++) {
		struct verbs_gid *gid = &out_gids[n];

		if (entries[i].port_num != port)
			continue;
		*gid = (struct verbs_gid){.index = entries[i].gid_index, .kind = VERBS_GID_IB};
		memcpy(gid->raw, entries[i].gid.raw, sizeof(gid->raw));
		if (entries[i].gid_type == IBV_GID_TYPE_ROCE_V1)
			gid->kind = VERBS_GID_ROCE_V1;
		else if (entries[i].gid_type == IBV_GID_TYPE_ROCE_V2)
			gid->kind = VERBS_GID_ROCE_V2;
		if (entries[i].ndev_ifindex != 0 &&
		    if_indextoname(entries[i].ndev_ifindex, gid->netdev) == NULL)
			gid->netdev[0] = '\0';
		n++;
	}
	free(entries);
	return found < 0 ? (int)found : (int)n;
}

int verbs_port_is_up(const struct ibv_port_attr *attr, const char *netdev, struct kvx_why *why)
{
	const char *state = ibv_port_state_str(attr->state);

	if (attr->state == IBV_PORT_ACTIVE)
		return 0;
	if (attr->link_layer == IBV_LINK_LAYER_ETHERNET)
		return kvx_why(why, -ENETDOWN,
			       "the port is %s: `ip link set %s up`, check cable and switch port; "
			       "it is used as soon as it is up",
			       state, netdev[0] != '\0' ? netdev : "(its interface)");
	if (attr->state == IBV_PORT_INIT || attr->state == IBV_PORT_ARMED)
		return kvx_why(why, -ENETDOWN,
			       "the port is %s: the link is there, but no subnet manager has "
			       "brought it up: is opensm (or the switch's) running?",
			       state);
	return kvx_why(why, -ENETDOWN,
		       "the port is %s: check cable and switch port (ibstat); it is used as soon "
		       "as it is up",
		       state);
}

/* Number 0 is always there once the port is set up. */
static bool pkey_is_there(const struct kvx_dom *dom)
{
	uint32_t index = dom->conf.pkey_index;
	uint16_t pkey;

	return index == 0 || (ibv_query_pkey(dom->context, dom->port, (int)index, &pkey) == 0 &&
			      (pkey & 0x7fff) != 0);
}

/* The largest one that is not more than the port's and what was asked for. */
static enum ibv_mtu mtu_choose(enum ibv_mtu port_mtu, uint32_t asked)
{
	enum ibv_mtu mtu = port_mtu;

	while (asked != 0 && mtu > IBV_MTU_256 && verbs_mtu_bytes(mtu) > asked)
		mtu--;
	return mtu;
}

int verbs_port_read(const struct kvx_dom *dom, struct verbs_port *out_port, struct kvx_why *why)
{
	struct verbs_gid gids[VERBS_MAX_GIDS];
	const struct verbs_gid *gid = NULL;
	struct ibv_port_attr attr;
	int n, rc = ibv_query_port(dom->context, dom->port, &attr);

	if (rc != 0)
		return kvx_why(why, verbs_err(rc), VERBS_PORT_MUTE, strerror(rc));
	rc = verbs_port_is_up(&attr, dom->netdev, why);
	if (rc < 0)
		return rc;
	if (!pkey_is_there(dom))
		return kvx_why(why, -EHOSTUNREACH,
			       "verbs.pkey_index %u holds no partition key: ask the subnet "
			       "manager's owner, or set 0",
			       dom->conf.pkey_index);
	n = verbs_read_gids(dom->context, dom->port, &attr, gids, VERBS_MAX_GIDS);
	if (n < 0)
		return kvx_why(why, n, VERBS_GIDS_MUTE, strerror(-n));
	if (verbs_gid_choose(gids, (unsigned)n, !dom->ethernet, dom->conf.gid_index, &gid, why) < 0)
		return -EHOSTUNREACH;
	*out_port = (struct verbs_port){
	    .gid_index = (uint8_t)gid->index,
	    .lid = attr.lid,
	    .mtu = mtu_choose(attr.active_mtu, dom->conf.mtu_bytes),
	    .speed_mbps = verbs_link_mbps(attr.active_width, attr.active_speed),
	};
	memcpy(out_port->gid, gid->raw, sizeof(gid->raw));
	return 0;
}

/* One that says the same, or a new one. */
static const char *wait_text(struct kvx_dom *dom, const struct kvx_why *why)
{
	for (unsigned i = 0; i < dom->n_wait_texts; i++)
		if (strcmp(dom->wait_texts[i], why->text) == 0)
			return dom->wait_texts[i];
	if (dom->n_wait_texts == VERBS_MAX_WAITS)
		return "the port is down or has no address: see the log";
	memcpy(dom->wait_texts[dom->n_wait_texts], why->text, sizeof(why->text));
	return dom->wait_texts[dom->n_wait_texts++];
}

static void port_tell(struct kvx_dom *dom, const struct verbs_port *port)
{
	struct kvx_dom_port *now = &dom->port_now;
	uint64_t gid[2];

	memcpy(gid, port->gid, sizeof(gid));
	for (unsigned i = 0; i < 2; i++)
		atomic_store_explicit(&now->gid[i], gid[i], memory_order_relaxed);
	atomic_store_explicit(&now->gid_index, port->gid_index, memory_order_relaxed);
	atomic_store_explicit(&now->mtu_bytes, verbs_mtu_bytes(port->mtu), memory_order_relaxed);
	atomic_store_explicit(&now->speed_mbps, port->speed_mbps, memory_order_relaxed);
}

static void port_say(const struct kvx_dom *dom, const struct verbs_port *port)
{
	uint32_t asked = dom->conf.mtu_bytes, mtu_bytes = verbs_mtu_bytes(port->mtu);
	char gid[VERBS_GID_TEXT_BYTES];

	kvx_info("verbs: %s is up, gid %s index %u mtu %u speed %llu Mb/s", dom->name,
		 verbs_gid_text(port->gid, gid), port->gid_index, mtu_bytes,
		 (unsigned long long)port->speed_mbps);
	if (asked != 0 && mtu_bytes != asked)
		kvx_warn("verbs: %s: verbs.mtu_bytes %u, but the port has %u: raise the MTU of the "
			 "interface and the switches",
			 dom->name, asked, mtu_bytes);
}

/* What keeps a port from being used is ended by an event; a call that has failed is not. */
static void port_look_again(struct kvx_dom *dom, int err)
{
	if (err == -ENETDOWN || err == -EHOSTUNREACH)
		return;
	dom->look_ns = kvx_now_ns() + LOOK_RETRY_NS;
	if (dom->look_ns < dom->next_due_ns)
		dom->next_due_ns = dom->look_ns;
}

bool verbs_port_look(struct kvx_dom *dom)
{
	const char *before = atomic_load(&dom->port_now.waits), *waits = NULL;
	struct kvx_why why = {.text = ""};
	struct verbs_port port;
	int err = verbs_port_read(dom, &port, &why);

	dom->look_ns = 0;
	if (err < 0) {
		waits = wait_text(dom, &why);
		port_look_again(dom, err);
	} else {
		port_tell(dom, &port);
	}
	atomic_store(&dom->port_now.waits, waits);
	if (waits != NULL && waits != before)
		kvx_warn("verbs: %s waits: %s", dom->name, why.text);
	if (waits == NULL && before != NULL)
		port_say(dom, &port);
	return waits == NULL;
}
