/* Which ports of which devices become rails, on the stand-in: what is found, and the reason for
 * what cannot be used. */
#include <stdio.h>

#include "fault_alloc.h"
#include "verbs_rig.h"

#define MAX 16

struct found {
	struct kvx_dom_conf conf;
	struct kvx_rail rails[MAX];
	int n;
	struct kvx_why why;
};

static void look(struct found *f)
{
	f->conf.verbs.gid_index = f->conf.verbs.gid_index == 0 ? -1 : f->conf.verbs.gid_index;
	f->n = T->probe(&f->conf, f->rails, MAX, &f->why);
}

static const struct kvx_rail *rail_get(const struct found *f, const char *name)
{
	for (int i = 0; i < f->n; i++)
		if (strcmp(f->rails[i].name, name) == 0)
			return &f->rails[i];
	cr_assert_fail("no rail %s", name);
	return NULL;
}

static void expect_reason(const struct found *f, const char *name, const char *words)
{
	const struct kvx_rail *rail = rail_get(f, name);

	cr_assert(!rail->usable);
	cr_assert_not_null(strstr(rail->reason, words), "\"%s\" lacks \"%s\"", rail->reason, words);
}

/* Usable, but not now. */
static void expect_wait(const struct found *f, const char *name, const char *words)
{
	const struct kvx_rail *rail = rail_get(f, name);

	cr_assert(rail->usable, "%s", rail->reason);
	cr_assert_not_null(strstr(rail->reason, words), "\"%s\" lacks \"%s\"", rail->reason, words);
}

static void start(void)
{
	fake_verbs_reset();
	kvx_log_set_level(KVX_LOG_ERROR);
}

Test(verbs_probe, active_port_is_told_with_all_its_facts)
{
	struct found f = {0};
	const struct kvx_rail *rail;

	start();
	fake_verbs_sysfs_write("infiniband/fake0/device/numa_node", "1\n");
	f.conf.test = (void *)fake_verbs_sysfs();
	look(&f);
	cr_assert_eq(f.n, 1, "%s", f.why.text);
	rail = rail_get(&f, "fake0:1");
	cr_assert(rail->usable);
	cr_assert_str_eq(rail->reason, "");
	cr_assert_str_eq(rail->device, "fake0");
	cr_assert_str_eq(rail->gid, "::ffff:10.0.0.1");
	cr_assert_eq(rail->gid_index, 3);
	cr_assert_str_eq(rail->netdev, "lo");
	cr_assert_str_eq(rail->firmware, "1.2.3");
	cr_assert_eq(rail->mtu_bytes, 1024);
	cr_assert_eq(rail->speed_mbps, 100000);
	cr_assert_eq(rail->numa_node, 1);
	cr_assert_eq(rail->link, KVX_RAIL_LINK_ETHERNET);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, all_ports_of_all_devices_those_that_are_up_first)
{
	struct found f = {0};

	start();
	fake_verbs_dev(0)->attr.phys_port_cnt = 2;
	fake_verbs_dev(0)->ports[0].attr.state = IBV_PORT_DOWN;
	fake_verbs_add("fake1");
	look(&f);
	cr_assert_eq(f.n, 3);
	cr_assert_str_eq(f.rails[0].name, "fake0:2");
	cr_assert_str_eq(f.rails[1].name, "fake1:1");
	cr_assert(f.rails[0].usable && f.rails[1].usable);
	expect_wait(&f, "fake0:1", "PORT_DOWN");
	expect_wait(&f, "fake0:1", "ip link set lo up");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, no_device_is_an_error_that_says_so)
{
	struct found f = {0};

	start();
	fake_verbs_remove_all();
	f.conf.test = (void *)fake_verbs_sysfs();
	look(&f);
	cr_assert_eq(f.n, -ENODEV);
	cr_assert_not_null(strstr(f.why.text, "no RDMA device"), "%s", f.why.text);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, list_that_fails_is_no_crash)
{
	struct found f = {0};

	start();
	f.conf.test = (void *)fake_verbs_sysfs();
	fake_verbs_fail(FV_GET_DEVICE_LIST, 1, ENOSYS);
	look(&f);
	cr_assert(fake_verbs_fired());
	cr_assert_eq(f.n, -ENODEV);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, iwarp_and_efa_are_left_to_fabric)
{
	struct found f = {0};

	start();
	fake_verbs_dev(0)->dev.transport_type = IBV_TRANSPORT_IWARP;
	fake_verbs_add("fake1")->dev.transport_type = IBV_TRANSPORT_UNSPECIFIED;
	look(&f);
	expect_reason(&f, "fake0", "iWARP");
	expect_reason(&f, "fake1", "fabric");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, port_without_a_usable_gid_says_why)
{
	struct found f = {0};
	struct fake_verbs_port *port;

	start();
	port = &fake_verbs_dev(0)->ports[0];
	memset(&port->gids[2], 0, 2 * sizeof(port->gids[2])); /* the address of the interface */
	look(&f);
	expect_wait(&f, "fake0:1", "verbs.gid_index = 1");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, gid_index_of_the_configuration_is_taken)
{
	struct found f = {.conf.verbs.gid_index = 1};

	start();
	look(&f);
	cr_assert_eq(rail_get(&f, "fake0:1")->gid_index, 1);
	cr_assert_str_eq(rail_get(&f, "fake0:1")->gid, "fe80::1");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, infiniband_port_that_waits_for_a_subnet_manager)
{
	struct found f = {0};
	struct fake_verbs_port *port;

	start();
	port = &fake_verbs_dev(0)->ports[0];
	port->attr.link_layer = IBV_LINK_LAYER_INFINIBAND;
	port->attr.state = IBV_PORT_INIT;
	look(&f);
	expect_wait(&f, "fake0:1", "opensm");
	cr_assert_eq(f.rails[0].link, KVX_RAIL_LINK_INFINIBAND);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, devices_of_the_configuration_are_left_out)
{
	struct found f = {.conf.verbs.devices = "fake1"};

	start();
	fake_verbs_add("fake1");
	look(&f);
	expect_reason(&f, "fake0", "left out by verbs.devices");
	cr_assert(rail_get(&f, "fake1:1")->usable);
	FAKE_VERBS_END();
	KVX_TEST_END();
}

static void expect_open_error(int error, const char *words)
{
	struct found f = {0};

	start();
	fake_verbs_fail(FV_OPEN_DEVICE, 1, error);
	look(&f);
	cr_assert(fake_verbs_fired());
	expect_reason(&f, "fake0", words);
	FAKE_VERBS_END();
}

Test(verbs_probe, device_that_cannot_be_opened_says_what_to_do)
{
	expect_open_error(EACCES, "/dev/infiniband/uverbs0");
	expect_open_error(ENOENT, "modprobe ib_uverbs");
	expect_open_error(ENODEV, "gone");
	expect_open_error(EMFILE, "doctor");
	KVX_TEST_END();
}

static void kernel_device(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "infiniband/%s/fw_ver", name);
	fake_verbs_sysfs_write(path, "9.9\n");
	fake_verbs_sysfs_write("infiniband_verbs/uverbs5/ibdev", "bnxt_re0\n");
	fake_verbs_sysfs_write("infiniband_verbs/uverbs5/abi_version", "7\n");
}

Test(verbs_probe, provider_of_another_abi_names_both_and_the_package)
{
	struct found f = {0};

	start();
	kernel_device("bnxt_re0");
	f.conf.test = (void *)fake_verbs_sysfs();
	fake_verbs_say("libibverbs: Warning: Driver bnxt_re does not support the kernel ABI of 7 "
		       "(supports 1 to 6) for device /sys/class/infiniband/bnxt_re0\n");
	look(&f);
	expect_reason(&f, "bnxt_re0", "ABI 7");
	expect_reason(&f, "bnxt_re0", "1 to 6");
	expect_reason(&f, "bnxt_re0", "libbnxt_re");
	cr_assert(rail_get(&f, "fake0:1")->usable, "the others work all the same");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, kernel_device_without_provider_is_told)
{
	struct found f = {0};

	start();
	kernel_device("bnxt_re0");
	f.conf.test = (void *)fake_verbs_sysfs();
	look(&f);
	expect_reason(&f, "bnxt_re0", "no user-space provider");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

Test(verbs_probe, kernel_device_without_ib_uverbs_is_told)
{
	struct found f = {0};

	start();
	fake_verbs_sysfs_write("infiniband/bnxt_re0/fw_ver", "9.9\n");
	f.conf.test = (void *)fake_verbs_sysfs();
	look(&f);
	expect_reason(&f, "bnxt_re0", "modprobe ib_uverbs");
	FAKE_VERBS_END();
	KVX_TEST_END();
}

/* Whatever call fails, nothing stays open. */
Test(verbs_probe, no_failing_call_leaves_anything_behind)
{
	for (unsigned n = 1;; n++) {
		struct found f = {0};

		start();
		fake_verbs_dev(0)->attr.phys_port_cnt = 2;
		fake_verbs_add("fake1");
		f.conf.test = (void *)fake_verbs_sysfs();
		fake_verbs_fail(FV_N_FNS, n, EIO);
		look(&f);
		if (!fake_verbs_fired()) {
			cr_assert_gt(n, 8, "calls: list, open, device, ports, GIDs");
			FAKE_VERBS_END();
			break;
		}
		FAKE_VERBS_END();
	}
	KVX_TEST_END();
}

Test(verbs_probe, no_failing_allocation_leaves_anything_behind)
{
	struct found f = {0};

	start();
	f.conf.test = (void *)fake_verbs_sysfs();
	look(&f); /* what libc allocates once is no leak of ours */
	for (unsigned n = 1;; n++) {
		fault_alloc_arm(n);
		look(&f);
		if (!fault_alloc_disarm())
			break;
	}
	cr_assert_eq(f.n, 1);
	FAKE_VERBS_END();
	KVX_TEST_END();
}
