/* Scheduler: see sched.h. Owns the batch pool, chooses what goes next and sends it; what is queued
 * per lane and flow is in sched_queue.c. Knows ops only as counts of bytes. Turns: schedulers
 * (lanes) one batch each, flows of a lane by surplus round robin (a flow may send while its balance
 * is positive, the overdraft counts against its next turn: ops are never cut for fairness), items
 * of a flow in order. A flow whose items find no credit is passed over and keeps its turn. Loop
 * thread; no malloc but in create. */
#include "xfer/sched_priv.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"

/* Below this a lone item is not spread over more outlets: the wake-up would cost more. */
#define SPREAD_MIN_BYTES (64u * 1024)

struct sched_batch {
	struct kvx_batch batch; /* first: what workers know */
	struct kvx_sched *sched;
	struct kvx_outlet *outlet;
};

enum step { STEP_SENT, STEP_IDLE, STEP_STUCK, STEP_NO_BATCH };

int kvx_scheds_create(unsigned n_batches, uint64_t quantum_bytes, struct kvx_scheds **out_scheds)
{
	struct kvx_scheds *all;
	if (quantum_bytes == 0 || quantum_bytes > INT64_MAX / 2)
		return -EINVAL;
	all = calloc(1, sizeof(*all));
	if (all == NULL)
		return -ENOMEM;
	int rc = kvx_pool_create(sizeof(struct sched_batch), n_batches, &all->batches);
	if (rc != 0) {
		free(all);
		return rc;
	}
	all->quantum_bytes = (int64_t)quantum_bytes;
	*out_scheds = all;
	return 0;
}

void kvx_scheds_destroy(struct kvx_scheds *all)
{
	if (all == NULL)
		return;
	kvx_assert(all->n_scheds == 0);
	scheds_free_spare(all);
	kvx_pool_destroy(all->batches);
	free(all);
}

unsigned kvx_scheds_available(const struct kvx_scheds *all)
{
	return kvx_pool_available(all->batches);
}

int kvx_sched_create(struct kvx_lane *lane, struct kvx_scheds *scheds, struct kvx_sched **out_sched)
{
	struct kvx_sched *sched = calloc(1, sizeof(*sched));
	if (sched == NULL)
		return -ENOMEM;
	sched->all = scheds;
	sched->lane = lane;
	scheds->n_scheds++;
	*out_sched = sched;
	return 0;
}

static void sched_rest(struct kvx_sched *sched)
{
	if (!sched->awake)
		return;
	sched->awake = false;
	sched->all->n_awake--;
	DL_DELETE(sched->all->awake, sched);
}

void kvx_sched_destroy(struct kvx_sched *sched)
{
	if (sched == NULL)
		return;
	kvx_assert(sched->n_queued == 0 && sched->n_in_flight == 0 && sched->unsent == NULL);
	sched_rest(sched);
	sched->all->n_scheds--;
	free(sched);
}

static bool outlet_has_credit(const struct kvx_outlet *outlet)
{
	return outlet->batches_in_flight < kvx_worker_limits(outlet->worker)->queue_batches;
}

/* The least loaded of a set that has credit; NULL: none has. */
static struct kvx_outlet *lane_outlet(struct kvx_lane *lane, uint32_t outlets)
{
	struct kvx_outlet *best = NULL;
	for (unsigned i = 0; i < lane->n_outlets; i++) {
		struct kvx_outlet *o = &lane->outlets[i];
		if ((outlets == 0 || outlets & 1u << i) && outlet_has_credit(o) &&
		    (best == NULL || o->bytes_in_flight < best->bytes_in_flight))
			best = o;
	}
	return best;
}

/* An item of which something may go now. */
struct sched_choice {
	struct kvx_sched_item *item;
	struct kvx_outlet *outlet; /* NULL: only the inline one, if that takes it */
};

static bool lane_has_inline_credit(const struct kvx_lane *lane)
{
	return lane->inline_outlet != NULL && outlet_has_credit(lane->inline_outlet);
}

/* The oldest item of a flow that finds credit. */
static bool flow_choose(const struct kvx_sched *sched, const struct kvx_sched_flow *flow,
			struct sched_choice *choice)
{
	bool is_inline = lane_has_inline_credit(sched->lane);
	struct kvx_sched_item *item;
	choice->item = NULL;
	for (item = flow->firsts; item != NULL; item = item->first_next) {
		if (choice->item != NULL && choice->item->number < item->number)
			continue;
		struct kvx_outlet *outlet = lane_outlet(sched->lane, item->outlets);
		if (outlet != NULL || is_inline)
			*choice = (struct sched_choice){item, outlet};
	}
	return choice->item != NULL;
}

/* Whose turn it is among the flows that find credit: one of them that is in debt is given its
 * quantum and goes to the end. Ends, because every round pays every one of them. */
static bool sched_choose(struct kvx_sched *sched, struct sched_choice *choice)
{
	struct kvx_sched_flow *flow, *next;
	bool again = lane_outlet(sched->lane, 0) != NULL || lane_has_inline_credit(sched->lane);
	while (again) {
		again = false;
		DL_FOREACH_SAFE (sched->turns, flow, next) {
			if (!flow_choose(sched, flow, choice))
				continue;
			if (flow->balance > 0)
				return true;
			flow->balance += sched->all->quantum_bytes;
			DL_DELETE(sched->turns, flow);
			DL_APPEND(sched->turns, flow);
			again = true;
		}
	}
	return false;
}

/* A whole item that is small enough is copied here and now. */
static bool fits_inline(const struct kvx_lane *lane, const struct kvx_sched_item *item,
			uint64_t backlog)
{
	return lane->inline_outlet != NULL && item->n_in_flight == 0 &&
	       backlog <= lane->inline_max_bytes && outlet_has_credit(lane->inline_outlet);
}

/* How much to put into one batch: what the transport likes, or this outlet's share of the last
 * bytes of a lone item. */
static uint64_t batch_bytes(const struct kvx_sched *sched, const struct kvx_outlet *outlet,
			    uint64_t backlog)
{
	const struct kvx_lane *lane = sched->lane;
	uint64_t bytes = kvx_worker_limits(outlet->worker)->batch_bytes;
	uint64_t sum = backlog;
	if (sched->n_queued != 1 || lane->n_outlets < 2 || outlet == lane->inline_outlet ||
	    backlog / lane->n_outlets >= bytes || !(lane->ops->caps & KVX_CAP_CPU_COPY))
		return bytes;
	for (unsigned i = 0; i < lane->n_outlets; i++)
		sum += lane->outlets[i].bytes_in_flight;
	uint64_t share = (sum + lane->n_outlets - 1) / lane->n_outlets;
	share = share > outlet->bytes_in_flight ? share - outlet->bytes_in_flight : 0;
	share = (share + 4095) & ~(uint64_t)4095;
	if (share < SPREAD_MIN_BYTES)
		share = SPREAD_MIN_BYTES;
	return share < bytes ? share : bytes;
}

static void batch_deliver(struct kvx_batch *batch)
{
	struct sched_batch *b = (struct sched_batch *)batch;
	struct kvx_sched *sched = b->sched;
	struct kvx_sched_item *item = batch->owner;
	struct kvx_lane *lane = sched->lane;
	b->outlet->batches_in_flight--;
	b->outlet->bytes_in_flight -= batch->bytes;
	sched->n_in_flight--;
	item->n_in_flight--;
	lane->n_batches++;
	lane->n_ops += batch->n_ops;
	if (batch->status == 0)
		lane->n_bytes += batch->bytes;
	else
		lane->n_errors++;
	sched_wake(sched);
	item->ops->batch_done(item, batch);
	kvx_pool_put(sched->all->batches, b);
}

static void sched_on_batch(struct kvx_batch *batch)
{
	struct kvx_sched *sched = ((struct sched_batch *)batch)->sched;
	if (batch->status == 0 || sched->on_held == NULL) {
		batch_deliver(batch);
		return;
	}
	batch->work.next = NULL;
	if (sched->held == NULL)
		sched->held = &batch->work;
	else
		sched->held_last->next = &batch->work;
	sched->held_last = &batch->work;
	sched->on_held(sched->on_held_arg);
}

void kvx_sched_hold(struct kvx_sched *sched, void (*held)(void *arg), void *arg)
{
	sched->on_held = held;
	sched->on_held_arg = arg;
}

void kvx_sched_release(struct kvx_sched *sched)
{
	while (sched->held != NULL) {
		struct kvx_work *work = sched->held;
		sched->held = work->next;
		batch_deliver((struct kvx_batch *)(void *)work);
	}
}

/* Runs the inline worker until it has nothing more to do: its batch is normally over then. */
static KVX_ON_LOOP void inline_run(struct kvx_worker *worker)
{
	while (kvx_worker_pump(worker))
		;
	kvx_worker_drain(worker);
}

static KVX_ON_LOOP enum step sched_send(struct kvx_sched *sched, struct sched_batch *b)
{
	struct kvx_worker *worker = b->outlet->worker;
	bool is_inline = b->outlet == sched->lane->inline_outlet;
	int rc = kvx_worker_submit_batch(worker, &b->batch);
	sched->unsent = rc == 0 ? NULL : b;
	if (is_inline)
		inline_run(worker);
	return rc == 0 ? STEP_SENT : STEP_STUCK;
}

static bool batch_fill(struct kvx_sched *sched, struct sched_batch *b, struct kvx_outlet *outlet,
		       struct kvx_sched_item *item, uint64_t backlog)
{
	struct kvx_batch *batch = &b->batch;
	unsigned max = kvx_worker_limits(outlet->worker)->batch_ops;
	uint64_t bytes = 0;
	if (max > KVX_BATCH_OPS)
		max = KVX_BATCH_OPS;
	unsigned n = item->ops->pull(item, outlet, batch->ops, max,
				     batch_bytes(sched, outlet, backlog), &bytes);
	if (n == 0)
		return false;
	batch->work.kind = KVX_WORK_BATCH;
	batch->ep = outlet->ep;
	batch->owner = item;
	batch->done = sched_on_batch;
	batch->bytes = bytes;
	batch->n_ops = n;
	batch->n_posted = 0;
	batch->n_done = 0;
	batch->status = 0;
	batch->vendor_code = 0;
	batch->text = NULL;
	batch->first_ns = 0;
	batch->last_ns = 0;
	b->sched = sched;
	b->outlet = outlet;
	outlet->batches_in_flight++;
	outlet->bytes_in_flight += bytes;
	sched->n_in_flight++;
	item->n_in_flight++;
	item->flow->balance -= (int64_t)bytes;
	return true;
}

/* Sends at most one batch. After sched_send() nothing that was looked up before may be used: an
 * inline batch may have ended its transfer. */
static KVX_ON_LOOP enum step sched_step(struct kvx_sched *sched)
{
	struct kvx_lane *lane = sched->lane;
	if (sched->unsent != NULL)
		return sched_send(sched, sched->unsent);
	if (lane->state != KVX_LANE_UP)
		return STEP_IDLE;
	struct sched_choice choice;
	while (sched_choose(sched, &choice)) {
		struct kvx_sched_item *item = choice.item;
		uint64_t backlog = item->ops->backlog_bytes(item);
		if (backlog == 0) {
			kvx_sched_remove(item);
			continue;
		}
		struct kvx_outlet *to =
		    fits_inline(lane, item, backlog) ? lane->inline_outlet : choice.outlet;
		if (to == NULL)
			return STEP_IDLE; /* woken when a batch comes back */
		struct sched_batch *b = kvx_pool_get(sched->all->batches);
		if (b == NULL)
			return STEP_NO_BATCH;
		if (batch_fill(sched, b, to, item, backlog))
			return sched_send(sched, b);
		kvx_pool_put(sched->all->batches, b);
		kvx_sched_remove(item);
	}
	return STEP_IDLE;
}

/* One batch per lane and round, until a whole round sent nothing. A lane that is stuck stays awake:
 * the next pump tries again. */
void kvx_scheds_pump(struct kvx_scheds *all)
{
	unsigned n_stuck = 0;
	if (all->pumping)
		return;
	all->pumping = true;
	while (all->awake != NULL) {
		struct kvx_sched *sched = all->awake;
		enum step step = sched_step(sched);
		if (step == STEP_NO_BATCH)
			break;
		if (step == STEP_IDLE) {
			sched_rest(sched);
			n_stuck = 0;
			continue;
		}
		DL_DELETE(all->awake, sched);
		DL_APPEND(all->awake, sched);
		n_stuck = step == STEP_STUCK ? n_stuck + 1 : 0;
		if (n_stuck >= all->n_awake)
			break;
	}
	all->pumping = false;
}

void kvx_sched_pump(struct kvx_sched *sched)
{
	sched_wake(sched);
	kvx_scheds_pump(sched->all);
}

unsigned kvx_sched_in_flight(const struct kvx_sched *sched)
{
	return sched->n_in_flight;
}
