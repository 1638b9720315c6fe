/* What the node does when a GPU is lost: its regions are taken away from everybody at once, other
 * nodes too, whose RDMA devices know nothing of it; they are retired later, by their owner. */
#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "mem/gpu.h"
#include "node_rig.h"
#include "one_gpu.h"
#include "test_end.h"
#include "xfer/node_priv.h"

#define LEN 65536u

static struct node_rig rig;
static struct kvx_transport_ops gpu_ops;

/* The peer table's part. */
static struct {
	unsigned n;
	int status;
	void (*done_cb)(void *done_arg);
	void *done_arg;
} asked;

static void withdraw(void *arg, struct kvx_region *region, const struct kvx_withdrawal *why,
		     void (*done_cb)(void *done_arg), void *done_arg)
{
	asked.n++;
	asked.status = why->status;
	asked.done_cb = done_cb;
	asked.done_arg = done_arg;
}

static int gpu_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,
		       uint32_t rights, struct kvx_mr **out_mr)
{
	static uint8_t memory[LEN];
	struct kvx_mem there = *mem;

	there.addr = memory;
	there.ops = &kvx_mem_host_ops;
	return kvx_fake_ops.mem_reg(dom, tenant, &there, rights, out_mr);
}

static struct kvx_region *gpu_region(void)
{
	struct kvx_gpu_mem *gpu = kvx_gpu_mem_create(1, 1);
	const struct kvx_region_request request = {.owner = 1,
						   .ops = &kvx_mem_cuda_ops,
						   .fd = -1,
						   .len_bytes = LEN,
						   .access = KVX_ACCESS_READ,
						   .gpu = gpu};
	struct kvx_region *region = NULL;
	struct kvx_why why = {""};

	snprintf(gpu->id.pci, sizeof(gpu->id.pci), TEST_GPU_PCI);
	gpu->bases[0].len_bytes = gpu->segments[0].len_bytes = LEN;
	cr_assert_eq(kvx_region_add(kvx_node_regions(rig.node), &request, &region, &why), 0, "%s",
		     why.text);
	cr_assert_eq(kvx_node_region_open(rig.node, region, rig_on_opened, &rig), 0);
	for (unsigned i = 0; i < 100 && rig.n_opened == 0; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_opened, 1);
	cr_assert_eq(rig.open_status, 0, "%s", rig.open_text);
	return region;
}

static struct kvx_region *start(void)
{
	static const struct kvx_node_peer_hooks hooks = {.withdraw = withdraw};

	test_one_gpu_ops(&gpu_ops);
	gpu_ops.mem_reg = gpu_mem_reg;
	rig_init(&rig);
	rig.conf.gpu_ops = &gpu_ops;
	rig.conf.region_limits.max_gpu_bytes = LEN;
	rig_start(&rig);
	kvx_node_set_peers(rig.node, &hooks);
	return gpu_region();
}

static void lose_gpu(void)
{
	struct node_dom *dom = NULL;

	for (unsigned i = 0; i < rig.node->n_doms; i++)
		if (rig.node->doms[i].rail != NULL)
			dom = &rig.node->doms[i];
	cr_assert_not_null(dom);
	node_gpu_lost(dom, -ENODEV, "test");
	rig_turn(&rig, 0);
}

Test(node_gpu, regions_of_a_lost_gpu_are_withdrawn_at_once_and_once)
{
	struct kvx_region *region = start();

	lose_gpu();
	cr_assert_eq(region->state, KVX_REGION_FAILED);
	cr_assert_eq(asked.n, 1, "other nodes would go on with it");
	cr_assert_eq(asked.status, -ENODEV);
	asked.done_cb(asked.done_arg);
	rig_turn(&rig, 0);
	rig_region_close(&rig, region);
	cr_assert_eq(asked.n, 1);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node_gpu, a_region_is_retired_only_when_other_nodes_have_given_it_up)
{
	struct kvx_region *region = start();

	lose_gpu();
	cr_assert_eq(kvx_node_region_close(rig.node, region, -EOWNERDEAD, "unregistered",
					   rig_on_closed, &rig),
		     0);
	rig_turn(&rig, 1000000);
	cr_assert_eq(rig.n_closed, 0);
	cr_assert_eq(asked.n, 1);
	asked.done_cb(asked.done_arg);
	for (unsigned i = 0; i < 100 && rig.n_closed == 0; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	rig_stop(&rig);
	KVX_TEST_END();
}
