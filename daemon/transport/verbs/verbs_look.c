/* A look at GPU memory through its new registrations, before they are told to anybody: a dma-buf or
 * an address that leads to other bytes would be found out by nothing else. What the device reads at
 * some places (verbs_see.c) is compared with what the owner has told or, as its engine may be at
 * work on them and not every registration has a place that it told of, with what the GPU shows its
 * home at the same time. [mem]; blocks. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "transport/verbs/verbs_priv.h"

#define HOME_NS     (5 * KVX_SEC)
#define LOOK_TRIES  8u /* of places that an engine writes at this moment */
#define PLACE_BYTES VERBS_PLACE_BYTES
#define PLACES      VERBS_PLACES

struct look {
	struct verbs_see see;
	/* The home's view, opened when it is first needed; gpu NULL: there is none. */
	const struct kvx_gpu_mem *gpu;
	struct kvx_gpu_copier *copier;
	uint8_t *home; /* VERBS_PLACES_BYTES, page-locked */
};

/* --- what the GPU shows its home */

static bool home_can(const struct look *look)
{
	return look->gpu != NULL && look->gpu->access->copier_open != NULL &&
	       look->gpu->access->host_alloc != NULL;
}

static int home_open(struct look *look)
{
	const struct kvx_gpu_access *access = look->gpu->access;
	uint64_t until = kvx_now_ns() + VERBS_GPU_BUSY_NS;
	void *home;
	int err;

	if (look->copier != NULL)
		return 0;
	do
		err = access->host_alloc(look->gpu->device, VERBS_PLACES_BYTES, &home);
	while (verbs_gpu_again(err, until));
	if (err < 0)
		return err;
	do
		err = access->copier_open(look->gpu->device, 1, &look->copier);
	while (verbs_gpu_again(err, until));
	if (err < 0)
		access->host_free(look->gpu->device, home);
	else
		look->home = home;
	return err;
}

static int home_read(struct look *look, const struct verbs_place *places, uint32_t n)
{
	const struct kvx_gpu_access *access = look->gpu->access;
	struct kvx_gpu_piece pieces[PLACES];
	uint64_t end, room;
	unsigned ticket;
	int err = home_open(look);

	end = kvx_now_ns() + HOME_NS;
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
		verbs_see_pause();
	}
	return err < 0 ? err : 0;
}

static void look_end(struct look *look)
{
	if (look->copier != NULL) {
		look->gpu->access->copier_close(look->copier);
		look->gpu->access->host_free(look->gpu->device, look->home);
	}
	verbs_see_end(&look->see);
}

/* --- both */

/* The first place at which they differ; n: none does. `open`: where they have not agreed so far. */
static uint32_t places_compare(const struct look *look, const struct verbs_place *places,
			       uint32_t n, const uint8_t *bytes, bool *open)
{
	uint32_t first = n;

	for (uint32_t i = n; i-- > 0;) {
		const uint8_t *seen = verbs_see_bytes(&look->see) + i * PLACE_BYTES;

		if (open[i])
			open[i] = memcmp(seen, bytes + i * PLACE_BYTES, places[i].len_bytes) != 0;
		if (open[i])
			first = i;
	}
	return first;
}

/* told: what the owner saw, PLACE_BYTES each; NULL: it has told nothing of these places. Home and
 * device may look at a place between two writes of an engine: so more than once. */
static int places_check(struct look *look, const struct verbs_place *places, uint32_t n,
			const uint8_t *told, struct kvx_why *why)
{
	bool open[PLACES];
	uint32_t bad = n;
	int err;

	memset(open, true, sizeof(open));
	if (told != NULL) {
		err = verbs_see_places(&look->see, places, n, why);
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
		err = verbs_see_places(&look->see, places, n, why);
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
	struct verbs_place places[PLACES];
	uint8_t told[VERBS_PLACES_BYTES];

	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		places[i] = (struct verbs_place){gpu->witnesses[i].offset, PLACE_BYTES};
		memcpy(told + i * PLACE_BYTES, gpu->witnesses[i].bytes, PLACE_BYTES);
	}
	return places_check(look, places, gpu->n_witnesses, told, why);
}

/* The begin of each registration in which no witness is. seen: by number of the registration, all
 * false. */
static int others_check(struct look *look, const struct kvx_gpu_mem *gpu, bool *seen,
			struct kvx_why *why)
{
	const struct verbs_see *see = &look->see;
	struct verbs_piece hit = see->pieces[0];
	struct verbs_place places[PLACES];
	uint32_t n = 0;
	int err = 0;

	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		verbs_piece_find(&hit, see->pieces, see->n_pieces, gpu->witnesses[i].offset);
		seen[hit.mr] = true;
	}
	for (uint32_t i = 0; i < see->n_pieces && err == 0; i++) {
		const struct verbs_piece *piece = &see->pieces[i];

		if (seen[piece->mr])
			continue;
		seen[piece->mr] = true;
		places[n++] = (struct verbs_place){piece->start, piece->len_bytes < PLACE_BYTES
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
	    .see = {.dom = mr->dom, .pd = pd, .pieces = mr->pieces, .n_pieces = mr->n_pieces},
	    .gpu = gpu};
	bool *seen;
	int err;

	if (gpu->n_witnesses == 0)
		return kvx_why(why, -EOPNOTSUPP,
			       "its owner has told nothing to compare: update its client library");
	seen = calloc(mr->n_mrs, sizeof(*seen));
	if (seen == NULL)
		return kvx_why(why, -ENOMEM, "the daemon has no memory left");
	err = verbs_see_begin(&look.see, why);
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
	const struct verbs_place place = {piece->start, KVX_GPU_FLUSH_MARK_BYTES};
	struct look look = {.see = {.dom = dom, .pd = pd, .pieces = piece, .n_pieces = 1}};
	int err = verbs_see_begin(&look.see, why);

	if (err < 0)
		return err;
	err = places_check(&look, &place, 1, mark, why);
	look_end(&look);
	return err;
}
