/* Regions that have a home: it comes first when they are registered, and goes last; dma-bufs of GPU
 * memory are the daemon's only until every domain has registered; keys of any length. All domains
 * are the fake transport, which says what is registered in which. */
#include "xfer/node.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "fault_alloc.h"
#include "mem/gpu.h"
#include "node_rig.h"
#include "test_end.h"
#include "worker/worker_priv.h"

#define MIB     (1u << 20)
#define N_BASES 60
#define PCI     "0000:c1:00.0"

static struct node_rig rig;
static struct kvx_transport_ops home_ops, copy_ops, peer_ops;

/* ---- what is registered where: 'c' copy, 'h' home, 'p' peers; upper case: deregistered */

static char order[64];
static int refuse[3]; /* of copy, home, peers: what their mem_reg says; 0: it registers */
static unsigned n_fds_seen;

static void note(char what)
{
	size_t n = strlen(order);

	if (n + 1 < sizeof(order))
		order[n] = what;
}

static int any_reg(unsigned which, char what, const struct kvx_mem *mem)
{
	if (refuse[which] != 0)
		return refuse[which];
	note(what);
	for (uint32_t i = 0; mem->gpu != NULL && i < mem->gpu->n_bases; i++)
		n_fds_seen += mem->gpu->bases[i].fd >= 0;
	return 0;
}

#define DOMAIN(name, which, small, big)                                                            \
	static int name##_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem,     \
			      uint32_t rights, struct kvx_mr **out_mr)                             \
	{                                                                                          \
		int err = any_reg(which, small, mem);                                              \
		return err < 0 ? err : kvx_fake_ops.mem_reg(dom, tenant, mem, rights, out_mr);     \
	}                                                                                          \
	static void name##_dereg(struct kvx_mr *mr)                                                \
	{                                                                                          \
		note(big);                                                                         \
		kvx_fake_ops.mem_dereg(mr);                                                        \
	}
DOMAIN(copy, 0, 'c', 'C')
DOMAIN(home, 1, 'h', 'H')
DOMAIN(peer, 2, 'p', 'P')

static int home_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		      struct kvx_why *why)
{
	int n = kvx_fake_ops.probe(conf, rails, max, why);

	for (int i = 0; i < n; i++)
		snprintf(rails[i].gpu.pci, sizeof(rails[i].gpu.pci), PCI);
	return n;
}

/* ---- keys */

static size_t key_bytes; /* 0: as the fake one's */

static int long_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	if (key_bytes == 0)
		return kvx_fake_ops.mkey_pack(mr, buf, buf_bytes);
	if (buf_bytes < key_bytes)
		return -ENOSPC;
	memset(buf, 0x5a, key_bytes);
	return kvx_fake_ops.mkey_pack(mr, buf, buf_bytes) < 0 ? -EIO : (int)key_bytes;
}

static size_t unpacked_bytes;

static int long_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	unpacked_bytes = len;
	if (key_bytes == 0)
		return kvx_fake_ops.rkey_unpack(ep, mkey, len, out_rkey);
	cr_assert(len == 24 || ((const uint8_t *)mkey)[len - 1] == 0x5a);
	return kvx_fake_ops.rkey_unpack(ep, mkey, 24, out_rkey);
}

/* One domain of each kind. */
static void open_node(void)
{
	rig_init(&rig);
	memset(order, 0, sizeof(order));
	copy_ops = home_ops = peer_ops = kvx_fake_ops;
	copy_ops.mem_reg = copy_reg;
	copy_ops.mem_dereg = copy_dereg;
	copy_ops.mkey_pack = long_pack;
	copy_ops.rkey_unpack = long_unpack;
	home_ops.probe = home_probe;
	home_ops.mem_reg = home_reg;
	home_ops.mem_dereg = home_dereg;
	peer_ops.mem_reg = peer_reg;
	peer_ops.mem_dereg = peer_dereg;
	rig.conf.copy_workers = 1;
	rig.conf.copy_ops = &copy_ops;
	rig.conf.gpu_ops = &home_ops;
	rig.conf.gpu_pin_host = true;
	rig.conf.peer_ops[0] = &peer_ops;
	rig.conf.region_limits.max_gpu_bytes = 1ull << 40;
	rig_start(&rig);
}

/* Each part of an order in any order: domains of one step answer as they like. */
static bool order_is(const char *a, const char *b)
{
	size_t n = strlen(a);

	if (strlen(order) != n + strlen(b))
		return false;
	for (size_t i = 0; i < n; i++)
		if (memchr(order, a[i], n) == NULL)
			return false;
	for (size_t i = 0; b[i] != '\0'; i++)
		if (strchr(order + n, b[i]) == NULL)
			return false;
	return true;
}

static void expect_order(const char *first, const char *then)
{
	cr_assert(order_is(first, then), "%s, not %s and then %s", order, first, then);
	memset(order, 0, sizeof(order));
}

/* ---- GPU memory */

static struct kvx_region *gpu_add(void)
{
	struct kvx_gpu_mem *gpu = kvx_gpu_mem_create(N_BASES, N_BASES);
	struct kvx_region_request request = {.owner = 1,
					     .ops = &kvx_mem_cuda_ops,
					     .fd = -1,
					     .len_bytes = N_BASES * 4096,
					     .gpu = gpu,
					     .access = 3};
	struct kvx_region *region = NULL;

	cr_assert_not_null(gpu);
	snprintf(gpu->id.pci, sizeof(gpu->id.pci), PCI);
	for (uint32_t i = 0; i < N_BASES; i++) {
		gpu->bases[i].fd = memfd_create("dmabuf", MFD_CLOEXEC);
		gpu->bases[i].len_bytes = 4096;
		cr_assert_geq(gpu->bases[i].fd, 0);
		gpu->segments[i] = (struct kvx_gpu_segment){.len_bytes = 4096, .base = i};
	}
	cr_assert_eq(kvx_region_add(kvx_node_regions(rig.node), &request, &region, NULL), 0);
	return region;
}

/* NULL: it was refused. */
static struct kvx_region *gpu_open(void)
{
	struct kvx_region *region = gpu_add();
	unsigned before = rig.n_opened;

	n_fds_seen = 0;
	cr_assert_eq(kvx_node_region_open(rig.node, region, rig_on_opened, &rig), 0);
	for (unsigned i = 0; i < 100 && rig.n_opened == before; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_opened, before + 1);
	if (rig.open_status == 0)
		return region;
	kvx_region_remove(kvx_node_regions(rig.node), region);
	return NULL;
}

static unsigned fds_kept(const struct kvx_region *region)
{
	unsigned n = 0;

	for (uint32_t i = 0; i < region->mem.gpu->n_bases; i++)
		n += region->mem.gpu->bases[i].fd >= 0;
	return n;
}

/* ---- order */

Test(node_home, host_memory_comes_home_first_and_leaves_it_last)
{
	open_node();
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	expect_order("h", "cp");
	rig_region_close(&rig, region);
	expect_order("CP", "H");
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node_home, gpu_memory_comes_home_first_and_leaves_it_last)
{
	open_node();
	struct kvx_region *region = gpu_open();
	cr_assert_not_null(region, "%s", rig.open_text);
	expect_order("h", "cp");
	rig_region_close(&rig, region);
	expect_order("CP", "H");
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node_home, what_is_undone_leaves_its_home_last)
{
	open_node();
	refuse[0] = -EIO; /* a copy worker must have host memory */
	cr_assert_null(rig_region(&rig, 1, MIB, 3, NULL));
	cr_assert_eq(rig.open_status, -EIO);
	expect_order("hp", "PH");
	refuse[0] = 0;
	refuse[2] = -EOPNOTSUPP; /* peers need not */
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	expect_order("h", "c");
	rig_region_close(&rig, region);
	expect_order("C", "H");
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node_home, what_has_no_home_leaves_the_others)
{
	open_node();
	refuse[1] = -ENOMEM; /* it cannot be page-locked */
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	expect_order("c", "p");
	rig_region_close(&rig, region);
	expect_order("C", "P");
	cr_assert_null(gpu_open());
	cr_assert_eq(rig.open_status, -ENOMEM);
	expect_order("", "");
	rig_stop(&rig);
	KVX_TEST_END();
}

/* The home waits for the slowest of the others. */
Test(node_home, home_is_left_when_the_last_other_has_answered)
{
	open_node();
	struct kvx_region *region = gpu_open();
	const char *name;
	cr_assert_not_null(region);
	memset(order, 0, sizeof(order));
	cr_assert_eq(kvx_node_region_close(rig.node, region, -EOWNERDEAD, "unregistered",
					   rig_on_closed, &rig),
		     0);
	/* Only the copy worker turns. */
	struct kvx_worker *copy = kvx_node_worker(rig.node, 0, &name);
	for (unsigned i = 0; i < 5; i++) {
		kvx_worker_pump(copy);
		kvx_node_drain(rig.node);
	}
	cr_assert_str_eq(order, "C");
	for (unsigned i = 0; i < 10; i++)
		rig_turn(&rig, 0);
	cr_assert_str_eq(order, "CPH");
	cr_assert_eq(rig.n_closed, 1);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* ---- dma-bufs */

Test(node_home, dmabufs_are_closed_once_all_have_registered)
{
	open_node();
	struct kvx_region *region = gpu_open();
	cr_assert_not_null(region);
	cr_assert_eq(n_fds_seen, 3 * N_BASES, "every domain has seen them all");
	cr_assert_eq(fds_kept(region), 0);
	rig_region_close(&rig, region);
	rig_stop(&rig);
	KVX_TEST_END();
}

Test(node_home, dmabufs_of_a_region_that_is_refused_are_closed)
{
	open_node();
	refuse[1] = -EFAULT;
	cr_assert_null(gpu_open());
	cr_assert_eq(rig.open_status, -EFAULT);
	cr_assert_eq(n_fds_seen, 0);
	refuse[1] = 0;
	rig.conf.gpu_ops = NULL;
	rig_stop(&rig); /* and the test's end looks for fds */
	KVX_TEST_END();
}

/* While the others register it, or its dma-bufs are being closed. */
Test(node_home, region_of_a_device_that_is_lost_meanwhile_is_refused)
{
	for (unsigned turns = 0; turns < 12; turns++) {
		const struct kvx_node_rail *rails;
		unsigned n;

		open_node();
		rails = kvx_node_rails(rig.node, &n);
		struct kvx_region *region = gpu_add();
		cr_assert_eq(kvx_node_region_open(rig.node, region, rig_on_opened, &rig), 0);
		for (unsigned i = 0; i < turns; i++) {
			kvx_worker_pump(kvx_node_worker(rig.node, i % 3, &(const char *){NULL}));
			kvx_node_drain(rig.node);
		}
		bool was_open = rig.n_opened > 0;
		kvx_fake_device_lose(&rig.script, rails[0].worker->dom);
		for (unsigned i = 0; i < 50 && rig.n_opened == 0; i++)
			rig_turn(&rig, 0);
		cr_assert_eq(rig.n_opened, 1);
		rig_turn(&rig, 0);
		cr_assert_eq(rig.open_status, was_open ? 0 : -ENODEV, "after %u turns: %s", turns,
			     rig.open_text);
		if (was_open)
			rig_region_close(&rig, region);
		else
			kvx_region_remove(kvx_node_regions(rig.node), region);
		rig_stop(&rig);
		KVX_TEST_END();
	}
}

/* ---- keys */

Test(node_home, keys_are_as_long_as_they_are)
{
	static const size_t lengths[] = {24, 25, 128, 129, 4096, KVX_TRANSPORT_MKEY_MAX};
	for (unsigned i = 0; i < 6; i++) {
		const void *key = NULL;
		size_t len = 0;

		key_bytes = lengths[i];
		open_node();
		struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
		cr_assert_eq(kvx_node_region_mkey(region, 0, &key, &len), 0);
		cr_assert_eq(len, lengths[i]);
		cr_assert(len == 24 || ((const uint8_t *)key)[len - 1] == 0x5a);
		struct kvx_target *target = rig_target(&rig, region);
		rig_turn(&rig, 0);
		cr_assert_eq(unpacked_bytes, len);
		cr_assert_eq(rig.script.n_rkeys, 1);
		kvx_target_unref(target);
		rig_region_close(&rig, region);
		rig_stop(&rig);
		KVX_TEST_END();
	}
}

Test(node_home, a_key_that_is_too_long_is_refused_by_name)
{
	key_bytes = KVX_TRANSPORT_MKEY_MAX + 1;
	open_node();
	cr_assert_null(rig_region(&rig, 1, MIB, 3, NULL));
	cr_assert_eq(rig.open_status, -ENOSPC);
	cr_assert_not_null(strstr(rig.open_text, "too many pieces"), "%s", rig.open_text);
	cr_assert_eq(rig.script.n_mrs, 0);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* The region's target has its key while it is unpacked, whatever becomes of the region. */
Test(node_home, a_region_that_closes_keeps_its_keys_until_they_are_unpacked)
{
	key_bytes = KVX_TRANSPORT_MKEY_MAX;
	open_node();
	struct kvx_region *region = rig_region(&rig, 1, MIB, 3, NULL);
	struct kvx_target *target = rig_target(&rig, region); /* its unpacking is on its way */
	cr_assert_eq(kvx_node_region_close(rig.node, region, -EOWNERDEAD, "unregistered",
					   rig_on_closed, &rig),
		     0);
	kvx_node_drain(rig.node);
	for (unsigned i = 0; i < 100 && rig.n_closed == 0; i++)
		rig_turn(&rig, 0);
	cr_assert_eq(rig.n_closed, 1);
	kvx_target_unref(target);
	rig_turn(&rig, 0);
	rig_stop(&rig);
	KVX_TEST_END();
}

/* Only its home has to have it. */
Test(node_home, every_allocation_of_a_registration_may_fail)
{
	key_bytes = 4096;
	open_node();
	for (unsigned n = 1; n < 40; n++) {
		struct kvx_region *region = gpu_add();
		unsigned before = rig.n_opened;

		if (kvx_node_region_open(rig.node, region, rig_on_opened, &rig) < 0)
			cr_assert_fail("no memory");
		fault_alloc_arm(n);
		for (unsigned i = 0; i < 50 && rig.n_opened == before; i++)
			rig_turn(&rig, 0);
		bool failed = fault_alloc_disarm();
		cr_assert_eq(rig.n_opened, before + 1);
		if (rig.open_status == 0) {
			rig_region_close(&rig, region);
			if (!failed)
				break;
		} else {
			cr_assert_eq(rig.open_status, -ENOMEM);
			kvx_region_remove(kvx_node_regions(rig.node), region);
		}
		cr_assert_eq(rig.script.n_mrs, 0);
		cr_assert_lt(n, 39);
	}
	rig_stop(&rig);
	KVX_TEST_END();
}
