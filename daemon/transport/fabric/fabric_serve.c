/* Serving the peer: its packed WRITEs are placed, its READs answered with DATA, everything else is
 * handed to who waits for it. The only code that lets a remote end at our memory. Called by the
 * completion loop on the worker thread. Trusts nothing that came: each op is checked against the
 * memory table before any of the message is placed. Never allocates; a receive buffer is free again
 * when fab_serve_rx() returns, so that both directions can be full without anyone waiting for the
 * other. Only what is for GPU memory may have to wait in it, until copies that wait for nobody else
 * are through. */
#include <errno.h>
#include <string.h>

#include "base/log.h"
#include "mem/region.h"
#include "proto/kvx_err.h"
#include "transport/fabric/fabric_gpu.h"

void fab_serve_bad(struct kvx_ep *ep, const char *text)
{
	ep->dom->n_bad++;
	fab_ep_break(ep, -EPROTO, 0, text);
}

/* Requests of the peer that we have not answered: it may not have more of them than we said. */
static bool serve_window_full(const struct kvx_ep *ep)
{
	return ep->n_acks + ep->n_waiting + ep->n_bounces[FAB_BOUNCE_PLACE] +
		   ep->n_bounces[FAB_BOUNCE_REPLY] - ep->n_replies_sent >=
	       ep->dom->queue;
}

void fab_serve_ack(struct kvx_ep *ep, uint32_t id, int status)
{
	struct kvx_pack_ack *ack = &ep->acks[ep->n_acks++];

	ack->id = id;
	ack->status = kvx_status_from_errno(status);
	if (status < 0)
		ep->dom->n_bad++;
	fab_ep_dirty(ep);
}

/* The memory that a key names, if it names any and with these rights. */
static int serve_find_mr(const struct kvx_ep *ep, const struct kvx_pack_key *key, uint32_t right,
			 struct kvx_mr **out_mr)
{
	struct kvx_mr *mr = kvx_idmap_find(ep->dom->mrs, key->id);

	if (mr == NULL)
		return -EOWNERDEAD;
	if (mr->key.nonce != key->nonce || mr->tenant != ep->tenant || (mr->rights & right) == 0)
		return -EACCES;
	*out_mr = mr;
	return 0;
}

int fab_serve_resolve(const struct kvx_ep *ep, const struct kvx_pack_msg *msg, uint32_t right,
		      struct fab_place places[KVX_PACK_MAX_OPS])
{
	struct kvx_mr *mrs[KVX_PACK_MAX_KEYS];

	for (uint32_t k = 0; k < msg->n_keys; k++) {
		struct kvx_pack_key key;
		int rc;

		kvx_pack_get_key(msg, k, &key);
		rc = serve_find_mr(ep, &key, right, &mrs[k]);
		if (rc < 0)
			return rc;
	}
	for (uint32_t i = 0; i < msg->n_ops; i++) {
		struct kvx_pack_op op;
		struct kvx_mr *mr;

		kvx_pack_get_op(msg, i, &op);
		mr = mrs[op.key];
		if (op.offset > mr->len_bytes || op.len_bytes > mr->len_bytes - op.offset)
			return -ERANGE;
		places[i].mr = mr;
		places[i].offset = op.offset;
		places[i].len_bytes = op.len_bytes;
	}
	return 0;
}

static bool serve_bounces(const struct kvx_ep *ep, const struct fab_place *places, uint32_t n)
{
	return ep->dom->gpu != NULL && fab_places_bounce(places, n);
}

/* 0; -EAGAIN: later. */
static int serve_write(struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	struct fab_place places[KVX_PACK_MAX_OPS];
	int rc;

	/* A receive buffer has room for more where the head is short; others have not. */
	if (msg->data_bytes > ep->dom->message_bytes) {
		fab_serve_bad(ep, "more data in a message of the peer than it was allowed");
		return 0;
	}
	rc = fab_serve_resolve(ep, msg, KVX_ACCESS_WRITE, places);
	if (rc == 0 && serve_bounces(ep, places, msg->n_ops)) {
		rc = fab_ep_lease_over(ep) ? -EHOSTDOWN : fab_bounce_place(ep, msg, places);
		if (rc == 0 || rc == -EAGAIN)
			return rc;
	} else if (rc == 0) {
		rc = fab_scatter(ep, msg->data, places, msg->n_ops);
	}
	fab_serve_ack(ep, msg->id, rc);
	return 0;
}

static struct fab_reply *serve_find_reply(struct kvx_ep *ep)
{
	for (unsigned i = 0; i < FAB_N_REPLY; i++)
		if (!ep->replies[i].sending)
			return &ep->replies[i];
	return NULL;
}

/* All of them large, and few enough? */
static bool serve_can_place(const struct kvx_ep *ep, const struct fab_place *places, uint32_t n)
{
	if (n > ep->limits.placed_ops)
		return false;
	for (uint32_t i = 0; i < n; i++)
		if (!fab_place_wants(ep, places[i].len_bytes))
			return false;
	return true;
}

/* 0: answered; -EAGAIN: later; -ENOBUFS: not before a reply is free. */
static int serve_read(struct kvx_ep *ep, const struct kvx_pack_msg *msg)
{
	struct fab_reply *reply = serve_find_reply(ep);
	struct fab_place places[KVX_PACK_MAX_OPS];
	struct fab_out out = {.ep = ep, .room = true, .places = places, .n_places = msg->n_ops};
	unsigned n_direct = 0;
	int rc;

	if (reply == NULL && ep->dom->gpu == NULL)
		return -ENOBUFS;
	rc = fab_serve_resolve(ep, msg, KVX_ACCESS_READ, places);
	if (rc == 0 && msg->data_bytes > ep->limits.message_bytes)
		rc = -EMSGSIZE;
	if (rc == 0 && fab_ep_lease_over(ep))
		rc = -EHOSTDOWN;
	if (rc == 0 && serve_bounces(ep, places, msg->n_ops)) {
		rc = fab_bounce_reply(ep, msg, places, serve_can_place(ep, places, msg->n_ops));
		if (rc == 0)
			return 0;
	} else if (rc == 0 && reply == NULL) {
		return -ENOBUFS;
	} else if (rc == 0) {
		bool place = serve_can_place(ep, places, msg->n_ops);

		n_direct = place ? msg->n_ops : fab_out_n_direct(ep, places, msg->n_ops);
		out.head = reply->buf;
		out.head_len =
		    kvx_pack_data(reply->buf, place ? KVX_PACK_DATA_AHEAD : KVX_PACK_DATA,
				  ep->peer_secret, msg->id, msg->data_bytes);
		out.ctx = fab_ctx(ep, FAB_CTX_REPLY, (unsigned)(reply - ep->replies));
		rc = place ? fab_place_send(&out) : fab_out_send(&out, n_direct);
	}
	if (rc == -EAGAIN)
		return rc;
	if (rc == -EFAULT || (rc < 0 && out.head == NULL)) {
		fab_serve_ack(ep, msg->id, rc);
		return 0;
	}
	if (rc < 0) {
		fab_ep_break(ep, rc, 0, "sending to the peer failed");
		return 0;
	}
	reply->sending = true;
	reply->n_direct = n_direct;
	for (unsigned i = 0; i < n_direct; i++)
		reply->direct[i] = places[msg->n_ops - 1 - i].mr;
	return 0;
}

/* READs are answered in order; one that cannot be answered now is kept, which frees its receive
 * buffer: it has no data. */
static void serve_read_or_keep(struct kvx_ep *ep, const struct kvx_pack_msg *msg,
			       const uint8_t *raw, size_t len)
{
	struct fab_waiting *w;
	int rc = ep->n_waiting == 0 ? serve_read(ep, msg) : -EAGAIN;

	if (rc == 0)
		return;
	w = &ep->waiting[(ep->waiting_head + ep->n_waiting) % ep->dom->queue];
	kvx_assert(len <= sizeof(w->msg));
	memcpy(w->msg, raw, len);
	w->len = (uint32_t)len;
	w->for_reply = rc == -ENOBUFS;
	ep->n_waiting++;
	fab_ep_dirty(ep);
}

static void serve_check(struct kvx_ep *ep, int rc, const char *text)
{
	if (rc == -EPROTO)
		fab_serve_bad(ep, text);
}

/* 0; -EAGAIN: it has to wait. */
static int serve_request(struct kvx_ep *ep, const struct kvx_pack_msg *msg, const uint8_t *raw,
			 size_t len)
{
	int rc = 0;

	if (serve_window_full(ep)) {
		fab_serve_bad(ep, "more requests of the peer than it was allowed");
	} else if (msg->type == KVX_PACK_WRITE) {
		rc = serve_write(ep, msg);
	} else if (msg->type == KVX_PACK_WRITE_AHEAD) {
		rc = fab_place_on_write(ep, msg, raw, len);
		serve_check(ep, rc, "more announced by the peer than it was allowed");
	} else {
		serve_read_or_keep(ep, msg, raw, len);
	}
	return rc == -EAGAIN ? rc : 0;
}

/* Likewise. */
static int serve_msg(struct kvx_ep *ep, const struct kvx_pack_msg *msg, const uint8_t *raw,
		     size_t len)
{
	int rc = 0;

	if ((msg->type == KVX_PACK_HELLO) != (ep->state == FAB_EP_CONNECTING) ||
	    (msg->type == KVX_PACK_HELLO && ep->hello_got)) {
		fab_serve_bad(ep, "message of the peer out of order");
		return 0;
	}
	switch (msg->type) {
	case KVX_PACK_HELLO:
		fab_ep_on_hello(ep, &msg->hello);
		break;
	case KVX_PACK_WRITE:
	case KVX_PACK_WRITE_AHEAD:
	case KVX_PACK_READ:
		return serve_request(ep, msg, raw, len);
	case KVX_PACK_DATA:
		rc = fab_msg_on_data(ep, msg);
		serve_check(ep, rc, "data of the peer that was not asked for");
		break;
	case KVX_PACK_DATA_AHEAD:
		rc = fab_place_on_data(ep, msg, raw, len);
		serve_check(ep, rc, "data of the peer that was not asked for");
		break;
	case KVX_PACK_ACK:
		rc = fab_msg_on_ack(ep, msg);
		serve_check(ep, rc, "answer of the peer to nothing");
		break;
	}
	return rc == -EAGAIN ? rc : 0;
}

static void serve_post_rx(struct kvx_ep *ep, unsigned i)
{
	int rc;

	if (ep->fid == NULL || (ep->dom->placing && i == FAB_RX_SINK))
		return;
	rc = fab_ep_post_rx(ep, i);
	if (rc < 0)
		fab_ep_break(ep, rc, 0, "posting a receive buffer failed");
}

void fab_serve_rx(struct kvx_ep *ep, unsigned i, size_t len)
{
	struct kvx_pack_msg msg;
	int rc = kvx_pack_decode(ep->rx[i], len, &msg);

	if (rc == 0 && msg.secret == ep->secret) {
		if (ep->n_stalled > 0 || serve_msg(ep, &msg, ep->rx[i], len) == -EAGAIN) {
			kvx_assert(ep->n_stalled < FAB_N_RX);
			ep->stalled[ep->n_stalled++] = (struct fab_stalled){i, len};
			return;
		}
	} else if (ep->dom->connected_eps) {
		fab_serve_bad(ep, "malformed message of the peer");
	} else {
		/* Anyone who knows the address can send to a connectionless endpoint: what does not
		 * know the secret is not the peer's, and must not harm it. */
		ep->dom->n_bad++;
	}
	serve_post_rx(ep, i);
}

/* Messages that wait in their receive buffers go first, in the order in which they came. */
static void flush_stalled(struct kvx_ep *ep)
{
	while (ep->n_stalled > 0 && ep->fid != NULL) {
		struct fab_stalled first = ep->stalled[0];
		struct kvx_pack_msg msg;
		int rc = kvx_pack_decode(ep->rx[first.rx], first.len, &msg);

		kvx_assert(rc == 0); /* it was decoded when it came */
		if (serve_msg(ep, &msg, ep->rx[first.rx], first.len) == -EAGAIN || ep->fid == NULL)
			return;
		ep->n_stalled--;
		memmove(ep->stalled, ep->stalled + 1, ep->n_stalled * sizeof(ep->stalled[0]));
		serve_post_rx(ep, first.rx);
	}
}

static void flush_waiting(struct kvx_ep *ep)
{
	while (ep->n_waiting > 0 && ep->fid != NULL) {
		struct fab_waiting *w = &ep->waiting[ep->waiting_head];
		struct kvx_pack_msg msg;
		int rc;

		if (w->for_reply && serve_find_reply(ep) == NULL)
			return;
		rc = kvx_pack_decode(w->msg, w->len, &msg);
		kvx_assert(rc == 0); /* it was decoded when it came */
		rc = serve_read(ep, &msg);
		w->for_reply = rc == -ENOBUFS;
		if (rc < 0)
			return;
		if (ep->fid == NULL)
			return;
		ep->waiting_head = (ep->waiting_head + 1) % ep->dom->queue;
		ep->n_waiting--;
	}
}

static void flush_acks(struct kvx_ep *ep)
{
	uint8_t buf[FAB_ACK_BYTES];
	size_t room = ep->dom->inject_bytes < sizeof(buf) ? ep->dom->inject_bytes : sizeof(buf);
	uint32_t max = (uint32_t)((room - KVX_PACK_HDR_BYTES) / KVX_PACK_ACK_BYTES);

	while (ep->n_acks > 0) {
		uint32_t n = ep->n_acks < max ? ep->n_acks : max;
		uint32_t len = kvx_pack_acks(buf, sizeof(buf), ep->peer_secret, ep->acks, n);
		int rc = fabric_err(fi_inject(ep->fid, buf, len, ep->peer));

		if (rc == -EAGAIN)
			return;
		if (rc < 0) {
			fab_ep_break(ep, rc, 0, "sending to the peer failed");
			return;
		}
		ep->n_acks -= n;
		memmove(ep->acks, ep->acks + n, ep->n_acks * sizeof(*ep->acks));
	}
}

void fab_serve_flush(struct kvx_ep *ep)
{
	int rc;

	if (ep->fid == NULL)
		return;
	rc = fab_place_settle(ep);
	if (rc < 0 && rc != -EAGAIN) {
		fab_ep_break(ep, rc, 0, "sending to the peer failed");
		return;
	}
	/* What has come goes on, whether we can send or not: the peer may wait for that. */
	ep->bounce_wait = false;
	flush_stalled(ep);
	flush_waiting(ep);
	if (ep->fid != NULL && !ep->owed.active)
		flush_acks(ep);
}

bool fab_serve_stuck(const struct kvx_ep *ep)
{
	bool sending = false;

	for (unsigned i = 0; i < FAB_N_REPLY; i++)
		sending |= ep->replies[i].sending;
	/* What waits for GPU memory is looked at by a timer. */
	return ep->owed.active || ep->n_acks > 0 ||
	       (ep->n_waiting > 0 && !sending && !ep->bounce_wait);
}
