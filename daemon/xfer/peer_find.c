/* Regions by name. A find asks the daemon at an address, which must be known by its node id first
 * (a probe: a connection for one hello, shared by all finds to that address), what is published
 * there, and resolves the descriptor that it is given. The other half, which answers, is
 * peer_publish.c. Loop thread; frames come from peer_frame.c. A find ends exactly once: with a
 * target, with word that the address is this node's own, with a failure, at its time-out, or by its
 * owner's abandoning it. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utlist.h>

#include "base/log.h"

struct kvx_find {
	struct kvx_peers *peers;
	struct kvx_peer *peer;       /* who is asked; NULL: not known yet, there is a probe */
	struct kvx_resolve *resolve; /* of what was found; NULL: not yet */
	uint64_t request_id;         /* of PEER_FIND; 0: not sent */
	uint64_t deadline_ns;
	uint32_t tenant;
	char addr[KVX_PEER_ADDR_BYTES];
	char name[KVX_PUBLISH_BYTES];
	void *note;
	uint32_t note_bytes;
	struct kvx_timer timer;
	kvx_find_cb cb;
	void *arg;
	struct kvx_find *prev, *next;           /* of all */
	struct kvx_find *peer_prev, *peer_next; /* of those that a peer is asked */
	bool asked;                             /* is one of them */
};

/* A walk over all finds, which may end and begin while it goes on: it leaves none out. */
struct find_walk {
	struct kvx_find *next;
	struct find_walk *outer;
};

static void walk_begin(struct kvx_peers *peers, struct find_walk *walk)
{
	*walk = (struct find_walk){.next = peers->finds, .outer = peers->find_walks};
	peers->find_walks = walk;
}

static struct kvx_find *walk_step(struct find_walk *walk)
{
	struct kvx_find *find = walk->next;

	if (find != NULL)
		walk->next = find->next;
	return find;
}

static void walks_on_new(struct kvx_peers *peers, struct kvx_find *find)
{
	for (struct find_walk *walk = peers->find_walks; walk != NULL; walk = walk->outer)
		if (walk->next == NULL)
			walk->next = find;
}

static void walks_on_gone(struct kvx_peers *peers, const struct kvx_find *find)
{
	for (struct find_walk *walk = peers->find_walks; walk != NULL; walk = walk->outer)
		if (walk->next == find)
			walk->next = find->next;
}

/* Its answer comes from a peer. */
static void find_ask_begin(struct kvx_find *find, struct kvx_peer *peer)
{
	find->peer = peer;
	find->asked = true;
	DL_APPEND2(peer->finds, find, peer_prev, peer_next);
}

static void find_ask_end(struct kvx_find *find)
{
	if (!find->asked)
		return;
	find->asked = false;
	DL_DELETE2(find->peer->finds, find, peer_prev, peer_next);
}

static KVX_ON_LOOP void find_free(struct kvx_find *find)
{
	struct kvx_peers *peers = find->peers;

	kvx_timer_stop(peers->conf.timers, &find->timer);
	find_ask_end(find);
	walks_on_gone(peers, find);
	DL_DELETE(peers->finds, find);
	free(find->note);
	free(find);
	peers_kick(peers); /* closing waits for finds, too */
}

static KVX_ON_LOOP void find_end(struct kvx_find *find, const struct kvx_found *found)
{
	struct kvx_found told = *found;
	kvx_find_cb cb = find->cb;
	void *arg = find->arg, *note = find->note;
	char name[KVX_PUBLISH_BYTES];

	memcpy(name, find->name, sizeof(name));
	told.name = name;
	told.note = note;
	told.note_bytes = find->note_bytes;
	find->note = NULL;
	find_free(find);
	cb(arg, &told);
	free(note);
}

static KVX_ON_LOOP void find_fail(struct kvx_find *find, int status, const char *text)
{
	const struct kvx_found found = {.status = status, .text = text};

	find_end(find, &found);
}

static void find_on_timer(struct kvx_timer *timer)
{
	struct kvx_find *find =
	    (struct kvx_find *)((char *)timer - offsetof(struct kvx_find, timer));
	const struct kvx_peer *peer = find->peer;
	bool there = peer != NULL && peer->conn != NULL;
	struct kvx_why why;

	kvx_assert_on_loop();
	if (find->resolve != NULL)
		kvx_resolve_abandon(find->resolve);
	find->resolve = NULL;
	kvx_why(&why, 0, "%s: %s in time%s%.100s", find->addr,
		there ? "no answer" : "no connection",
		peer != NULL && peer->last_error[0] != '\0' ? "; last error: " : "",
		peer != NULL ? peer->last_error : "");
	find_fail(find, there ? -ETIMEDOUT : -EHOSTUNREACH, why.text);
}

/* asking */

static KVX_ON_LOOP void find_send(struct kvx_find *find)
{
	Kvxp__PeerFind msg = KVXP__PEER_FIND__INIT;

	find->request_id = ++find->peers->next_request;
	msg.request_id = find->request_id;
	msg.tenant = (char *)(uintptr_t)find->peers->tenants[find->tenant];
	msg.name = find->name;
	peer_send(find->peer, KVXP__PEER_FRAME_TYPE__PEER_FIND, &msg);
}

static KVX_ON_LOOP void find_ask(struct kvx_find *find, struct kvx_peer *peer)
{
	find_ask_begin(find, peer);
	if (peer->conn != NULL)
		find_send(find);
	peer_wake(peer);
}

static struct kvx_peer *find_known_peer(const struct kvx_peers *peers, const char *addr)
{
	struct kvx_peer *peer;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next)
		if (peer->conn != NULL && strcmp(peer->addr, addr) == 0)
			return peer;
	return NULL;
}

static bool find_has_probe(const struct kvx_peers *peers, const char *addr)
{
	const struct peer_conn *conn;

	DL_FOREACH (peers->conns, conn)
		if (conn->dialed && conn->who && conn->fail_status == 0 &&
		    strcmp(conn->addr, addr) == 0)
			return true;
	return false;
}

static KVX_ON_LOOP int find_probe(struct kvx_find *find, struct kvx_why *why)
{
	struct peer_conn *conn;
	int err;

	if (find_has_probe(find->peers, find->addr))
		return 0;
	err = conn_dial(find->peers, NULL, find->addr, &conn, why);
	if (err < 0)
		return err;
	if (conn->state == CONN_CLOSED) /* failed at once; buried by the next kick */
		return kvx_why(why, conn->fail_status, "%s", conn->fail_text);
	conn->who = true; /* before its hello, which goes when it is connected */
	return 0;
}

static KVX_ON_LOOP int find_create(struct kvx_peers *peers, uint64_t timeout_ns,
				   struct kvx_find **out_find)
{
	struct kvx_find *find = calloc(1, sizeof(*find));

	if (find == NULL)
		return -ENOMEM;
	find->peers = peers;
	find->deadline_ns = peer_now(peers) + timeout_ns;
	if (kvx_timer_start(peers->conf.timers, &find->timer, timeout_ns, find_on_timer) < 0) {
		free(find);
		return -ENOMEM;
	}
	DL_APPEND(peers->finds, find);
	walks_on_new(peers, find);
	*out_find = find;
	return 0;
}

int kvx_peers_find(struct kvx_peers *peers, const struct kvx_find_request *request,
		   uint64_t timeout_ns, kvx_find_cb cb, void *arg, struct kvx_find **out_find,
		   struct kvx_why *why)
{
	char addr[KVX_PEER_ADDR_BYTES];
	struct kvx_peer *peer;
	struct kvx_find *find;
	int err;

	if (peers->closing)
		return kvx_why(why, -ESHUTDOWN, "the daemon is closing");
	if (addr_complete(request->address, addr) < 0)
		return kvx_why(why, -EINVAL, "\"%.60s\" is neither HOST nor HOST:PORT",
			       request->address);
	kvx_assert(request->tenant < peers->n_tenants);
	kvx_assert(strlen(request->name) < sizeof(find->name));
	err = find_create(peers, timeout_ns, &find);
	if (err < 0)
		return kvx_why(why, err, "out of memory");
	find->tenant = request->tenant;
	memcpy(find->addr, addr, sizeof(addr));
	strncpy(find->name, request->name, sizeof(find->name) - 1);
	find->cb = cb;
	find->arg = arg;
	peer = find_known_peer(peers, addr);
	if (peer != NULL)
		find_ask(find, peer);
	else
		err = find_probe(find, why);
	if (err < 0) {
		find_free(find);
		return err;
	}
	*out_find = find;
	return 0;
}

void kvx_find_abandon(struct kvx_find *find)
{
	if (find->resolve != NULL)
		kvx_resolve_abandon(find->resolve);
	find_free(find);
}

/* probes */

static bool find_is_of_probe(const struct kvx_find *find, const struct peer_conn *conn)
{
	return find->peer == NULL && strcmp(find->addr, conn->addr) == 0;
}

void find_on_probe_failed(struct peer_conn *conn)
{
	struct kvx_peers *peers = conn->peers;
	struct kvx_find *find;
	struct find_walk walk;

	walk_begin(peers, &walk);
	while ((find = walk_step(&walk)) != NULL)
		if (find_is_of_probe(find, conn))
			find_fail(find, conn->fail_status, conn->fail_text);
	peers->find_walks = walk.outer;
}

/* The caller closes the probe. */
void find_on_hello(struct peer_conn *conn, const Kvxp__PeerHello *hello)
{
	const struct kvx_found own = {.own = true, .text = ""};
	struct kvx_peers *peers = conn->peers;
	struct kvx_peer *peer = NULL;
	struct kvx_find *find;
	struct find_walk walk;
	struct kvx_why why;
	bool is_own = memcmp(hello->node_id.data, peers->conf.node_id, KVX_NODE_ID_BYTES) == 0;
	int err = is_own ? 0 : peer_get(peers, hello->node_id.data, conn->addr, &peer, &why);

	if (peer != NULL && peer->conn == NULL) { /* it was there just now: no need to wait */
		snprintf(peer->addr, sizeof(peer->addr), "%s", conn->addr);
		peer->redial_ns = peer_now(peers);
	}
	walk_begin(peers, &walk);
	while ((find = walk_step(&walk)) != NULL) {
		if (!find_is_of_probe(find, conn))
			continue;
		if (is_own)
			find_end(find, &own);
		else if (err < 0)
			find_fail(find, err, why.text);
		else
			find_ask(find, peer);
	}
	peers->find_walks = walk.outer;
}

/* the peer */

void find_on_up(struct kvx_peer *peer)
{
	struct kvx_find *find;

	DL_FOREACH2(peer->finds, find, peer_next)
	if (find->request_id == 0)
		find_send(find);
}

void find_fail_all(struct kvx_peer *peer, int status, const char *text)
{
	while (peer->finds != NULL)
		find_fail(peer->finds, status, text);
}

bool find_is_wanted(const struct kvx_peer *peer)
{
	return peer->finds != NULL;
}

/* the answer */

static void find_on_resolve(void *arg, int status, const char *text, struct kvx_target *target)
{
	struct kvx_find *find = arg;
	const struct kvx_found found = {.status = status, .text = text, .target = target};

	kvx_assert_on_loop();
	find->resolve = NULL;
	find_end(find, &found);
}

static KVX_ON_LOOP int find_resolve(struct kvx_find *find, const Kvxp__PeerFound *msg,
				    struct kvx_why *why)
{
	uint64_t now = peer_now(find->peers);
	struct kvx_desc desc;
	int err = kvx_desc_unpack(msg->descriptor.data, msg->descriptor.len, &desc, why);

	if (err == 0 && memcmp(desc.node_id, find->peer->id, KVX_NODE_ID_BYTES) != 0)
		err = kvx_why(why, -EPROTO, "the peer's answer names a region of another node");
	if (err < 0)
		return err;
	if (msg->note.len > 0) {
		find->note = malloc(msg->note.len);
		if (find->note == NULL)
			return kvx_why(why, -ENOMEM, "out of memory");
		memcpy(find->note, msg->note.data, msg->note.len);
		find->note_bytes = (uint32_t)msg->note.len;
	}
	err = kvx_peers_resolve(find->peers, &desc, find->tenant,
				find->deadline_ns > now ? find->deadline_ns - now : 1,
				find_on_resolve, find, &find->resolve, why);
	if (err == 0)
		find_ask_end(find);
	return err;
}

int find_on_found(struct kvx_peer *peer, const ProtobufCMessage *message)
{
	const Kvxp__PeerFound *msg = (const Kvxp__PeerFound *)message;
	struct kvx_find *find = NULL;
	struct kvx_why why;
	int err = kvx_status_to_errno(msg->status);

	if (msg->note.len > KVX_PAYLOAD_MAX)
		return -EPROTO;
	/* Answers come in the order of asking. */
	DL_FOREACH2(peer->finds, find, peer_next)
	if (find->request_id == msg->request_id)
		break;
	if (find == NULL || msg->request_id == 0) {
		peer->n_stale++;
		return 0;
	}
	if (err == 0)
		err = find_resolve(find, msg, &why);
	else
		peer_text(why.text, sizeof(why.text), msg->text);
	if (err < 0)
		find_fail(find, err, why.text);
	return 0;
}
