/* Makes up a transfer: direction, form, sizes and places; announces and submits it. */
#include "drive.h"

#include <errno.h>
#include <string.h>

#define PAYLOAD_MIN 16u

/* Mostly small, with all sizes up to the largest: the smallest times two to the power of a cubed
 * uniform number. */
static uint32_t pick_len(struct drive *d, enum drv_form form)
{
	uint64_t len = d->op_bytes_min;
	unsigned doublings = 0;
	uint64_t u;

	if (form == DRV_FORM_BLOCKS)
		return DRV_CELL;
	if (form == DRV_FORM_LARGE)
		return DRV_LARGE;
	while (len << (doublings + 1) <= d->op_bytes_max)
		doublings++;
	u = drv_random_below(&d->random, 1000);
	len <<= u * u * u * (doublings + 1) / 1000000000ull;
	if (drv_random_pct(&d->random, 30))
		len += drv_random_below(&d->random, len);
	return (uint32_t)(len < d->op_bytes_max ? len : d->op_bytes_max);
}

static enum drv_form pick_form(struct drive *d)
{
	if (!drv_random_pct(&d->random, d->form_pct))
		return DRV_FORM_OPS;
	return (enum drv_form)(DRV_FORM_BLOCKS + drv_random_below(&d->random, 3));
}

/* One extent of len bytes in free cells. */
static bool take_ext(struct drive *d, struct drv_cells *cells, enum drv_form form, uint32_t len,
		     struct drv_ext *ext)
{
	bool blocks = form == DRV_FORM_BLOCKS || form == DRV_FORM_LARGE;

	ext->len = len;
	ext->edge = 0;
	if (!blocks && drv_random_pct(&d->random, 50))
		ext->edge = (uint32_t)drv_random_below(&d->random, DRV_CELL / 8) * 8;
	ext->cell = drv_cells_take(cells, drv_ext_cells(ext),
				   form == DRV_FORM_LARGE ? DRV_LARGE / DRV_CELL : 1);
	return ext->cell != UINT32_MAX;
}

static void give_local(struct drive *d, struct drive_xfer *x, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		drv_cells_give(&d->local, x->local[i].cell, drv_ext_cells(&x->local[i]));
}

static bool take_remote(struct drive *d, struct drive_xfer *x, unsigned i, bool write)
{
	uint32_t len = x->local[i].len;
	uint64_t room = d->desc.source_bytes - len;

	if (write)
		return take_ext(d, &d->remote, x->form, len, &x->plan.exts[i]);
	x->remote_offset[i] = drv_random_below(&d->random, room / 8 + 1) * 8;
	if (x->form == DRV_FORM_BLOCKS || x->form == DRV_FORM_LARGE)
		x->remote_offset[i] -= x->remote_offset[i] % len;
	x->remote_offset[i] += d->desc.source_offset;
	return true;
}

/* As many extents as were drawn, or as there is room for; 0: none. */
static unsigned take_exts(struct drive *d, struct drive_xfer *x, bool write)
{
	uint64_t want = 1 + drv_random_below(&d->random, d->max_ops);
	uint32_t len = pick_len(d, x->form);
	unsigned n;

	if (x->form == DRV_FORM_OPS && drv_random_pct(&d->random, d->big_pct)) {
		want = 1;
		len = (uint32_t)d->big_bytes;
	}
	x->bytes = 0;
	for (n = 0; n < want && x->bytes + len <= d->max_bytes; n++) {
		if (!take_ext(d, &d->local, x->form, len, &x->local[n]))
			break;
		if (!take_remote(d, x, n, write)) {
			drv_cells_give(&d->local, x->local[n].cell, drv_ext_cells(&x->local[n]));
			break;
		}
		x->bytes += len;
		if (x->form == DRV_FORM_OPS && drv_random_pct(&d->random, 25))
			len = pick_len(d, x->form);
	}
	return n;
}

static void prepare_memory(struct drive *d, struct drive_xfer *x, bool write)
{
	for (unsigned i = 0; i < x->plan.n; i++) {
		const struct drv_ext *ext = &x->local[i];
		uint8_t *cell = d->mem.data + (uint64_t)ext->cell * DRV_CELL;

		if (write)
			drv_extent_fill(cell + ext->edge, ext->len, x->tag,
					drv_ext_offset(&x->plan.exts[i]));
		else
			drv_canary_fill(cell, (uint64_t)drv_ext_cells(ext) * DRV_CELL);
	}
}

static uint64_t remote_at(const struct drive *d, const struct drive_xfer *x, unsigned i)
{
	return drv_tag_write(x->tag) ? d->desc.zone_offset + drv_ext_offset(&x->plan.exts[i])
				     : x->remote_offset[i];
}

/* The lists of a transfer, as the library wants them. */
struct lists {
	uint64_t local[DRV_MAX_EXTS], remote[DRV_MAX_EXTS], lens[DRV_MAX_EXTS];
	uint32_t local_blocks[DRV_MAX_EXTS], remote_blocks[DRV_MAX_EXTS];
	struct kvxfer_ops ops;
	struct kvxfer_blocks blocks;
};

static void make_lists(const struct drive *d, const struct drive_xfer *x, struct lists *lists)
{
	uint32_t block_bytes = x->form == DRV_FORM_LARGE ? DRV_LARGE : DRV_CELL;
	uint32_t plane = x->form == DRV_FORM_LARGE;

	for (unsigned i = 0; i < x->plan.n; i++) {
		lists->local[i] = drv_ext_offset(&x->local[i]);
		lists->remote[i] = remote_at(d, x, i);
		lists->lens[i] = x->local[i].len;
		lists->local_blocks[i] = (uint32_t)(lists->local[i] / block_bytes);
		lists->remote_blocks[i] = (uint32_t)(lists->remote[i] / block_bytes);
	}
	lists->ops = (struct kvxfer_ops){
	    .n_ops = x->plan.n,
	    .local_offsets = lists->local,
	    .remote_offsets = lists->remote,
	    .lens = lists->lens,
	};
	lists->blocks = (struct kvxfer_blocks){
	    .local_plane = plane,
	    .remote_plane = plane,
	    .n_planes = 1,
	    .n_blocks = x->plan.n,
	    .local_blocks = lists->local_blocks,
	    .remote_blocks = lists->remote_blocks,
	};
}

/* One op at a time, as an engine does that computes layer by layer. An append that is refused means
 * that the transfer has ended; its event tells. */
static void stream(struct drive *d, struct drive_xfer *x, struct lists *lists,
		   const struct kvxfer_transfer *t)
{
	struct kvxfer_ops one = {.n_ops = 1};
	unsigned i;

	for (i = 0; i < x->plan.n; i++) {
		one.local_offsets = &lists->local[i];
		one.remote_offsets = &lists->remote[i];
		one.lens = &lists->lens[i];
		if (kvxfer_transfer_append(d->client, x->id, NULL, &one) != 0)
			break;
	}
	if (i < x->plan.n ||
	    kvxfer_transfer_seal(d->client, x->id, t->payload, t->payload_bytes) != 0)
		kvxfer_transfer_cancel(d->client, x->id);
}

static int submit(struct drive *d, struct drive_xfer *x, struct lists *lists)
{
	uint64_t payload[KVXFER_PAYLOAD_MAX / 8];
	bool write = drv_tag_write(x->tag);
	struct kvxfer_transfer t = {
	    .struct_bytes = sizeof(t),
	    .op = write ? KVXFER_WRITE : KVXFER_READ,
	    .region = d->region,
	    .import_ = d->import_,
	    .tag = x->tag,
	    .payload = payload,
	    .payload_bytes =
		PAYLOAD_MIN + drv_random_below(&d->random, KVXFER_PAYLOAD_MAX - PAYLOAD_MIN + 1),
	    .deadline_ms = (uint32_t)(x->limit_ns / 1000000),
	    .require = d->require,
	};
	int rc;

	if (drv_random_pct(&d->random, 70))
		t.payload_bytes = PAYLOAD_MIN;
	drv_payload_fill(payload, t.payload_bytes, x->tag);
	if (x->form == DRV_FORM_STREAM)
		t.streaming = 1;
	else if (x->form == DRV_FORM_OPS)
		t.ops = &lists->ops;
	else
		t.blocks = &lists->blocks;
	rc = kvxfer_transfer_submit(d->client, &t, &x->id);
	if (rc == 0 && t.streaming)
		stream(d, x, lists, &t);
	return rc;
}

static struct drive_xfer *free_xfer(struct drive *d)
{
	for (unsigned i = 0; i < d->n_xfers; i++)
		if (d->xfers[i].state == DRIVE_FREE)
			return &d->xfers[i];
	return NULL;
}

/* Chosen before the submit, kept in x. */
static void pick_ends(struct drive *d, struct drive_xfer *x, uint64_t now)
{
	uint64_t limit_ms = d->deadline_ms;

	if (drv_random_pct(&d->random, d->short_deadline_pct))
		limit_ms = 1 + drv_random_below(&d->random, 50);
	x->limit_ns = drv_ms(limit_ms);
	x->cancelled = false;
	x->cancel_ns = 0;
	if (drv_random_pct(&d->random, d->cancel_pct))
		x->cancel_ns = now + 1 + drv_random_below(&d->random, drv_ms(d->cancel_max_ms) + 1);
}

static void undo(struct drive *d, struct drive_xfer *x, bool write)
{
	give_local(d, x, x->plan.n);
	for (unsigned i = 0; write && i < x->plan.n; i++)
		drv_cells_give(&d->remote, x->plan.exts[i].cell, drv_ext_cells(&x->plan.exts[i]));
	if (write)
		drv_chan_send(&d->chan, DRV_MSG_DROP, &x->tag, sizeof(x->tag));
}

static void accepted(struct drive *d, struct drive_xfer *x)
{
	x->state = DRIVE_IN_FLIGHT;
	d->n_in_flight++;
	d->fig.accepted++;
	d->fig.streams += x->form == DRV_FORM_STREAM;
	d->fig.blocks += x->form == DRV_FORM_BLOCKS || x->form == DRV_FORM_LARGE;
}

bool drive_submit(struct drive *d, uint64_t now)
{
	static struct lists lists;
	static uint8_t packed[DRV_PLAN_MAX];
	bool write = !drv_random_pct(&d->random, d->read_pct);
	struct drive_xfer *x = free_xfer(d);

	if (x == NULL)
		return false;
	x->form = pick_form(d);
	x->plan.n = take_exts(d, x, write);
	if (x->plan.n == 0) {
		d->fig.stalls++;
		return false;
	}
	x->tag = drv_tag(d->desc.drive, d->seq++, write);
	x->plan.tag = x->tag;
	x->plan.op = write ? KVXFER_WRITE : KVXFER_READ;
	x->plan.generation = d->desc.generation;
	prepare_memory(d, x, write);
	pick_ends(d, x, now);
	make_lists(d, x, &lists);
	if (write) {
		drv_chan_send(&d->chan, DRV_MSG_PLAN, packed, drv_plan_pack(&x->plan, packed));
		drv_chan_pump_out(&d->chan);
	}
	x->submit_ns = drv_now_ns();
	if (submit(d, x, &lists) == 0) {
		accepted(d, x);
		return true;
	}
	d->fig.refused++;
	undo(d, x, write);
	return false;
}
