/* Registrations of GPU memory that do not return from an RDMA device: the region goes without it at
 * the deadline, others of that GPU too, what has only waited is not taken for hanging, and what is
 * late is undone; until then its memory stays. All domains are the fake transport, without threads:
 * one whose worker is not pumped is one that hangs. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "mem/gpu.h"
#include "node_rig.h"
#include "test_end.h"
#include "worker/worker_priv.h"
#include "xfer/node_priv.h"

#define MS          1000000ull
#define DEADLINE_MS 400 /* four times the one of a call */
#define N_BASES     3u
#define LEN         (N_BASES * 4096u)
#define MAX_MRS     64u

/* Of the node's domains. */
enum { COPY, GPU0, GPU1, NIC0, NIC1, N_DOMS };
#define NOBODY N_DOMS

static struct node_rig rig;
static struct kvx_transport_ops copy_ops, gpu_ops, nic_ops;

/* ---- what is registered where: 'g', 'h' GPUs, 'p', 'q' NICs; upper case: deregistered */

static char order[64];
static int refuse; /* what the NICs say; 0: they register */
static bool alone; /* but GPU0 and NIC0 nobody takes anything */
static struct {
	struct kvx_mr *mr;
	char what;
} mrs[MAX_MRS];

static void note(char what)
{
	size_t n = strlen(order);

	cr_assert_lt(n + 1, sizeof(order));
	order[n] = what;
}

static char letter_of(const struct kvx_dom *dom)
{
	static const char letters[] = {'c', 'g', 'h', 'p', 'q'};
	unsigned i = 0;

	while (i < N_DOMS && rig.node->doms[i].worker->dom != dom)
		i++;
	cr_assert_lt(i, N_DOMS);
	return letters[i];
}

static bool fds_are_open(const struct kvx_gpu_mem *gpu)
{
	for (uint32_t i = 0; i < gpu->n_bases; i++)
		if (gpu->bases[i].fd < 0 || fcntl(gpu->bases[i].fd, F_GETFD) < 0)
			return false;
	return true;
}

static int any_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		   struct kvx_mr **out_mr)
{
	char what = letter_of(dom);
	unsigned i = 0;
	int err;

	cr_assert(mem->gpu == NULL || fds_are_open(mem->gpu), "the driver still looks at them");
	if (alone && what != 'g' && what != 'p')
		return -EOPNOTSUPP;
	if (refuse != 0 && (what == 'p' || what == 'q'))
		return refuse;
	err = kvx_fake_ops.mem_reg(dom, tenant, mem, rights, out_mr);
	cr_assert_eq(err, 0);
	while (mrs[i].mr != NULL)
		i++;
	mrs[i].mr = *out_mr;
	mrs[i].what = what;
	note(what);
	return 0;
}

static void any_dereg(struct kvx_mr *mr)
{
	unsigned i = 0;

	while (mrs[i].mr != mr)
		i++;
	mrs[i].mr = NULL;
	note((char)(mrs[i].what - 'a' + 'A'));
	kvx_fake_ops.mem_dereg(mr);
}

static int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		     struct kvx_why *why)
{
	int n = kvx_fake_ops.probe(conf, rails, max, why);

	for (int i = 0; i < n; i++)
		snprintf(rails[i].gpu.pci, sizeof(rails[i].gpu.pci), "0000:c%d:00.0", i % 10);
	return n;
}

static void open_node(void)
{
	rig_init(&rig);
	memset(order, 0, sizeof(order));
	copy_ops = gpu_ops = nic_ops = kvx_fake_ops;
	gpu_ops.probe = gpu_probe;
	nic_ops.caps |= KVX_CAP_DMABUF;
	copy_ops.mem_reg = gpu_ops.mem_reg = nic_ops.mem_reg = any_reg;
	copy_ops.mem_dereg = gpu_ops.mem_dereg = nic_ops.mem_dereg = any_dereg;
	rig.script.n_rails = 2;
	rig.conf.copy_workers = 1;
	rig.conf.copy_ops = &copy_ops;
	rig.conf.gpu_ops = &gpu_ops;
	rig.conf.peer_ops[0] = &nic_ops;
	rig.conf.dom.gpu.call_timeout_ms = DEADLINE_MS / 4;
	rig.conf.region_limits.max_gpu_bytes = 1ull << 40;
	rig_start(&rig);
	cr_assert_eq(rig.node->n_doms, N_DOMS);
}

/* Time passes, and all but one domain work. */
static void turn(unsigned hangs, uint64_t ms)
{
	kvx_fake_advance(&rig.script, ms * MS);
	kvx_timers_run(rig.timers);
	for (unsigned n = 0; n < 12; n++) {
		for (unsigned i = 0; i < N_DOMS; i++)
			if (i != hangs)
				kvx_worker_pump(rig.node->doms[i].worker);
		kvx_node_drain(rig.node);
	}
}

/* Memory of GPU `gpu`, whose registration has begun. */
static struct kvx_region *begin(int gpu)
{
	struct kvx_gpu_mem *mem = kvx_gpu_mem_create(N_BASES, N_BASES);
	struct kvx_region_request request = {.owner = 1,
					     .ops = &kvx_mem_cuda_ops,
					     .fd = -1,
					     .len_bytes = LEN,
					     .gpu = mem,
					     .access = 3};
	struct kvx_region *region = NULL;

	snprintf(mem->id.pci, sizeof(mem->id.pci), "0000:c%d:00.0", gpu % 10);
	for (uint32_t i = 0; i < N_BASES; i++) {
		mem->bases[i].fd = memfd_create("dmabuf", MFD_CLOEXEC);
		mem->bases[i].len_bytes = 4096;
		mem->segments[i] =
		    (struct kvx_gpu_segment){.start = i * 4096, .len_bytes = 4096, .base = i};
	}
	cr_assert_eq(kvx_region_add(kvx_node_regions(rig.node), &request, &region, NULL), 0);
	cr_assert_eq(kvx_node_region_open(rig.node, region, rig_on_opened, &rig), 0);
	return region;
}

static void expect_live(const struct kvx_region *region, bool nic0)
{
	cr_assert_eq(region->state, KVX_REGION_LIVE);
	cr_assert_eq(region->reg[NIC0] != NULL, nic0);
	cr_assert_not_null(region->reg[NIC1], "the other device has it");
}

static void finish(void)
{
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node_gpu_reg, region_goes_without_a_device_that_hangs)
{
	open_node();
	struct kvx_region *region = begin(0);
	turn(NIC0, 0);
	turn(NIC0, DEADLINE_MS - 1);
	cr_assert_eq(rig.n_opened, 0);
	turn(NIC0, 1);
	cr_assert_eq(rig.n_opened, 1);
	cr_assert_eq(rig.open_status, 0, "%s", rig.open_text);
	expect_live(region, false);
	turn(NOBODY, 0);
	cr_assert_not_null(strstr(order, "pP"), "%s: what is late is undone", order);
	expect_live(region, false);
	rig_region_close(&rig, region);
	finish();
}

Test(node_gpu_reg, what_waits_behind_it_and_what_comes_later_is_refused_and_then_taken_again)
{
	struct kvx_region *regions[5];

	open_node();
	regions[0] = begin(0);
	regions[1] = begin(0);
	turn(NIC0, 0);
	cr_assert_eq(kvx_worker_in_flight(rig.node->doms[NIC0].worker), 1, "one at a time");
	turn(NIC0, DEADLINE_MS);
	cr_assert_eq(rig.n_opened, 2);
	regions[2] = begin(0);
	turn(NIC0, 0);
	cr_assert_eq(rig.n_opened, 3, "at once");
	for (unsigned i = 0; i < 3; i++)
		expect_live(regions[i], false);
	/* The other GPU's memory is none of that. */
	regions[3] = begin(1);
	turn(NIC0, 0);
	cr_assert_eq(kvx_worker_in_flight(rig.node->doms[NIC0].worker), 2);
	turn(NOBODY, 0);
	expect_live(regions[3], true);
	regions[4] = begin(0);
	turn(NOBODY, 0);
	expect_live(regions[4], true);
	for (unsigned i = 0; i < 5; i++)
		rig_region_close(&rig, regions[i]);
	finish();
}

Test(node_gpu_reg, waiting_behind_a_slow_one_is_not_hanging)
{
	open_node();
	struct kvx_region *first = begin(0), *second = begin(0);
	turn(NIC0, 0);
	turn(NIC0, DEADLINE_MS - 1);
	kvx_worker_pump(rig.node->doms[NIC0].worker);
	turn(NIC0, 0);
	cr_assert_eq(rig.n_opened, 1);
	turn(NIC0, DEADLINE_MS - 1);
	cr_assert_eq(rig.n_opened, 1, "its own time has only begun");
	turn(NOBODY, 0);
	expect_live(first, true);
	expect_live(second, true);
	rig_region_close(&rig, first);
	rig_region_close(&rig, second);
	finish();
}

/* Everything but what the driver may be at: the dma-bufs, and the home's mapping. */
Test(node_gpu_reg, unregister_does_not_wait_and_the_memory_stays)
{
	open_node();
	struct kvx_region *region = begin(0);
	turn(NIC0, 0);
	turn(NIC0, DEADLINE_MS);
	expect_live(region, false);
	const struct kvx_gpu_mem *mem = region->mem.gpu;
	cr_assert(fds_are_open(mem));
	memset(order, 0, sizeof(order));
	cr_assert_eq(
	    kvx_node_region_close(rig.node, region, -EPIPE, "client gone", rig_on_closed, &rig), 0);
	turn(NIC0, 0);
	cr_assert_eq(rig.n_closed, 1);
	cr_assert_eq(kvx_regions_count(kvx_node_regions(rig.node)), 0);
	cr_assert_null(strchr(order, 'G'), "%s: its home has been left", order);
	cr_assert(fds_are_open(mem));
	memset(order, 0, sizeof(order));
	turn(NOBODY, 0);
	cr_assert_str_eq(order, "pPG");
	cr_assert_eq(rig.n_closed, 1);
	finish(); /* which looks for fds and memory */
}

Test(node_gpu_reg, late_refusal_leaves_nothing_to_undo)
{
	open_node();
	struct kvx_region *region = begin(0);
	turn(NIC0, 0);
	turn(NIC0, DEADLINE_MS);
	refuse = -EOPNOTSUPP;
	cr_assert_eq(
	    kvx_node_region_close(rig.node, region, -EPIPE, "client gone", rig_on_closed, &rig), 0);
	turn(NIC0, 0);
	cr_assert_eq(rig.n_closed, 1);
	turn(NOBODY, 0);
	cr_assert_null(strchr(order, 'p'));
	cr_assert_null(strchr(order, 'P'));
	cr_assert_not_null(strchr(order, 'G'));
	finish();
}

/* The GPU is lost before the deadline: the region fails, and its memory stays as long. */
Test(node_gpu_reg, failed_registration_does_not_wait_either)
{
	open_node();
	struct kvx_region *region = begin(0);
	turn(NIC0, 0);
	node_gpu_lost(&rig.node->doms[GPU0], -ENODEV, "test");
	turn(NIC0, DEADLINE_MS);
	cr_assert_eq(rig.n_opened, 1);
	cr_assert_eq(rig.open_status, -ENODEV);
	kvx_region_remove(kvx_node_regions(rig.node), region);
	cr_assert_null(strchr(order, 'G'), "%s", order);
	turn(NOBODY, 0);
	cr_assert_str_eq(order + strlen(order) - 3, "pPG");
	finish();
}

/* With nobody else to wait for; and when the late one returns just then. */
Test(node_gpu_reg, owner_is_never_told_before_close_has_returned)
{
	open_node();
	alone = true;
	for (unsigned round = 0; round < 2; round++) {
		struct kvx_region *region = begin(0);
		turn(NIC0, 0);
		turn(NIC0, DEADLINE_MS);
		cr_assert_eq(region->state, KVX_REGION_LIVE);
		cr_assert_eq(kvx_node_region_close(rig.node, region, -EPIPE, "client gone",
						   rig_on_closed, &rig),
			     0);
		cr_assert_eq(rig.n_closed, round);
		turn(round == 0 ? NIC0 : NOBODY, 0);
		cr_assert_eq(rig.n_closed, round + 1);
		turn(NOBODY, 0);
		cr_assert_eq(rig.n_closed, round + 1);
		cr_assert_str_eq(order, round == 0 ? "gpPG" : "gpPGgpPG");
	}
	finish();
}

/* Closing the node waits a little for what is late. */
Test(node_gpu_reg, node_that_closes_lets_a_late_one_end)
{
	open_node();
	struct kvx_region *region = begin(0);
	turn(NIC0, 0);
	turn(NIC0, DEADLINE_MS);
	cr_assert_eq(
	    kvx_node_region_close(rig.node, region, -EPIPE, "client gone", rig_on_closed, &rig), 0);
	turn(NIC0, 0);
	cr_assert_eq(rig.n_closed, 1);
	finish();
}
