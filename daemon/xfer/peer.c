/* One peer's life: found, dialed, up, lost, forgotten. Loop thread. Each peer has one timer, from
 * which peer_step() does all that is due, reading from top to bottom; peers are freed nowhere else.
 * The table of peers is in peer_table.c. */
#include "xfer/peer_priv.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"

uint64_t peer_now(const struct kvx_peers *peers)
{
	return kvx_timers_now(peers->conf.timers);
}

void peer_text(char *dst, size_t size, const char *src)
{
	size_t n = 0;

	for (; src[n] != '\0' && n + 1 < size; n++)
		dst[n] = (unsigned char)src[n] < 0x20 || src[n] == 0x7f ? '?' : src[n];
	dst[n] = '\0';
}

void peer_note_error(struct kvx_peer *peer, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(peer->last_error, sizeof(peer->last_error), fmt, args);
	va_end(args);
}

bool peer_is_lower(const struct kvx_peer *peer)
{
	return memcmp(peer->peers->conf.node_id, peer->id, KVX_NODE_ID_BYTES) < 0;
}

/* splitmix64: only for jitter */
static uint64_t peers_random(struct kvx_peers *peers)
{
	uint64_t z = (peers->random += 0x9e3779b97f4a7c15u);

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* Exponential with jitter: between half and all of min * 2^n, at most max. */
uint64_t peer_backoff_ns(struct kvx_peers *peers, unsigned n_failed)
{
	uint64_t ms = peers->conf.reconnect_min_ms;
	uint64_t ns;

	for (unsigned i = 0; i < n_failed && ms < peers->conf.reconnect_max_ms; i++)
		ms *= 2;
	if (ms > peers->conf.reconnect_max_ms)
		ms = peers->conf.reconnect_max_ms;
	ns = ms * KVX_MS;
	return ns / 2 + peers_random(peers) % (ns / 2 + 1);
}

struct kvx_peer *peer_find(const struct kvx_peers *peers, const uint8_t id[KVX_NODE_ID_BYTES])
{
	struct kvx_peer *peer = NULL;

	HASH_FIND(hh, peers->table, id, KVX_NODE_ID_BYTES, peer);
	return peer;
}

static void peer_on_timer(struct kvx_timer *timer);

static void peer_start_timer(struct kvx_peer *peer, uint64_t delay_ns)
{
	if (kvx_timer_start(peer->peers->conf.timers, &peer->timer, delay_ns, peer_on_timer) == 0)
		return;
	peer->peers->steps_owed = true; /* no memory: the kick steps all peers */
	peers_kick(peer->peers);
}

void peer_wake(struct kvx_peer *peer)
{
	if (!peer->stepping)
		peer_start_timer(peer, 0);
	peer->woken = true;
}

/* Gives up waiting for lost peers, so that there is room for others soon. */
static KVX_ON_LOOP void peers_forget_lost(struct kvx_peers *peers)
{
	struct kvx_peer *peer;

	for (peer = peers->table; peer != NULL; peer = peer->hh.next) {
		if (peer->conn != NULL)
			continue;
		peer->interest_ns = 0;
		peer_wake(peer);
	}
}

void peer_name(const uint8_t id[KVX_NODE_ID_BYTES], char out[2 * KVX_NODE_ID_BYTES + 1])
{
	for (unsigned i = 0; i < KVX_NODE_ID_BYTES; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

int peer_get(struct kvx_peers *peers, const uint8_t id[KVX_NODE_ID_BYTES], const char *addr,
	     struct kvx_peer **out_peer, struct kvx_why *why)
{
	struct kvx_peer *peer = peer_find(peers, id);
	int err;

	if (peer != NULL) {
		*out_peer = peer;
		return 0;
	}
	if (HASH_COUNT(peers->table) >= peers->conf.max_peers) {
		peers_forget_lost(peers);
		return kvx_why(why, -EDQUOT, "limit reached: %u peers", peers->conf.max_peers);
	}
	peer = calloc(1, sizeof(*peer));
	if (peer == NULL)
		return kvx_why(why, -ENOMEM, "out of memory");
	peer->magic = PEER_MAGIC;
	peer->peers = peers;
	memcpy(peer->id, id, KVX_NODE_ID_BYTES);
	peer_name(id, peer->name);
	snprintf(peer->addr, sizeof(peer->addr), "%s", addr);
	err = lanes_create(peer);
	if (err < 0)
		goto err_lanes;
	HASH_ADD(hh, peers->table, id, KVX_NODE_ID_BYTES, peer);
	if (peer->hh.tbl == NULL) { /* no memory for the table */
		err = -ENOMEM;
		goto err_lanes;
	}
	*out_peer = peer;
	peer_wake(peer);
	return 0;

err_lanes:
	lanes_destroy(peer);
	free(peer);
	return kvx_why(why, err, "out of memory");
}

static KVX_ON_LOOP void peer_free(struct kvx_peer *peer)
{
	struct kvx_peers *peers = peer->peers;

	kvx_debug("peer %s: forgotten", peer->name);
	HASH_DEL(peers->table, peer);
	kvx_timer_stop(peers->conf.timers, &peer->timer);
	lanes_destroy(peer);
	free(peer->refused_streams);
	peer->magic = 0;
	free(peer);
	peers_kick(peers);
}

/* Its regions are lost, and what was asked of it has failed. */
static KVX_ON_LOOP void peer_end_all(struct kvx_peer *peer, int status, const char *text)
{
	remote_lose_all(peer, status, text);
	calls_fail_all(peer, status, text);
	find_fail_all(peer, status, text);
}

void peer_lose(struct kvx_peer *peer, int status, const char *text, bool remote_fenced)
{
	uint64_t now = peer_now(peer->peers);
	/* Their lease was agreed to end this long after our newest answer, and a bit for clocks. */
	uint64_t safe_ns = peer->last_beat_ns + peer->lease_ns + peer->lease_ns / 16;
	bool used = remote_count(peer) > 0;

	kvx_info("peer %s: lost: %s", peer->name, text);
	conn_close(peer->conn);
	peer->n_lost++;
	peer->up_ns = 0;
	lanes_lose(peer, status, text, remote_fenced ? now : safe_ns);
	peer_note_error(peer, "%s", text);
	inbound_on_lost(peer);
	message_on_lost(peer);
	peer_end_all(peer, status, text);
	if (used)
		peer->interest_ns = now + PEER_KEEP_NS;
	peer->redial_ns = now + peer_backoff_ns(peer->peers, peer->n_failed);
	peer_wake(peer);
}

/* It cannot be reached: who waits for that is told. */
static KVX_ON_LOOP void peer_fail_waiting(struct kvx_peer *peer, int status, const char *text)
{
	peer_note_error(peer, "%s", text);
	remote_fail_all_waiting(peer, status, text);
	calls_fail_all(peer, status, text);
	find_fail_all(peer, status, text);
}

/* A dial has failed; it is tried again later while it is worth it. */
static KVX_ON_LOOP void peer_dial_failed(struct kvx_peer *peer)
{
	struct peer_conn *conn = peer->dial;
	int status = conn->fail_status;
	char text[KVX_WHY_BYTES];

	snprintf(text, sizeof(text), "%s", conn->fail_text);
	conn_close(conn);
	peer->redial_ns = peer_now(peer->peers) + peer_backoff_ns(peer->peers, peer->n_failed++);
	if (status == -EBUSY) /* theirs is on its way */
		return;
	if (strcmp(peer->last_error, text) != 0)
		kvx_info("peer %s: %s", peer->name, text);
	peer_fail_waiting(peer, status, text);
}

static bool peer_wants_dial(const struct kvx_peer *peer)
{
	if (peer->conn != NULL || peer->dial != NULL || peer->addr[0] == '\0' ||
	    peer->peers->closing)
		return false;
	return remote_is_wanted(peer) || calls_is_wanted(peer) || find_is_wanted(peer) ||
	       peer_now(peer->peers) < peer->interest_ns;
}

static KVX_ON_LOOP void peer_dial(struct kvx_peer *peer)
{
	struct peer_conn *conn;
	struct kvx_why why;
	int err = conn_dial(peer->peers, peer, peer->addr, &conn, &why);

	if (err == 0)
		return;
	peer->redial_ns = peer_now(peer->peers) + peer_backoff_ns(peer->peers, peer->n_failed++);
	if (err == -EBUSY)
		return;
	peer_fail_waiting(peer, err, why.text);
}

/* Closing: stop the lanes, say goodbye once nothing lands any more, let go of the connection. */
static KVX_ON_LOOP void peer_step_closing(struct kvx_peer *peer)
{
	if (peer->dial != NULL)
		conn_close(peer->dial);
	lanes_down(peer, -ESHUTDOWN, "this daemon is closing");
	if (peer->conn != NULL && lanes_inbound_is_stopped(peer)) {
		conn_say_bye(peer->conn, -ESHUTDOWN, "the daemon is closing", true);
		peer_lose(peer, -ESHUTDOWN, "this daemon is closing", false);
	}
	if (peer->conn == NULL)
		peer_end_all(peer, -ESHUTDOWN, "this daemon is closing");
}

static bool peer_is_unused(const struct kvx_peer *peer)
{
	return peer->conn == NULL && peer->dial == NULL && lanes_are_idle(peer) &&
	       remote_is_empty(peer) && inbound_is_empty(peer) && !calls_is_wanted(peer) &&
	       !find_is_wanted(peer) &&
	       (peer->peers->closing || peer_now(peer->peers) >= peer->interest_ns);
}

static uint64_t min_ns(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t peer_next_ns(const struct kvx_peer *peer)
{
	uint64_t next = beat_next_ns(peer);

	for (unsigned i = 0; i < peer->n_lanes; i++)
		next = min_ns(next, lane_next_ns(peer->lanes[i]));
	next = min_ns(next, min_ns(remote_next_ns(peer), exports_next_ns(peer)));
	if (peer_wants_dial(peer))
		next = min_ns(next, peer->redial_ns);
	if (peer->conn == NULL && peer->interest_ns > peer_now(peer->peers))
		next = min_ns(next, peer->interest_ns);
	return next;
}

static KVX_ON_LOOP void peer_run(struct kvx_peer *peer)
{
	struct peer_conn *conn = peer->conn;

	if (conn != NULL && conn->fail_status != 0)
		peer_lose(peer, conn->fail_status, conn->fail_text, conn->said_fenced);
	if (peer->dial != NULL && peer->dial->fail_status != 0)
		peer_dial_failed(peer);
	beat_step(peer);
	if (peer->peers->closing)
		peer_step_closing(peer);
	if (peer_wants_dial(peer) && peer_now(peer->peers) >= peer->redial_ns)
		peer_dial(peer);
	for (unsigned i = 0; i < peer->n_lanes; i++)
		lane_step(peer->lanes[i]);
	inbound_step(peer);
	remote_step(peer);
}

void peer_step(struct kvx_peer *peer)
{
	uint64_t now, next;

	if (peer->stepping)
		return;
	peer->stepping = true;
	for (unsigned i = 0; i < 8; i++) {
		peer->woken = false;
		peer_run(peer);
		if (!peer->woken)
			break;
	}
	peer->stepping = false;
	if (peer_is_unused(peer)) {
		peer_free(peer);
		return;
	}
	now = peer_now(peer->peers);
	next = peer->woken ? now : peer_next_ns(peer);
	if (next == UINT64_MAX)
		kvx_timer_stop(peer->peers->conf.timers, &peer->timer);
	else
		peer_start_timer(peer, next > now ? next - now : 0);
}

static void peer_on_timer(struct kvx_timer *timer)
{
	struct kvx_peer *peer =
	    (struct kvx_peer *)((char *)timer - offsetof(struct kvx_peer, timer));

	KVX_CHECK_MAGIC(peer, PEER_MAGIC);
	kvx_assert_on_loop();
	peer_step(peer);
}
