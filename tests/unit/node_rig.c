/* See node_rig.h. */
#include "node_rig.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct node_rig *rig_current;

/* With real threads mappings happen on the job thread. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void count_mapping(int more, char what)
{
	pthread_mutex_lock(&lock);
	rig_current->n_mapped += (unsigned)more;
	pthread_mutex_unlock(&lock);
	rig_log(rig_current, what);
}

static int mem_check(struct kvx_mem *mem, struct kvx_why *why)
{
	mem->page_bytes = 4096;
	return 0;
}

static int mem_map(struct kvx_mem *mem, struct kvx_why *why)
{
	int err = rig_current->map_error;
	rig_current->map_error = 0;
	if (err != 0)
		return kvx_why(why, err, "test: no mapping");
	mem->addr = calloc(1, mem->len_bytes);
	cr_assert_not_null(mem->addr);
	count_mapping(1, 'm');
	return 0;
}

static void mem_unmap(struct kvx_mem *mem)
{
	if (mem->addr == NULL)
		return;
	free(mem->addr);
	mem->addr = NULL;
	count_mapping(-1, 'u');
}

static const struct kvx_mem_ops rig_mem_ops = {KVX_MEM_HOST, "test", mem_check, mem_map, mem_unmap};

void rig_log(struct node_rig *rig, char what)
{
	pthread_mutex_lock(&lock);
	size_t n = strlen(rig->log);
	if (n + 1 < sizeof(rig->log))
		rig->log[n] = what;
	pthread_mutex_unlock(&lock);
}

static void on_terminal(void *arg, const struct kvx_xfer_end *end)
{
	struct node_rig *rig = arg;
	struct rig_end *e = &rig->ends[rig->n_ends++];
	cr_assert_leq(rig->n_ends, RIG_EVENTS);
	e->end = *end;
	strncpy(e->text, end->text, sizeof(e->text) - 1);
	e->end.text = e->text;
	rig_log(rig, 'T');
	if (rig->on_end != NULL)
		rig->on_end(rig, end);
}

static void on_arrival(void *arg, const struct kvx_arrival *arrival)
{
	struct node_rig *rig = arg;
	struct rig_arrival *a = &rig->arrivals[rig->n_arrivals++];
	a->arrival = *arrival;
	strncpy(a->text, arrival->text, sizeof(a->text) - 1);
	a->arrival.text = a->text;
	if (arrival->payload_bytes > 0)
		memcpy(a->payload, arrival->payload,
		       arrival->payload_bytes < 64 ? arrival->payload_bytes : 64);
	rig_log(rig, 'A');
}

static uint64_t script_now(void *arg)
{
	return ((struct kvx_fake_script *)arg)->now_ns;
}

void rig_init(struct node_rig *rig)
{
	memset(rig, 0, sizeof(*rig));
	rig_current = rig;
	rig->script.latency_ns = 10000;
	rig->script.queue_ops = 4096;
	rig->conf = (struct kvx_node_conf){
	    .epoch = 1,
	    .dom = {.test = &rig->script, .mem_kinds = 1u << KVX_MEM_HOST},
	    .copy_workers = 2,
	    .quantum_bytes = 1u << 20,
	    .n_batches = 16,
	    .region_limits = {64, 64, 1ull << 40, 1ull << 40},
	    .xfers = {.max_xfers = 1000,
		      .default_deadline_ns = 1000000000,
		      .fence_bound_ns = 1000000,
		      .history = 8,
		      .arg = rig,
		      .on_terminal = on_terminal,
		      .on_arrival = on_arrival},
	    .copy_ops = &kvx_fake_ops,
	};
}

void rig_start(struct node_rig *rig)
{
	struct kvx_why why = {""};
	cr_assert_eq(kvx_timers_create(script_now, &rig->script, &rig->timers), 0);
	rig->conf.timers = rig->timers;
	cr_assert_eq(kvx_node_open(&rig->conf, &rig->node, &why), 0, "%s", why.text);
}

void rig_stop(struct node_rig *rig)
{
	kvx_node_close(rig->node);
	kvx_timers_destroy(rig->timers);
	cr_assert_eq(rig->script.n_doms, 0);
	cr_assert_eq(rig->script.n_eps, 0);
	cr_assert_eq(rig->script.n_mrs, 0);
	cr_assert_eq(rig->script.n_rkeys, 0);
	cr_assert_eq(rig->n_mapped, 0);
}

void rig_turn(struct node_rig *rig, uint64_t ns)
{
	kvx_fake_advance(&rig->script, ns);
	kvx_timers_run(rig->timers);
	while (kvx_node_pump(rig->node))
		;
}

bool rig_until_ends(struct node_rig *rig, unsigned n, uint64_t step_ns)
{
	for (unsigned i = 0; i < 20000; i++) {
		if (rig->n_ends >= n)
			return true;
		rig_turn(rig, step_ns);
	}
	return false;
}

void rig_on_opened(void *arg, struct kvx_region *region, int status, const char *text)
{
	struct node_rig *rig = arg;
	rig->n_opened++;
	rig->open_status = status;
	strncpy(rig->open_text, text, sizeof(rig->open_text) - 1);
}

void rig_on_closed(void *arg, uint64_t region_id)
{
	struct node_rig *rig = arg;
	rig->n_closed++;
	rig->closed_id = region_id;
	rig_log(rig, 'C');
}

struct kvx_region *rig_region_add(struct node_rig *rig, uint64_t owner, uint64_t len,
				  uint32_t access, struct kvx_layout *layout)
{
	const struct kvx_region_request request = {.owner = owner,
						   .ops = &rig_mem_ops,
						   .fd = -1,
						   .len_bytes = len,
						   .access = access,
						   .layout = layout};
	struct kvx_region *region = NULL;
	cr_assert_eq(kvx_region_add(kvx_node_regions(rig->node), &request, &region, NULL), 0);
	return region;
}

struct kvx_region *rig_region(struct node_rig *rig, uint64_t owner, uint64_t len, uint32_t access,
			      struct kvx_layout *layout)
{
	struct kvx_region *region = rig_region_add(rig, owner, len, access, layout);
	unsigned before = rig->n_opened;
	cr_assert_eq(kvx_node_region_open(rig->node, region, rig_on_opened, rig), 0);
	cr_assert_eq(rig->n_opened, before);
	for (unsigned i = 0; i < 100 && rig->n_opened == before; i++)
		rig_turn(rig, 0);
	cr_assert_eq(rig->n_opened, before + 1);
	if (rig->open_status == 0) {
		cr_assert_eq(region->state, KVX_REGION_LIVE);
		return region;
	}
	kvx_region_remove(kvx_node_regions(rig->node), region);
	return NULL;
}

void rig_region_close(struct node_rig *rig, struct kvx_region *region)
{
	uint64_t id = region->id;
	unsigned before = rig->n_closed;
	cr_assert_eq(kvx_node_region_close(rig->node, region, -EOWNERDEAD, "unregistered",
					   rig_on_closed, rig),
		     0);
	for (unsigned i = 0; i < 2000 && rig->n_closed == before; i++)
		rig_turn(rig, 1000000);
	cr_assert_eq(rig->n_closed, before + 1);
	cr_assert_eq(rig->closed_id, id);
	cr_assert_null(kvx_region_find(kvx_node_regions(rig->node), id));
}

struct kvx_target *rig_target(struct node_rig *rig, struct kvx_region *region)
{
	struct kvx_target *target = NULL;
	struct kvx_why why = {""};
	cr_assert_eq(kvx_node_target_open(rig->node, region, &target, &why), 0, "%s", why.text);
	return target;
}

struct kvx_xfer *rig_submit(struct node_rig *rig, const struct kvx_xfer_req *req, uint64_t len)
{
	static const uint64_t zero;
	struct kvx_op_list ops = {1, 1, &zero, &zero, &len};
	struct kvx_xfer_req full = *req;
	struct kvx_xfer *xfer = NULL;
	struct kvx_why why = {""};
	unsigned before = rig->n_ends;
	if (len > 0)
		full.ops = &ops;
	cr_assert_eq(kvx_xfer_submit(kvx_node_xfers(rig->node), &full, &xfer, &why), 0, "%s",
		     why.text);
	cr_assert_eq(rig->n_ends, before); /* never before submit has returned */
	return xfer;
}
