/* What the device sees at some places of GPU memory: it writes their bytes into a page of the
 * daemon's by a loopback (verbs_pair.c), through registrations that nobody else knows yet, and the
 * page is read back by another work request. When no answer comes it is either the memory that does
 * not answer or the port's own loopback: a read of the page alone tells which, and only the port is
 * remembered, for a while, as its regions would all wait as long. [mem]; blocks. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define ANSWER_NS      (5 * KVX_SEC)
#define NO_LOOPBACK_NS (60 * KVX_SEC)
#define PAUSE_NS       50000
/* Where in the page the device writes what it sees, and where that is read back to. */
#define SEEN_AT 0u
#define BACK_AT (VERBS_PAIR_BYTES / 2)
_Static_assert(VERBS_PLACES_BYTES <= BACK_AT, "what it sees has room in half a page");

void verbs_see_pause(void)
{
	static const struct timespec pause = {.tv_nsec = PAUSE_NS};

	nanosleep(&pause, NULL);
}

const uint8_t *verbs_see_bytes(const struct verbs_see *see)
{
	return see->pair.page + BACK_AT;
}

/* --- a port whose loopback does not answer */

static int no_loopback_now(struct kvx_dom *dom, struct kvx_why *why)
{
	int err = 0;

	verbs_flush_enter(dom);
	if (kvx_now_ns() < dom->no_loopback_until_ns &&
	    atomic_load(&dom->port_news) == dom->no_loopback_news)
		err = kvx_why(why, -EOPNOTSUPP, "%s", dom->no_loopback_why.text);
	verbs_flush_leave(dom);
	return err;
}

/* The next region must not wait as long: others wait behind it. news: of before it was tried. */
static void no_loopback_note(struct kvx_dom *dom, uint32_t news, const struct kvx_why *why)
{
	verbs_flush_enter(dom);
	dom->no_loopback_why = *why;
	dom->no_loopback_news = news;
	dom->no_loopback_until_ns = kvx_now_ns() + NO_LOOPBACK_NS;
	verbs_flush_leave(dom);
}

/* --- one look */

static int see_pair(struct verbs_see *see)
{
	return verbs_pair_make(
	    see->dom, see->pd, NULL, 2 * VERBS_PLACES + 1,
	    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ, &see->pair);
}

int verbs_see_begin(struct verbs_see *see, struct kvx_why *why)
{
	int err = no_loopback_now(see->dom, why);

	if (err < 0)
		return err;
	see->news = atomic_load(&see->dom->port_news);
	err = see_pair(see);
	if (err < 0)
		return kvx_why(why, -EOPNOTSUPP, "there is no loopback: %s",
			       err == -ENETDOWN || err == -EHOSTUNREACH
				   ? "the port is down or has no address; regions that are "
				     "registered once it is up are taken"
				   : strerror(-err));
	return 0;
}

void verbs_see_end(struct verbs_see *see)
{
	verbs_pair_end(see->dom, &see->pair);
}

static int post_err(int err)
{
	return verbs_err(err > 0 ? err : err < 0 ? EIO : 0);
}

/* The device writes the place's bytes into the page: one work request for each piece that it runs
 * over, two at most. By the local key: a region that nobody may read has no other. */
static int place_post(struct verbs_see *see, const struct verbs_place *place, unsigned slot)
{
	uint64_t to = (uintptr_t)see->pair.page + SEEN_AT + slot * VERBS_PLACE_BYTES;
	uint64_t offset = place->offset;
	struct verbs_piece hit = see->pieces[0];
	uint32_t left = place->len_bytes;
	int err = 0;

	for (unsigned i = 0; left > 0 && i < 2 && err == 0; i++) {
		struct ibv_send_wr wr, *bad;
		struct ibv_sge sge;
		uint64_t room;

		verbs_piece_find(&hit, see->pieces, see->n_pieces, offset);
		room = hit.len_bytes - (offset - hit.start);
		sge = (struct ibv_sge){.addr = offset + hit.delta,
				       .length = room < left ? (uint32_t)room : left,
				       .lkey = hit.key};
		wr = (struct ibv_send_wr){
		    .sg_list = &sge,
		    .num_sge = 1,
		    .opcode = IBV_WR_RDMA_WRITE,
		    .wr.rdma = {.remote_addr = to, .rkey = see->pair.page_mr->rkey}};
		err = ibv_post_send(see->pair.qps[0], &wr, &bad);
		offset += sge.length;
		to += sge.length;
		left -= sge.length;
	}
	return post_err(err);
}

/* All that was written is read back: only that is known to be what the page holds. */
static int back_post(struct verbs_see *see, uint32_t len_bytes)
{
	struct verbs_pair *pair = &see->pair;
	struct ibv_sge sge = {.addr = (uintptr_t)pair->page + BACK_AT,
			      .length = len_bytes,
			      .lkey = pair->page_mr->lkey};
	struct ibv_send_wr wr = {.sg_list = &sge,
				 .num_sge = 1,
				 .opcode = IBV_WR_RDMA_READ,
				 .send_flags = IBV_SEND_SIGNALED,
				 .wr.rdma = {.remote_addr = (uintptr_t)pair->page + SEEN_AT,
					     .rkey = pair->page_mr->rkey}};
	struct ibv_send_wr *bad;

	return post_err(ibv_post_send(pair->qps[0], &wr, &bad));
}

/* 0; -ETIMEDOUT: no answer came; -EOPNOTSUPP: an error did. */
static int back_wait(struct verbs_see *see, struct kvx_why *why)
{
	uint64_t end = kvx_now_ns() + ANSWER_NS;
	struct ibv_wc wc;
	int n;

	while ((n = ibv_poll_cq(see->pair.cq, 1, &wc)) == 0 && kvx_now_ns() < end)
		verbs_see_pause();
	if (n == 0)
		return kvx_why(why, -ETIMEDOUT, "the device did not read it within %" PRIu64 " s",
			       (uint64_t)(ANSWER_NS / KVX_SEC));
	if (n < 0)
		return kvx_why(why, -EOPNOTSUPP, "its completion queue cannot be read");
	if (wc.status == IBV_WC_SUCCESS)
		return 0;
	return kvx_why(why, wc.status == IBV_WC_RETRY_EXC_ERR ? -ETIMEDOUT : -EOPNOTSUPP,
		       "%s (code %d)", verbs_wc_text(wc.status),
		       wc.vendor_err != 0 ? (int)wc.vendor_err : (int)wc.status);
}

static int see_try(struct verbs_see *see, const struct verbs_place *places, uint32_t n,
		   struct kvx_why *why)
{
	int err = 0;

	memset(see->pair.page, 0, VERBS_PAIR_BYTES);
	for (uint32_t i = 0; i < n && err == 0; i++)
		err = place_post(see, &places[i], i);
	if (err == 0)
		err = back_post(see, (n > 0 ? n : 1) * VERBS_PLACE_BYTES);
	if (err < 0)
		return kvx_why(why, -EOPNOTSUPP, "work requests were refused: %s", strerror(-err));
	return back_wait(see, why);
}

/* By a pair of its own: the other one is at work on what does not answer. */
static int no_answer(const struct verbs_see *see, struct kvx_why *why)
{
	struct verbs_see other = {.dom = see->dom, .pd = see->pd};
	struct kvx_why no_why;
	size_t len = strlen(why->text);
	int err = see_pair(&other);

	if (err < 0)
		return -EOPNOTSUPP; /* the port is down: the next one finds that out at once */
	err = see_try(&other, NULL, 0, &no_why);
	verbs_see_end(&other);
	if (err == -ETIMEDOUT)
		no_loopback_note(see->dom, see->news, why);
	else if (err == 0)
		snprintf(why->text + len, sizeof(why->text) - len,
			 "; other memory it does read: does the GPU answer?");
	return -EOPNOTSUPP;
}

int verbs_see_places(struct verbs_see *see, const struct verbs_place *places, uint32_t n,
		     struct kvx_why *why)
{
	int err = see_try(see, places, n, why);

	return err == -ETIMEDOUT ? no_answer(see, why) : err;
}
