/* Regions in: maps a region on the job thread and registers it in every transport domain: in its
 * home first, where it has one (GPU memory is mapped there, host memory page-locked), then in all
 * others at once; and the way back of both, which a failed open and a retired region share. Loop
 * thread; what blocks runs on the job thread or on the workers. */
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/log.h"
#include "mem/gpu.h"
#include "xfer/node_priv.h"

#define BIT(state) (1u << (state))

static const struct kvx_sm_state region_states[] = {
    [NODE_REGION_MAPPING] = {"mapping", BIT(NODE_REGION_HOMING) | BIT(NODE_REGION_REGISTERING) |
					    BIT(NODE_REGION_GONE)},
    [NODE_REGION_HOMING] = {"homing", BIT(NODE_REGION_REGISTERING) | BIT(NODE_REGION_DEREG)},
    [NODE_REGION_REGISTERING] = {"registering", BIT(NODE_REGION_SETTLING) | BIT(NODE_REGION_LIVE) |
						    BIT(NODE_REGION_DEREG)},
    [NODE_REGION_SETTLING] = {"settling", BIT(NODE_REGION_LIVE) | BIT(NODE_REGION_DEREG)},
    [NODE_REGION_LIVE] = {"live", BIT(NODE_REGION_DRAINING)},
    [NODE_REGION_DRAINING] = {"draining", BIT(NODE_REGION_WITHDRAWING)},
    [NODE_REGION_WITHDRAWING] = {"withdrawing", BIT(NODE_REGION_KEYS)},
    [NODE_REGION_KEYS] = {"freeing keys", BIT(NODE_REGION_DEREG)},
    [NODE_REGION_DEREG] = {"deregistering", BIT(NODE_REGION_UNMAPPING)},
    [NODE_REGION_UNMAPPING] = {"unmapping", BIT(NODE_REGION_GONE)},
    [NODE_REGION_GONE] = {"gone", 0},
};
static const struct kvx_sm_conf region_sm_conf = {"region", region_states, 11};

static struct node_region *nr_of_job(struct kvx_job *job)
{
	return (struct node_region *)((char *)job - offsetof(struct node_region, job));
}

static struct node_region_dom *dom_of_cmd(struct kvx_cmd *cmd)
{
	return (struct node_region_dom *)((char *)cmd - offsetof(struct node_region_dom, cmd));
}

static void nr_command(struct node_region_dom *d, enum kvx_work_kind kind, kvx_cmd_done_cb done)
{
	memset(&d->cmd, 0, sizeof(d->cmd));
	d->cmd.work.kind = kind;
	d->cmd.done = done;
	d->cmd.gpu = node_gpu_reg_helper(d);
	d->nr->n_pending++;
}

void node_region_fail_open(struct node_region *nr)
{
	struct kvx_region *region = nr->region;
	kvx_sm_move(&nr->sm, NODE_REGION_GONE);
	region->retire = NULL;
	nr->open_cb(nr->open_arg, region, nr->status, nr->why.text);
	free(nr);
}

/* It is usable, or has to be undone. */
static KVX_ON_LOOP void region_end_open(struct node_region *nr)
{
	struct kvx_region *region = nr->region;
	/* Its device may have been lost while the other domains were still at work. */
	if (nr->status == 0 && nr->home >= 0 && region->mem.gpu != NULL &&
	    nr->node->doms[nr->home].rail->lost) {
		nr->status = -ENODEV;
		kvx_why(&nr->why, 0, "%s", nr->node->doms[nr->home].rail->rail.reason);
	}
	if (nr->status != 0) {
		kvx_sm_move(&nr->sm, NODE_REGION_DEREG);
		node_region_step(nr);
		return;
	}
	kvx_sm_move(&nr->sm, NODE_REGION_LIVE);
	region->state = KVX_REGION_LIVE;
	kvx_region_cb cb = nr->open_cb;
	nr->open_cb = NULL;
	cb(nr->open_arg, region, 0, "");
}

static void region_settle_run(struct kvx_job *job)
{
	kvx_gpu_mem_close_fds(nr_of_job(job)->region->mem.gpu);
}

static void region_settle_done(struct kvx_job *job)
{
	kvx_assert_on_loop();
	region_end_open(nr_of_job(job));
}

/* What registered its dma-bufs holds the memory by itself; what is to be undone, or what a call may
 * still be at, closes them at the end. */
static KVX_ON_LOOP void region_on_registered(struct node_region *nr)
{
	if (nr->status != 0 || nr->region->mem.gpu == NULL || nr->n_late > 0) {
		region_end_open(nr);
		return;
	}
	kvx_sm_move(&nr->sm, NODE_REGION_SETTLING);
	nr->job.run = region_settle_run;
	nr->job.done = region_settle_done;
	kvx_jobs_submit(nr->node->jobs, &nr->job);
}

/* A rail that is lost, or that does not take this kind of memory, is no reason to refuse a region:
 * lanes that use it are refused keys. */
static bool reg_is_optional(const struct node_region_dom *d, int status)
{
	const struct kvx_node_rail *rail = d->nr->node->doms[d->dom].rail;
	bool is_gpu_memory = kvx_mem_kind_is_gpu(d->nr->region->mem.ops->kind);
	if (is_gpu_memory)
		return (int)d->dom != d->nr->home;
	/* What GPUs do not reach is of use to all others. */
	if (rail != NULL && rail->ops == d->nr->node->gpu_ops)
		return true;
	return rail != NULL && (rail->lost || status == -EOPNOTSUPP || status == -ENODEV);
}

static void reg_say_why(const struct node_region_dom *d)
{
	const struct kvx_cmd *cmd = &d->cmd;
	struct node_region *nr = d->nr;
	const struct kvx_gpu_mem *gpu = nr->region->mem.gpu;
	if (gpu != NULL && gpu->why.text[0] != '\0')
		kvx_why(&nr->why, 0, "%s", gpu->why.text);
	else
		kvx_why(&nr->why, 0, "%s: registering the memory failed: %s",
			nr->node->doms[d->dom].name,
			cmd->text != NULL ? cmd->text : strerror(-cmd->status));
}

static void region_on_mem_reg(struct kvx_cmd *cmd);

static KVX_ON_LOOP void region_register(struct node_region *nr, unsigned dom)
{
	struct node_region_dom *d = &nr->doms[dom];
	nr_command(d, KVX_CMD_MEM_REG, region_on_mem_reg);
	d->cmd.mem = (int)dom == nr->home || nr->mem.gpu == NULL ? &nr->region->mem : &nr->mem;
	d->cmd.tenant = nr->region->tenant;
	d->cmd.rights = nr->region->access;
}

/* Host memory that could not be page-locked is none of the other GPUs' business. */
static bool reg_is_wanted(const struct node_region *nr, unsigned dom)
{
	const struct kvx_node *node = nr->node;
	const struct kvx_node_rail *rail = node->doms[dom].rail;
	if ((int)dom == nr->home)
		return false;
	if (rail == NULL || node->gpu_ops == NULL || rail->ops != node->gpu_ops)
		return true;
	return nr->home >= 0 && nr->region->reg[nr->home] != NULL;
}

/* All domains but the home, at once. */
static KVX_ON_LOOP void region_register_others(struct node_region *nr)
{
	struct kvx_node *node = nr->node;
	kvx_sm_move(&nr->sm, NODE_REGION_REGISTERING);
	if (nr->home >= 0 && nr->region->mem.gpu == NULL && nr->region->reg[nr->home] != NULL)
		nr->region->mem.pinned = nr->doms[nr->home].reg.mr;
	nr->mem = nr->region->mem;
	for (unsigned i = 0; i < nr->n_doms; i++)
		if (reg_is_wanted(nr, i))
			region_register(nr, i);
	kvx_assert(nr->n_pending > 0); /* copy workers are always there */
	for (unsigned i = 0; i < nr->n_doms; i++) {
		if (!reg_is_wanted(nr, i))
			continue;
		if (node_gpu_reg_may_hang(&nr->doms[i]))
			node_gpu_reg_submit(&nr->doms[i]);
		else
			kvx_node_submit(node, node->doms[i].worker, &nr->doms[i].cmd);
	}
}

void node_region_registered(struct node_region_dom *d, int status)
{
	struct node_region *nr = d->nr;
	if (status == 0) {
		d->reg = (struct kvx_reg){d->cmd.mr, d->cmd.mkey, d->cmd.mkey_len};
		nr->region->reg[d->dom] = &d->reg;
	} else if (reg_is_optional(d, status)) {
		kvx_debug("node: region %" PRIu64 " is not registered for %s", nr->region->id,
			  nr->node->doms[d->dom].name);
	} else if (nr->status == 0) {
		nr->status = status;
		reg_say_why(d);
	}
	if (--nr->n_pending > 0)
		return;
	if (nr->sm.state == NODE_REGION_HOMING && nr->status == 0)
		region_register_others(nr);
	else
		region_on_registered(nr);
}

static void region_on_mem_reg(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	node_region_registered(dom_of_cmd(cmd), cmd->status);
}

static void region_map_run(struct kvx_job *job)
{
	struct node_region *nr = nr_of_job(job);
	struct kvx_mem *mem = &nr->region->mem;
	if (mem->gpu != NULL) {
		/* What is something else is left to who gave it: closing it here may take for ever.
		 */
		nr->status = kvx_gpu_mem_check_fds(mem->gpu, &nr->why);
		if (nr->status != 0)
			return;
	}
	nr->status = mem->ops->map(mem, &nr->why);
	if (nr->status != 0)
		kvx_mem_fini(mem);
}

static void region_map_done(struct kvx_job *job)
{
	kvx_assert_on_loop();
	struct node_region *nr = nr_of_job(job);
	struct kvx_node *node = nr->node;
	if (nr->status != 0) {
		node_region_fail_open(nr);
		return;
	}
	nr->status = node_gpu_home(node, nr->region, &nr->home, &nr->why);
	if (nr->status == 0 && nr->home < 0) {
		region_register_others(nr);
		return;
	}
	kvx_sm_move(&nr->sm, NODE_REGION_HOMING);
	if (nr->status != 0) {
		region_on_registered(nr);
		return;
	}
	region_register(nr, (unsigned)nr->home);
	kvx_node_submit(node, node->doms[nr->home].worker, &nr->doms[nr->home].cmd);
}

static void region_on_mem_dereg(struct kvx_cmd *cmd)
{
	kvx_assert_on_loop();
	struct node_region *nr = dom_of_cmd(cmd)->nr;
	nr->n_pending--;
	node_region_step(nr);
}

static KVX_ON_LOOP void region_deregister(struct node_region_dom *d)
{
	struct node_region *nr = d->nr;
	if (d->reg.mr == NULL)
		return;
	nr_command(d, KVX_CMD_MEM_DEREG, region_on_mem_dereg);
	d->cmd.mr = d->reg.mr;
	free(d->reg.mkey);
	d->reg = (struct kvx_reg){NULL, NULL, 0};
	if (nr->region != NULL)
		nr->region->reg[d->dom] = NULL;
	kvx_node_submit(nr->node, nr->node->doms[d->dom].worker, &d->cmd);
}

bool node_region_deregister(struct node_region *nr)
{
	if (nr->n_pending > 0 || nr->leaving)
		return true;
	for (unsigned i = 0; i < nr->n_doms; i++)
		if ((int)i != nr->home)
			region_deregister(&nr->doms[i]);
	if (nr->n_pending == 0 && nr->home >= 0 && nr->n_late == 0)
		region_deregister(&nr->doms[nr->home]);
	return nr->n_pending > 0;
}

/* With the fd: its owner may be gone, and then closing it frees the pages of all of the memory. */
static void region_unmap_run(struct kvx_job *job)
{
	struct node_region *nr = nr_of_job(job);
	kvx_mem_fini(nr->region != NULL ? &nr->region->mem : &nr->mem);
}

static void region_unmap_done(struct kvx_job *job)
{
	kvx_assert_on_loop();
	struct node_region *nr = nr_of_job(job);
	struct kvx_node *node = nr->node;
	if (nr->region == NULL) {
		kvx_sm_move(&nr->sm, NODE_REGION_GONE);
		node->n_left--;
		free(nr);
		return;
	}
	if (nr->open_cb != NULL) {
		node_region_fail_open(nr);
		return;
	}
	uint64_t id = nr->region->id;
	kvx_sm_move(&nr->sm, NODE_REGION_GONE);
	kvx_debug("node: region %" PRIu64 ": gone", id);
	kvx_region_remove(node->regions, nr->region);
	nr->closed_cb(nr->closed_arg, id);
	free(nr);
}

void node_region_unmap(struct node_region *nr)
{
	nr->job.run = region_unmap_run;
	nr->job.done = region_unmap_done;
	kvx_jobs_submit(nr->node->jobs, &nr->job);
}

int kvx_node_region_open(struct kvx_node *node, struct kvx_region *region, kvx_region_cb cb,
			 void *arg)
{
	struct node_region *nr =
	    calloc(1, sizeof(*nr) + node->n_doms * sizeof(struct node_region_dom));
	if (nr == NULL)
		return -ENOMEM;
	kvx_assert(region->state == KVX_REGION_MAPPING && region->retire == NULL);
	nr->node = node;
	nr->region = region;
	nr->open_cb = cb;
	nr->open_arg = arg;
	nr->home = -1;
	nr->n_doms = node->n_doms;
	for (unsigned i = 0; i < nr->n_doms; i++) {
		nr->doms[i].nr = nr;
		nr->doms[i].dom = i;
	}
	kvx_sm_init(&nr->sm, &region_sm_conf, NODE_REGION_MAPPING);
	region->retire = nr;
	nr->job.run = region_map_run;
	nr->job.done = region_map_done;
	kvx_jobs_submit(node->jobs, &nr->job);
	return 0;
}

int kvx_node_region_mkey(const struct kvx_region *region, unsigned dom_index, const void **out_mkey,
			 size_t *out_len)
{
	const struct kvx_reg *reg = dom_index < KVX_MAX_DOMAINS ? region->reg[dom_index] : NULL;
	if (reg == NULL)
		return -ENOENT;
	*out_mkey = reg->mkey;
	*out_len = reg->mkey_len;
	return 0;
}
