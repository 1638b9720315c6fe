/* How a region of a peer is asked for and answered: resolves of clients wait on a target, the
 * owner's daemon is asked once for all of them, its answer is checked and its key unpacked by the
 * worker. Loop thread. Answers of another lane generation are dropped; a client that guesses a
 * token only ever gets the owner's refusal. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/log.h"

struct kvx_resolve {
	struct peer_target *target;
	uint64_t deadline_ns;
	struct kvx_timer timer;
	kvx_resolve_cb cb;
	void *arg;
	struct kvx_resolve *prev, *next;
};

static struct kvx_timers *resolve_timers(const struct kvx_resolve *resolve)
{
	return resolve->target->peer->peers->conf.timers;
}

static KVX_ON_LOOP void resolve_end(struct kvx_resolve *resolve, int status, const char *text)
{
	struct peer_target *t = resolve->target;
	kvx_resolve_cb cb = resolve->cb;
	void *arg = resolve->arg;

	kvx_timer_stop(resolve_timers(resolve), &resolve->timer);
	DL_DELETE(t->waiters, resolve);
	free(resolve);
	t->idle_ns = 0;
	cb(arg, status, text, status == 0 ? kvx_target_ref(&t->target) : NULL);
	if (t->waiters == NULL && t->target.n_refs == 0)
		target_abandon(t);
}

/* t stays: targets are freed in remote_step() only. */
void resolve_end_waiters(struct peer_target *t, int status, const char *text)
{
	while (t->waiters != NULL)
		resolve_end(t->waiters, status, text);
}

static KVX_ON_LOOP void resolve_time_out(struct kvx_resolve *resolve)
{
	const struct kvx_peer *peer = resolve->target->peer;
	const char *stage = "no answer";
	char text[KVX_WHY_BYTES];

	if (peer->conn == NULL)
		stage = "no connection";
	else if (way_lane(resolve->target)->phase != LANE_UP)
		stage = "connected, but no lane";
	snprintf(text, sizeof(text), "peer %.8s at %.60s: %s in time%s%.100s", peer->name,
		 peer->addr, stage, peer->last_error[0] != '\0' ? "; last error: " : "",
		 peer->last_error);
	resolve_end(resolve, -ETIMEDOUT, text);
}

static void resolve_on_timer(struct kvx_timer *timer)
{
	struct kvx_resolve *resolve =
	    (struct kvx_resolve *)((char *)timer - offsetof(struct kvx_resolve, timer));
	uint64_t now = kvx_timers_now(resolve_timers(resolve));

	kvx_assert_on_loop();
	if (way_is_open(resolve->target))
		resolve_end(resolve, 0, "");
	else if (now >= resolve->deadline_ns ||
		 kvx_timer_start(resolve_timers(resolve), timer, resolve->deadline_ns - now,
				 resolve_on_timer) < 0)
		resolve_time_out(resolve);
}

void resolve_on_keys(struct peer_target *t)
{
	if (t->state == TARGET_LOST)
		return; /* its keys are freed by a step, or with the lane */
	kvx_assert(t->state == TARGET_UNPACKING);
	target_move(t, TARGET_NEW);
	if (t->generation != t->lane->lane.generation)
		return; /* the keys belong to a lane that is being torn down */
	if (t->key_status < 0) {
		target_lose(t, t->key_status, "the peer's key for the region cannot be used");
		return;
	}
	target_move(t, TARGET_READY);
	t->target.lane_generation = t->generation;
	way_on_ready(t);
}

/* asking */

void resolve_ask(struct peer_target *t)
{
	struct kvx_peer *peer = t->peer;
	Kvxp__PeerResolve msg = KVXP__PEER_RESOLVE__INIT;

	target_move(t, TARGET_ASKED);
	t->generation = t->lane->lane.generation;
	t->request_id = ++peer->peers->next_request;
	msg.request_id = t->request_id;
	msg.region = t->key.region;
	msg.token.data = t->key.token;
	msg.token.len = KVX_TOKEN_BYTES;
	msg.generation = t->lane->wire_generation;
	peer_send(peer, KVXP__PEER_FRAME_TYPE__PEER_RESOLVE, &msg);
}

static int resolved_layout(const Kvxp__PeerResolved *msg, struct kvx_layout **out_layout,
			   struct kvx_why *why)
{
	struct kvx_layout *layout;
	int err;

	if (msg->n_planes == 0) {
		*out_layout = NULL;
		return 0;
	}
	if (msg->n_planes > PEER_PLANES_MAX)
		return kvx_why(why, -EPROTO, "layout of %zu planes", msg->n_planes);
	layout = kvx_layout_create((uint32_t)msg->n_planes);
	if (layout == NULL)
		return kvx_why(why, -ENOMEM, "out of memory");
	for (size_t i = 0; i < msg->n_planes; i++) {
		const Kvxp__PeerPlane *plane = msg->planes[i];

		layout->planes[i].offset = plane->offset;
		layout->planes[i].block_stride = plane->block_stride;
		layout->planes[i].block_bytes = plane->block_bytes;
		layout->planes[i].n_blocks = plane->n_blocks;
		peer_text(layout->planes[i].name, KVX_PLANE_NAME_BYTES, plane->name);
	}
	err = kvx_layout_check(layout, msg->len, why);
	if (err < 0) {
		kvx_layout_destroy(layout);
		return err;
	}
	*out_layout = layout;
	return 0;
}

/* Fills the target the first time; later answers must say the same. */
static int target_take(struct peer_target *t, const Kvxp__PeerResolved *msg, struct kvx_why *why)
{
	struct kvx_layout *layout = NULL;
	int err;

	if (msg->len == 0 || msg->access == 0 ||
	    (msg->access & ~(KVX_ACCESS_READ | KVX_ACCESS_WRITE)) != 0)
		return kvx_why(why, -EPROTO, "malformed answer of the region's daemon");
	if (t->known) {
		if (msg->len != t->target.len_bytes || msg->access != t->target.access)
			return kvx_why(why, -EOWNERDEAD, "the region has changed");
		return 0;
	}
	err = resolved_layout(msg, &layout, why);
	if (err < 0)
		return err;
	t->target.len_bytes = msg->len;
	t->target.access = msg->access;
	t->target.layout = layout;
	t->known = true;
	return 0;
}

/* Answers come in the order of asking: it is the first, or it is stale. */
static struct peer_target *target_by_request(const struct kvx_peer *peer, uint64_t request_id)
{
	struct kvx_target *asked;

	DL_FOREACH (peer->asked, asked) {
		struct peer_target *t = (struct peer_target *)asked;

		if (t->request_id == request_id)
			return t;
		if (t->request_id > request_id)
			break;
	}
	return NULL;
}

int resolve_on_resolved(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerResolved *msg = (const Kvxp__PeerResolved *)message;
	struct peer_target *t = target_by_request(peer, msg->request_id);
	char text[KVX_WHY_BYTES];
	struct kvx_why why;
	int err;

	if (t == NULL || t->generation != t->lane->lane.generation) {
		peer->n_stale++;
		return 0;
	}
	err = kvx_status_to_errno(msg->status);
	peer_text(text, sizeof(text), msg->text);
	if (err == 0) {
		err = target_take(t, msg, &why);
		if (err == 0 && t->first != NULL)
			err = target_take(t->first, msg, &why);
		if (err < 0)
			snprintf(text, sizeof(text), "%s", why.text);
	}
	if (err == -EHOSTDOWN) { /* it tears the lane down: again on the next one */
		target_move(t, TARGET_NEW);
		return 0;
	}
	if (err == -ENETUNREACH && way_go_elsewhere(t))
		return 0;
	if (err < 0) {
		target_lose(t, t->known && t->first == NULL ? -EOWNERDEAD : err, text);
		return 0;
	}
	err = keys_unpack(t, msg);
	if (err < 0)
		target_lose(t, err, "the region's daemon did not give a key for each rail");
	else
		target_move(t, TARGET_UNPACKING);
	return 0;
}

/* the calls of clients */

static KVX_ON_LOOP int resolve_find_peer(struct kvx_peers *peers, const struct kvx_desc *desc,
					 struct kvx_peer **out_peer, struct kvx_why *why)
{
	struct kvx_peer *peer;
	int err;

	if (peers->closing)
		return kvx_why(why, -ESHUTDOWN, "the daemon is closing");
	if (memcmp(desc->node_id, peers->conf.node_id, KVX_NODE_ID_BYTES) == 0)
		return kvx_why(why, -EINVAL, "the descriptor is of this node");
	if (!peers_have_transport(peers)) {
		const char *error = kvx_node_peer_error(peers->conf.node);

		return kvx_why(why, -ENETUNREACH, "no transport between nodes here: %s",
			       error[0] != '\0' ? error : "every device was lost");
	}
	err = peer_get(peers, desc->node_id, desc->addr, &peer, why);
	if (err < 0)
		return err;
	if (peer->conn == NULL && desc->addr[0] != '\0')
		snprintf(peer->addr, sizeof(peer->addr), "%s", desc->addr);
	if (peer->conn == NULL && peer->dial == NULL && peer->addr[0] == '\0')
		return kvx_why(
		    why, -EHOSTUNREACH,
		    "the region's node does not listen for peers: set peer.listen there");
	if (peer->conn != NULL && desc->epoch != peer->epoch)
		return kvx_why(why, -ESTALE, "descriptor of an earlier start of its daemon");
	if (peer->conn != NULL && peer->n_common == 0)
		return kvx_why(why, -ENETUNREACH, "the two nodes have no transport in common");
	*out_peer = peer;
	return 0;
}

static KVX_ON_LOOP int resolve_find_target(struct peer_lane *lane, const struct kvx_desc *desc,
					   struct peer_target **out_target, struct kvx_why *why)
{
	struct target_key key = {.region = desc->region, .lane = lane->index};
	struct kvx_peer *peer = lane->peer;
	struct peer_target *t;

	if (peer->conn != NULL && !lane->wanted)
		return kvx_why(why, -EACCES, "the region's node does not have the tenant %s",
			       lane_tenant_name(lane));

	memcpy(key.token, desc->token, KVX_TOKEN_BYTES);
	HASH_FIND(hh, peer->targets, &key, sizeof(key), t);
	if (t != NULL && t->epoch != desc->epoch)
		return kvx_why(why, -ESTALE, "descriptor of an earlier start of its daemon");
	if (t == NULL && target_create(lane, &key, desc->epoch, &t) < 0)
		return kvx_why(why, -ENOMEM, "out of memory");
	t->target.route = way_route;
	*out_target = t;
	return 0;
}

int kvx_peers_resolve(struct kvx_peers *peers, const struct kvx_desc *desc, uint32_t tenant,
		      uint64_t timeout_ns, kvx_resolve_cb cb, void *arg,
		      struct kvx_resolve **out_resolve, struct kvx_why *why)
{
	struct kvx_resolve *resolve;
	struct peer_target *t = NULL;
	struct kvx_peer *peer = NULL;
	int err = resolve_find_peer(peers, desc, &peer, why);

	if (err < 0)
		return err;
	kvx_assert(tenant < peers->n_tenants);
	err = resolve_find_target(peer->lanes[tenant], desc, &t, why);
	if (err < 0)
		return err;
	resolve = calloc(1, sizeof(*resolve));
	if (resolve == NULL ||
	    kvx_timer_start(peers->conf.timers, &resolve->timer, way_is_open(t) ? 0 : timeout_ns,
			    resolve_on_timer) < 0) {
		free(resolve);
		target_abandon(t);
		return kvx_why(why, -ENOMEM, "out of memory");
	}
	resolve->target = t;
	resolve->deadline_ns = peer_now(peers) + timeout_ns;
	resolve->cb = cb;
	resolve->arg = arg;
	DL_APPEND(t->waiters, resolve);
	peer_wake(peer);
	*out_resolve = resolve;
	return 0;
}

void kvx_resolve_abandon(struct kvx_resolve *resolve)
{
	struct peer_target *t = resolve->target;

	kvx_timer_stop(resolve_timers(resolve), &resolve->timer);
	DL_DELETE(t->waiters, resolve);
	free(resolve);
	target_abandon(t);
}

/* transfers of ours, told to the owner of the other side */

void kvx_peers_remote_open(void *arg, struct kvx_target *target, uint64_t xfer_uid, int op,
			   uint64_t tag, const char *label)
{
	Kvxp__PeerXferOpen msg = KVXP__PEER_XFER_OPEN__INIT;

	msg.xfer = xfer_uid;
	msg.region = target->region_id;
	msg.op = (uint32_t)op;
	msg.tag = tag;
	msg.label = (char *)(uintptr_t)label;
	msg.any_memory = lane_of(target->lane)->any_memory;
	peer_send(target->peer, KVXP__PEER_FRAME_TYPE__PEER_XFER_OPEN, &msg);
}

/* To a peer that is lost nothing is sent: it fails what it has open by itself. */
void kvx_peers_remote_end(void *arg, struct kvx_target *target, uint64_t xfer_uid,
			  const struct kvx_arrival *end)
{
	Kvxp__PeerXferEnd msg = KVXP__PEER_XFER_END__INIT;

	msg.xfer = xfer_uid;
	msg.status = (uint32_t)kvx_status_from_errno(end->status);
	msg.text = (char *)end->text;
	msg.bytes = end->bytes;
	msg.transport = (char *)end->transport;
	msg.payload.data = (uint8_t *)end->payload;
	msg.payload.len = end->payload_bytes;
	peer_send(target->peer, KVXP__PEER_FRAME_TYPE__PEER_XFER_END, &msg);
}
