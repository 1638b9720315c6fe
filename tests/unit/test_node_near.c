/* Node: which RDMA device is a GPU's, and that transfers of the GPU's memory go by it. The rails
 * are "fake0" and "fake1" of the transport "best", in a made-up /sys. */
#include <criterion/criterion.h>
#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "mem/gpu.h"
#include "peer_ways.h"
#include "sysfs_tree.h"
#include "test_end.h"

#define NEAR_GPU "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/" TEST_GPU_PCI
#define NEAR_NIC "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:12:00.0"
#define FAR_NIC  "pci0000:80/0000:80:01.0/0000:81:00.0"

static struct sysfs_tree tree;
static struct kvx_gpu_mem gpu = {.id.pci = TEST_GPU_PCI};

static void place(const char *at, int numa)
{
	const char *name = strrchr(at, '/') + 1;
	char line[16], from[512], to[512];

	snprintf(line, sizeof(line), "%d", numa);
	sysfs_tree_write(&tree, line, "devices/%s/numa_node", at);
	sysfs_tree_write(&tree, "", "bus/pci/devices/uevent");
	snprintf(from, sizeof(from), "%s/bus/pci/devices/%s", tree.root, name);
	snprintf(to, sizeof(to), "../../../devices/%s", at);
	cr_assert_eq(symlink(to, from), 0);
}

static void place_nic(const char *device, const char *at, int numa)
{
	char from[512], to[512];

	place(at, numa);
	sysfs_tree_write(&tree, "", "class/infiniband/%s/uevent", device);
	snprintf(from, sizeof(from), "%s/class/infiniband/%s/device", tree.root, device);
	snprintf(to, sizeof(to), "../../../devices/%s", at);
	cr_assert_eq(symlink(to, from), 0);
}

static KVX_ON_LOOP void start(void)
{
	rig_init(&rig);
	ways_init();
	rig.a.n_rails = rig.b.n_rails = 2;
	rig.a.node_conf.sysfs = rig.b.node_conf.sysfs = tree.root;
	rig_start(&rig);
	here = rig_region(&rig.a, LEN, RW, NULL);
	there = rig_region(&rig.b, LEN, RW, NULL);
	target = ways_import(there);
}

static KVX_ON_LOOP void stop(void)
{
	here->mem.gpu = NULL;
	pair_stop();
	sysfs_tree_fini(&tree);
}

/* Rails of "best" on a, by the place of their leg. */
static unsigned dom_index(unsigned rail)
{
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(rig.a.node, &n);

	for (unsigned i = 0; i < n; i++)
		if (rails[i].ops == BEST && rail-- == 0)
			return rails[i].dom_index;
	cr_assert_fail("no such rail");
	return 0;
}

static bool lane_has_legs(unsigned n)
{
	struct kvx_lane_row row;

	return ways_lane(&rig.a, false, &row) && strcmp(row.state, "up") == 0 && row.n_legs == n;
}

/* Bit set of the legs that carry some of 8 writes from `here`. */
static KVX_ON_LOOP unsigned legs_used(void)
{
	struct kvx_lane_row row;
	unsigned legs = 0, n = rig.a.n_ends;

	rig.script.latency_ns = 5 * KVX_MS;
	for (unsigned i = 0; i < 8; i++)
		cr_assert_eq(rig_submit(&rig.a, KVX_OP_WRITE, here, target, LEN, 5000), 0);
	rig_pass(&rig, 2);
	cr_assert(ways_lane(&rig.a, false, &row));
	for (unsigned i = 0; i < row.n_legs; i++)
		if (row.legs[i].batches_in_flight > 0)
			legs |= 1u << i;
	cr_assert(RIG_UNTIL(&rig, rig.a.n_ends == n + 8, 1000));
	for (unsigned i = n; i < rig.a.n_ends; i++)
		cr_assert_eq(rig.a.ends[i].end.status, 0, "%s", rig.a.ends[i].text);
	rig.script.latency_ns = 0;
	return legs;
}

Test(node_near, transfers_of_gpu_memory_go_by_the_nearest_device)
{
	sysfs_tree_init(&tree);
	place(NEAR_GPU, 0);
	place_nic("fake0", FAR_NIC, 1);
	place_nic("fake1", NEAR_NIC, 0);
	start();
	cr_assert_eq(kvx_node_near_rails(rig.a.node, &gpu.id) & 1ull << dom_index(1),
		     1ull << dom_index(1));
	cr_assert_eq(kvx_node_near_rails(rig.a.node, &gpu.id) & 1ull << dom_index(0), 0);
	cr_assert_eq(legs_used(), 3, "host memory goes by all");
	here->mem.gpu = &gpu;
	cr_assert_eq(legs_used(), 2);
	stop();
	KVX_TEST_END();
}

Test(node_near, next_device_is_taken_when_the_nearest_is_lost)
{
	sysfs_tree_init(&tree);
	place(NEAR_GPU, 0);
	place_nic("fake0", FAR_NIC, 1);
	place_nic("fake1", NEAR_NIC, 0);
	start();
	kvx_fake_device_lose(&rig.script, test_rail(BEST, 0, 1)->dom);
	kvx_fake_device_lose(&rig.script, test_rail(ANY, 0, 1)->dom);
	cr_assert(RIG_UNTIL(&rig, lane_has_legs(1), 3000));
	cr_assert(kvx_node_near_rails(rig.a.node, &gpu.id) & 1ull << dom_index(0));
	here->mem.gpu = &gpu;
	cr_assert_eq(legs_used(), 1);
	stop();
	KVX_TEST_END();
}

/* A device of which nothing is known is not nearer than another. */
Test(node_near, without_a_place_on_pci_all_are_used)
{
	sysfs_tree_init(&tree);
	place(NEAR_GPU, 0);
	start();
	cr_assert_eq(kvx_node_near_rails(rig.a.node, &gpu.id), 0);
	here->mem.gpu = &gpu;
	cr_assert_eq(legs_used(), 3);
	stop();
	KVX_TEST_END();
}

Test(node_near, gpu_that_is_not_there_has_no_near_device)
{
	const struct kvx_gpu_id other = {.pci = "0000:99:00.0"};

	sysfs_tree_init(&tree);
	place(NEAR_GPU, 0);
	place_nic("fake0", FAR_NIC, 1);
	place_nic("fake1", NEAR_NIC, 0);
	start();
	cr_assert_eq(kvx_node_near_rails(rig.a.node, &other), 0);
	cr_assert_eq(kvx_node_near_rails(rig.b.node, &gpu.id), 0, "b has none");
	stop();
	KVX_TEST_END();
}
