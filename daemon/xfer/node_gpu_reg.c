/* Registrations of GPU memory in the domains of RDMA devices (KVX_CAP_DMABUF): calls that go into
 * the GPU's driver, which may hang in them. Three things keep that from others:
 *
 *   - the worker makes such calls on a thread of the GPU's own, beside the one for host memory;
 *   - a line for each device and GPU lets one of them in at a time, so that what waits behind one
 *     that hangs has not begun, and can be dropped;
 *   - each has a deadline, from its begin. Past it the region goes without this device, as if it
 *     had refused; so do those that wait in the line, and later ones at once, until the call
 *     returns. What it brings then is undone.
 *
 * Until it returns the driver may use what it was given: the dma-bufs and the mapping of the
 * region's home stay, also when the region has been given back to its owner (node_region_leave());
 * nobody was told a key of it. When the node closes meanwhile, the worker and the GPUs are left as
 * they are to the end of the process. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "mem/gpu.h"
#include "xfer/node_priv.h"

/* A registration asks the GPU's home for up to three things, each with that deadline, and looks at
 * the memory by the device (seconds, where nothing answers). */
#define CALL_TIMEOUTS 4u
#define STOP_WAIT_NS  KVX_SEC

static struct node_region_dom *reg_of_cmd(struct kvx_cmd *cmd)
{
	return (struct node_region_dom *)((char *)cmd - offsetof(struct node_region_dom, cmd));
}

bool node_gpu_reg_may_hang(const struct node_region_dom *d)
{
	const struct node_region *nr = d->nr;
	const struct kvx_node_rail *rail = nr->node->doms[d->dom].rail;

	return nr->mem.gpu != NULL && rail != NULL && rail->ops != nr->node->gpu_ops &&
	       (rail->ops->caps & KVX_CAP_DMABUF) != 0;
}

/* Host memory that it takes long to lock for the GPUs is registered and taken back on the GPU
 * worker's usual helpers; all else there, which is short, on threads beside them. */
static bool reg_is_short(const struct node_region_dom *d)
{
	const struct node_region *nr = d->nr;
	const struct node_dom *dom = &nr->node->doms[d->dom];

	return dom->lane != NULL && nr->region != NULL &&
	       (nr->region->mem.gpu != NULL || nr->region->mem.len_bytes < KVX_PIN_LONG_BYTES);
}

uint32_t node_gpu_reg_helper(const struct node_region_dom *d)
{
	if (node_gpu_reg_may_hang(d))
		return node_gpu_reg_number(d);
	return reg_is_short(d) ? d->nr->node->doms[d->dom].lane->index : 0;
}

uint32_t node_gpu_reg_number(const struct node_region_dom *d)
{
	const struct node_region *nr = d->nr;
	const struct node_lane *lane = nr->home >= 0 ? nr->node->doms[nr->home].lane : NULL;

	return lane != NULL ? lane->index : 1; /* lane 0 is no GPU's */
}

static struct node_gpu_line *line_of(const struct node_region_dom *d)
{
	struct node_dom *dom = &d->nr->node->doms[d->dom];
	struct node_gpu_line *line = &dom->lines[node_gpu_reg_number(d) - 1];

	line->dom = dom;
	return line;
}

static uint64_t line_deadline_ns(const struct node_gpu_line *line)
{
	return CALL_TIMEOUTS * line->dom->node->conf.dom.gpu.call_timeout_ms * KVX_MS;
}

static void reg_refuse(const struct node_region_dom *d)
{
	const struct kvx_mem *mem = &d->nr->mem;

	kvx_warn("node: %s: %" PRIu64 " bytes of GPU memory are not reached by RDMA and go by "
		 "another transport: an earlier registration of memory of GPU %s has not returned "
		 "from the driver; register again when the log says that it has",
		 d->nr->node->doms[d->dom].name, mem->len_bytes, mem->gpu->id.pci);
}

/* Its callbacks may bring more to the line. */
static KVX_ON_LOOP void line_refuse_waiting(struct node_gpu_line *line)
{
	struct node_region_dom *d;

	while ((d = line->waiting) != NULL) {
		line->waiting = d->next;
		reg_refuse(d);
		node_region_registered(d, -EOPNOTSUPP);
	}
}

static void line_on_overdue(struct kvx_timer *timer)
{
	struct node_gpu_line *line =
	    (struct node_gpu_line *)((char *)timer - offsetof(struct node_gpu_line, timer));
	struct node_region_dom *d = line->now;

	kvx_assert_on_loop();
	kvx_error("node: %s: registering %" PRIu64 " bytes of GPU memory has not returned from the "
		  "driver after %" PRIu64 " ms: they go by another transport, and so does what is "
		  "registered of GPU %s until it returns",
		  line->dom->name, d->nr->mem.len_bytes,
		  (uint64_t)(line_deadline_ns(line) / KVX_MS), d->nr->mem.gpu->id.pci);
	line->late = true;
	d->nr->n_late++;
	node_region_registered(d, -EOPNOTSUPP);
	line_refuse_waiting(line);
}

static KVX_ON_LOOP void line_begin(struct node_gpu_line *line, struct node_region_dom *d)
{
	uint64_t deadline_ns = line_deadline_ns(line);

	line->now = d;
	if (deadline_ns > 0 && kvx_timer_start(line->dom->node->conf.timers, &line->timer,
					       deadline_ns, line_on_overdue) < 0)
		kvx_warn("node: %s: no memory for a timer: a registration has no deadline",
			 line->dom->name);
	kvx_node_submit(line->dom->node, line->dom->worker, &d->cmd);
}

static KVX_ON_LOOP void line_next(struct node_gpu_line *line)
{
	struct node_region_dom *d = line->waiting;

	line->now = NULL;
	if (d == NULL)
		return;
	line->waiting = d->next;
	line_begin(line, d);
}

/* What was late is over, and leaves nothing behind. */
static KVX_ON_LOOP void late_end(struct node_region_dom *d)
{
	struct node_gpu_line *line = line_of(d);

	kvx_warn("node: %s: a registration of memory of GPU %s that was given up has returned: "
		 "RDMA takes memory of it again",
		 line->dom->name, d->nr->mem.gpu->id.pci);
	line->late = false;
	line_next(line);
	d->nr->n_late--;
	node_region_step(d->nr); /* it may wait for that; it may be gone after it */
}

static void late_on_undone(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	late_end(reg_of_cmd(cmd));
}

/* Nobody knows of what it has registered. */
static KVX_ON_LOOP void late_undo(struct node_region_dom *d)
{
	struct kvx_cmd *cmd = &d->cmd;

	if (cmd->status < 0) {
		late_end(d);
		return;
	}
	free(cmd->mkey);
	cmd->mkey = NULL;
	cmd->work.kind = KVX_CMD_MEM_DEREG;
	cmd->done = late_on_undone;
	kvx_node_submit(d->nr->node, d->nr->node->doms[d->dom].worker, cmd);
}

static void line_on_mem_reg(struct kvx_cmd *cmd)
{
	struct node_region_dom *d = reg_of_cmd(cmd);
	struct node_gpu_line *line = line_of(d);

	kvx_assert_on_loop();
	kvx_assert(line->now == d);
	if (line->late) {
		late_undo(d);
		return;
	}
	kvx_timer_stop(line->dom->node->conf.timers, &line->timer);
	line_next(line);
	node_region_registered(d, cmd->status);
}

void node_gpu_reg_submit(struct node_region_dom *d)
{
	struct node_gpu_line *line = line_of(d);

	d->cmd.done = line_on_mem_reg;
	d->next = NULL;
	if (line->late) {
		reg_refuse(d);
		node_region_registered(d, -EOPNOTSUPP);
	} else if (line->now == NULL) {
		line_begin(line, d);
	} else {
		if (line->waiting == NULL)
			line->waiting = d;
		else
			line->last->next = d;
		line->last = d;
	}
}

/* ---- regions that go before that */

static KVX_ON_LOOP void region_leave(struct node_region *nr)
{
	struct kvx_region *region = nr->region;
	uint64_t id = region->id;
	kvx_debug("node: region %" PRIu64 ": gone, but for memory that a driver is at", id);
	nr->node->n_left++;
	nr->region = NULL;
	region->mem.gpu = NULL; /* nr->mem has it */
	region->reg[nr->home] = NULL;
	if (nr->open_cb != NULL) {
		region->retire = NULL;
		nr->open_cb(nr->open_arg, region, nr->status, nr->why.text);
		return;
	}
	kvx_region_remove(nr->node->regions, region);
	nr->closed_cb(nr->closed_arg, id);
}

static void region_leave_run(struct kvx_job *job)
{
}

static void region_leave_done(struct kvx_job *job)
{
	kvx_assert_on_loop();
	struct node_region *nr =
	    (struct node_region *)((char *)job - offsetof(struct node_region, job));
	nr->leaving = false;
	if (nr->n_late > 0)
		region_leave(nr);
	else
		node_region_step(nr);
}

/* By way of the job thread, as the other end: who asked for it is told later. */
void node_region_leave(struct node_region *nr)
{
	if (nr->region == NULL)
		return;
	nr->leaving = true;
	nr->job.run = region_leave_run;
	nr->job.done = region_leave_done;
	kvx_jobs_submit(nr->node->jobs, &nr->job);
}

static bool dom_is_late(const struct node_dom *dom)
{
	bool late = false;

	for (unsigned i = 0; i < KVX_GPU_MAX; i++)
		late |= dom->lines[i].late;
	return late;
}

bool node_gpu_regs_stop(struct kvx_node *node)
{
	static const struct timespec nap = {.tv_nsec = 1000000};
	uint64_t until_ns = kvx_now_ns() + STOP_WAIT_NS;

	while (node->n_left > 0 && kvx_now_ns() < until_ns) {
		kvx_node_pump(node);
		nanosleep(&nap, NULL);
	}
	if (node->n_left == 0)
		return true;
	for (unsigned i = 0; i < node->n_doms; i++)
		if (dom_is_late(&node->doms[i]))
			kvx_warn("node: %s: a registration of GPU memory does not return from the "
				 "driver, leaving its thread",
				 node->doms[i].name);
	return false;
}
