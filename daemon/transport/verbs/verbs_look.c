/* A look at GPU memory through its new registrations, before they are told to anybody: a dma-buf or
 * an address that leads to other bytes would be found out by nothing else. The device is made to
 * read some places by a loopback (verbs_pair.c). They are compared with what the owner has told or,
 * as its engine may be at work on them and not every registration has a place that it told of, with
 * what the GPU shows its home at the same time. [mem]; blocks. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define VERIFY_NS      (5 * KVX_SEC)
#define NO_LOOPBACK_NS (60 * KVX_SEC)
#define LOOK_PAUSE_NS  50000
#define LOOK_TRIES     8u /* of places that an engine writes at this moment */
#define PLACE_BYTES    KVX_GPU_WITNESS_BYTES
#define PLACES         KVX_GPU_MAX_WITNESSES /* looked at together */
#define PLACES_BYTES   (PLACES * PLACE_BYTES)
/* Where in the page the device writes what it sees, and where that is read back to. */
#define SEEN_AT 0u
#define BACK_AT (VERBS_PAIR_BYTES / 2)
_Static_assert(PLACES_BYTES <= BACK_AT, "what it sees has room in half a page");

struct place {
	uint64_t offset;
	uint32_t len_bytes; /* PLACE_BYTES at most */
};

struct look {
	struct kvx_dom *dom;
	const struct verbs_piece *pieces;
	uint32_t n_pieces;
	struct verbs_pair pair;
	/* The home's view, opened when it is first needed; gpu NULL: there is none. */
	const struct kvx_gpu_mem *gpu;
	struct kvx_gpu_copier *copier;
	uint8_t *home; /* PLACES_BYTES, page-locked */
};

/* --- what the device sees */

static int look_begin(struct look *look, struct ibv_pd *pd, struct kvx_why *why)
{
	struct kvx_dom *dom = look->dom;
	int err;

	if (kvx_now_ns() < dom->no_loopback_until_ns &&
	    atomic_load(&dom->port_news) == dom->no_loopback_news)
		return kvx_why(why, -EOPNOTSUPP, "%s", dom->no_loopback_why.text);
	dom->no_loopback_news = atomic_load(&dom->port_news);
	dom->no_loopback_until_ns = 0;
	err = verbs_pair_make(
	    dom, pd, NULL, 2 * PLACES + 1,
	    IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ, &look->pair);
	if (err < 0)
		return kvx_why(why, -EOPNOTSUPP, "there is no loopback: %s",
			       err == -ENETDOWN || err == -EHOSTUNREACH
				   ? "the port is down or has no address; regions that are "
				     "registered once it is up are taken"
				   : strerror(-err));
	return 0;
}

/* The next region must not wait as long: others wait behind it. */
static int look_no_answer(struct look *look, const struct kvx_why *why)
{
	look->dom->no_loopback_why = *why;
	look->dom->no_loopback_until_ns = kvx_now_ns() + NO_LOOPBACK_NS;
	return -EOPNOTSUPP;
}

static int post_err(int err)
{
	return verbs_err(err > 0 ? err : err < 0 ? EIO : 0);
}

/* The device writes the place's bytes into the page: one work request for each piece that it runs
 * over, two at most. By the local key: a region that nobody may read has no other. */
static int place_post(struct look *look, const struct place *place, unsigned slot)
{
	uint64_t to = (uintptr_t)look->pair.page + SEEN_AT + slot * PLACE_BYTES;
	uint64_t offset = place->offset;
	struct verbs_piece hit = look->pieces[0];
	uint32_t left = place->len_bytes;
	int err = 0;

	for (unsigned i = 0; left > 0 && i < 2 && err == 0; i++) {
		struct ibv_send_wr wr, *bad;
		struct ibv_sge sge;
		uint64_t room;

		verbs_piece_find(&hit, look->pieces, look->n_pieces, offset);
		room = hit.len_bytes - (offset - hit.start);
		sge = (struct ibv_sge){.addr = offset + hit.delta,
				       .length = room < left ? (uint32_t)room : left,
				       .lkey = hit.key};
		wr = (struct ibv_send_wr){
		    .sg_list = &sge,
		    .num_sge = 1,
		    .opcode = IBV_WR_RDMA_WRITE,
		    .wr.rdma = {.remote_addr = to, .rkey = look->pair.page_mr->rkey}};
		err = ibv_post_send(look->pair.qps[0], &wr, &bad);
		offset += sge.length;
		to += sge.length;
		left -= sge.length;
	}
	return post_err(err);
}

/* All that was written is read back: only that is known to be what the page holds. */
static int back_post(struct look *look, uint32_t len_bytes)
{
	struct verbs_pair *pair = &look->pair;
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

static void look_pause(void)
{
	static const struct timespec pause = {.tv_nsec = LOOK_PAUSE_NS};

	nanosleep(&pause, NULL);
}

static int back_wait(struct look *look, struct kvx_why *why)
{
	uint64_t end = kvx_now_ns() + VERIFY_NS;
	struct ibv_wc wc;
	int n;

	while ((n = ibv_poll_cq(look->pair.cq, 1, &wc)) == 0 && kvx_now_ns() < end)
		look_pause();
	if (n == 0) {
		kvx_why(why, 0, "the device did not read it within %" PRIu64 " s",
			(uint64_t)(VERIFY_NS / KVX_SEC));
		return look_no_answer(look, why);
	}
	if (n < 0)
		return kvx_why(why, -EOPNOTSUPP, "its completion queue cannot be read");
	if (wc.status == IBV_WC_SUCCESS)
		return 0;
	kvx_why(why, 0, "%s (code %d)", verbs_wc_text(wc.status),
		wc.vendor_err != 0 ? (int)wc.vendor_err : (int)wc.status);
	return wc.status == IBV_WC_RETRY_EXC_ERR ? look_no_answer(look, why) : -EOPNOTSUPP;
}

/* Into the page, at BACK_AT. */
static int places_read(struct look *look, const struct place *places, uint32_t n,
		       struct kvx_why *why)
{
	int err = 0;

	memset(look->pair.page, 0, VERBS_PAIR_BYTES);
	for (uint32_t i = 0; i < n && err == 0; i++)
		err = place_post(look, &places[i], i);
	if (err == 0)
		err = back_post(look, n * PLACE_BYTES);
	if (err < 0)
		return kvx_why(why, -EOPNOTSUPP, "work requests were refused: %s", strerror(-err));
	return back_wait(look, why);
}

/* --- what the GPU shows its home */

static bool home_can(const struct look *look)
{
	return look->gpu != NULL && look->gpu->access->copier_open != NULL &&
	       look->gpu->access->host_alloc != NULL;
}

static int home_open(struct look *look)
{
	const struct kvx_gpu_access *access = look->gpu->access;
	void *home;
	int err;

	if (look->copier != NULL)
		return 0;
	err = access->host_alloc(look->gpu->device, PLACES_BYTES, &home);
	if (err < 0)
		return err;
	err = access->copier_open(look->gpu->device, 1, &look->copier);
	if (err < 0)
		access->host_free(look->gpu->device, home);
	else
		look->home = home;
	return err;
}

static int home_read(struct look *look, const struct place *places, uint32_t n)
{
	const struct kvx_gpu_access *access = look->gpu->access;
	struct kvx_gpu_piece pieces[PLACES];
	uint64_t end = kvx_now_ns() + VERIFY_NS, room;
	unsigned ticket;
	int err = home_open(look);

	for (uint32_t i = 0; i < n && err == 0; i++)
		pieces[i] = (struct kvx_gpu_piece){
		    .dst = (uintptr_t)look->home + i * PLACE_BYTES,
		    .src = kvx_gpu_mem_addr(look->gpu, places[i].offset, &room),
		    .len_bytes = places[i].len_bytes};
	if (err == 0)
		err = access->copier_start(look->copier, pieces, n, &ticket);
	if (err < 0)
		return err;
	while ((err = access->copier_poll(look->copier, ticket)) == 0) {
		if (kvx_now_ns() >= end)
			return -ETIMEDOUT; /* closing the copier sees to the rest */
		look_pause();
	}
	return err < 0 ? err : 0;
}

static void look_end(struct look *look)
{
	if (look->copier != NULL) {
		look->gpu->access->copier_close(look->copier);
		look->gpu->access->host_free(look->gpu->device, look->home);
	}
	verbs_pair_end(look->dom, &look->pair);
}

/* --- both */

/* The first place at which they differ; n: none does. `open`: where they have not agreed so far. */
static uint32_t places_compare(const struct look *look, const struct place *places, uint32_t n,
			       const uint8_t *bytes, bool *open)
{
	uint32_t first = n;

	for (uint32_t i = n; i-- > 0;) {
		const uint8_t *seen = look->pair.page + BACK_AT + i * PLACE_BYTES;

		if (open[i])
			open[i] = memcmp(seen, bytes + i * PLACE_BYTES, places[i].len_bytes) != 0;
		if (open[i])
			first = i;
	}
	return first;
}

/* told: what the owner saw, PLACE_BYTES each; NULL: it has told nothing of these places. Home and
 * device may look at a place between two writes of an engine: so more than once. */
static int places_check(struct look *look, const struct place *places, uint32_t n,
			const uint8_t *told, struct kvx_why *why)
{
	bool open[PLACES];
	uint32_t bad = n;
	int err;

	memset(open, true, sizeof(open));
	if (told != NULL) {
		err = places_read(look, places, n, why);
		if (err < 0)
			return err;
		bad = places_compare(look, places, n, told, open);
		if (bad == n)
			return 0;
	}
	for (unsigned i = 0; i < LOOK_TRIES && home_can(look); i++) {
		err = home_read(look, places, n);
		if (err < 0)
			return kvx_why(why, -EOPNOTSUPP,
				       "the GPU cannot be asked what is there: %s", strerror(-err));
		err = places_read(look, places, n, why);
		if (err < 0)
			return err;
		bad = places_compare(look, places, n, look->home, open);
		if (bad == n)
			return 0;
	}
	if (bad == n)
		return 0; /* nothing is known to compare with */
	return kvx_why(why, -EFAULT,
		       "the device sees other memory at byte %" PRIu64
		       " than the GPU does: the GPU's driver exports another place than it says "
		       "(update it), or an engine writes there without a pause",
		       places[bad].offset);
}

static int witnesses_check(struct look *look, const struct kvx_gpu_mem *gpu, struct kvx_why *why)
{
	struct place places[PLACES];
	uint8_t told[PLACES_BYTES];

	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		places[i] = (struct place){gpu->witnesses[i].offset, PLACE_BYTES};
		memcpy(told + i * PLACE_BYTES, gpu->witnesses[i].bytes, PLACE_BYTES);
	}
	return places_check(look, places, gpu->n_witnesses, told, why);
}

/* The begin of each registration in which no witness is. seen: by number of the registration, all
 * false. */
static int others_check(struct look *look, const struct kvx_gpu_mem *gpu, bool *seen,
			struct kvx_why *why)
{
	struct verbs_piece hit = look->pieces[0];
	struct place places[PLACES];
	uint32_t n = 0;
	int err = 0;

	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		verbs_piece_find(&hit, look->pieces, look->n_pieces, gpu->witnesses[i].offset);
		seen[hit.mr] = true;
	}
	for (uint32_t i = 0; i < look->n_pieces && err == 0; i++) {
		const struct verbs_piece *piece = &look->pieces[i];

		if (seen[piece->mr])
			continue;
		seen[piece->mr] = true;
		places[n++] = (struct place){piece->start, piece->len_bytes < PLACE_BYTES
							       ? (uint32_t)piece->len_bytes
							       : PLACE_BYTES};
		if (n < PLACES)
			continue;
		err = places_check(look, places, n, NULL, why);
		n = 0;
	}
	return err == 0 && n > 0 ? places_check(look, places, n, NULL, why) : err;
}

int verbs_gpu_verify(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
		     struct kvx_why *why)
{
	struct look look = {
	    .dom = mr->dom, .pieces = mr->pieces, .n_pieces = mr->n_pieces, .gpu = gpu};
	bool *seen;
	int err;

	if (gpu->n_witnesses == 0)
		return kvx_why(why, -EOPNOTSUPP,
			       "its owner has told nothing to compare: update its client library");
	seen = calloc(mr->n_mrs, sizeof(*seen));
	if (seen == NULL)
		return kvx_why(why, -ENOMEM, "the daemon has no memory left");
	err = look_begin(&look, pd, why);
	if (err == 0) {
		err = witnesses_check(&look, gpu, why);
		if (err == 0)
			err = others_check(&look, gpu, seen, why);
		look_end(&look);
	}
	free(seen);
	return err;
}

int verbs_flush_verify(struct kvx_dom *dom, struct ibv_pd *pd, const struct verbs_piece *piece,
		       const uint8_t mark[KVX_GPU_FLUSH_MARK_BYTES], struct kvx_why *why)
{
	const struct place place = {piece->start, KVX_GPU_FLUSH_MARK_BYTES};
	struct look look = {.dom = dom, .pieces = piece, .n_pieces = 1};
	int err = look_begin(&look, pd, why);

	if (err < 0)
		return err;
	err = places_check(&look, &place, 1, mark, why);
	look_end(&look);
	return err;
}
