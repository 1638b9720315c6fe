/* What is known of RDMA devices without asking them: libibverbs's words about ABIs, and the
 * kernel's files. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "sysfs_tree.h"
#include "test_end.h"
#include "transport/verbs/verbs_abi.h"
#include "transport/verbs/verbs_sysfs.h"

/* ---- what libibverbs says */

static const char words[] =
    "libibverbs: Warning: couldn't load driver 'libvendor-rdmav34.so': libvendor-rdmav34.so: "
    "cannot open shared object file\n"
    "libibverbs: Warning: Driver bnxt_re does not support the kernel ABI of 6 (supports 1 to 1) "
    "for device /sys/class/infiniband/rdma10\n"
    "libibverbs: Warning: Driver mlx5 does not support the kernel ABI of 2 (supports 1 to 1) for "
    "device /sys/class/infiniband/rdma1\n";

Test(verbs_abi, finds_the_line_of_the_device_only)
{
	struct verbs_abi_gap gap;

	cr_assert(verbs_abi_find(words, "rdma1", &gap));
	cr_assert_str_eq(gap.provider, "mlx5");
	cr_assert_str_eq(gap.device, "rdma1");
	cr_assert_eq(gap.kernel_abi, 2);
	cr_assert(verbs_abi_find(words, "rdma10", &gap));
	cr_assert_str_eq(gap.provider, "bnxt_re");
	cr_assert_eq(gap.kernel_abi, 6);
	cr_assert_eq(gap.min_abi, 1);
	cr_assert_eq(gap.max_abi, 1);
	cr_assert_not(verbs_abi_find(words, "rdma", &gap));
	KVX_TEST_END();
}

Test(verbs_abi, other_words_are_no_finding)
{
	static const char *const others[] = {
	    "",
	    "\n\n",
	    "libibverbs: Warning: Driver bnxt_re does not support the kernel ABI of 6\n",
	    "libibverbs: Warning: Driver bnxt_re does not support the kernel ABI of x (supports 1 "
	    "to 1) for device /sys/class/infiniband/rdma1\n",
	    "libibverbs: Warning: Driver d does not support the kernel ABI of 6 (supports 1 to 1) "
	    "for device rdma1\n",
	};
	struct verbs_abi_gap gap;

	for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++)
		cr_assert_not(verbs_abi_find(others[i], "rdma1", &gap), "%s", others[i]);
	KVX_TEST_END();
}

Test(verbs_abi, names_the_library_that_was_not_loaded)
{
	char name[64], small[4];

	cr_assert(verbs_abi_unloadable(words, name, sizeof(name)));
	cr_assert_str_eq(name, "libvendor-rdmav34.so");
	cr_assert_not(verbs_abi_unloadable(words, small, sizeof(small)));
	cr_assert_not(verbs_abi_unloadable("", name, sizeof(name)));
	cr_assert_not(verbs_abi_unloadable("libibverbs: Warning: couldn't load driver 'cut", name,
					   sizeof(name)));
	KVX_TEST_END();
}

Test(verbs_abi, every_driver_has_a_cure_and_those_known_their_own)
{
	cr_assert_not_null(strstr(verbs_abi_cure("bnxt_re", true), "libbnxt_re"));
	cr_assert_not_null(strstr(verbs_abi_cure("bnxt_en", false), "ibverbs-providers"));
	cr_assert_not_null(strstr(verbs_abi_cure("ionic", true), "libionic"));
	cr_assert_not_null(strstr(verbs_abi_cure("mlx5_core", true), "ibverbs-providers"));
	cr_assert_not_null(strstr(verbs_abi_cure("", false), "rdma-core"));
	KVX_TEST_END();
}

/* ---- what the kernel shows */

Test(verbs_sysfs, devices_come_by_name_with_what_they_are)
{
	struct sysfs_tree tree;
	struct verbs_kdev devices[4];

	sysfs_tree_init(&tree);
	sysfs_tree_add(&tree, "mlx5_10", 0, "1");
	sysfs_tree_add(&tree, "mlx5_2", 3, "6");
	cr_assert_eq(verbs_sysfs_devices(tree.root, devices, 4), 2);
	cr_assert_str_eq(devices[0].name, "mlx5_2");
	cr_assert_str_eq(devices[0].uverbs, "uverbs3");
	cr_assert_eq(devices[0].abi, 6);
	cr_assert_eq(devices[0].numa_node, 1);
	cr_assert_str_eq(devices[0].firmware, "1.2.3");
	cr_assert_eq(devices[0].n_ports, 1);
	cr_assert(devices[0].ports[0].active);
	cr_assert_not(devices[0].ports[0].infiniband);
	cr_assert_str_eq(devices[0].ports[0].rate, "100 Gb/sec (4X EDR)");
	cr_assert_str_eq(devices[1].name, "mlx5_10");
	cr_assert_eq(verbs_sysfs_devices(tree.root, devices, 1), 1);
	sysfs_tree_fini(&tree);
	KVX_TEST_END();
}

Test(verbs_sysfs, a_device_without_uverbs_and_a_dead_port)
{
	struct sysfs_tree tree;
	struct verbs_kdev device;

	sysfs_tree_init(&tree);
	sysfs_tree_add(&tree, "rxe0", 0, NULL);
	sysfs_tree_write(&tree, "1: DOWN", "infiniband/rxe0/ports/1/state");
	sysfs_tree_write(&tree, "InfiniBand", "infiniband/rxe0/ports/1/link_layer");
	cr_assert_eq(verbs_sysfs_devices(tree.root, &device, 1), 1);
	cr_assert_str_eq(device.uverbs, "");
	cr_assert_eq(device.abi, -1);
	cr_assert_not(device.ports[0].active);
	cr_assert(device.ports[0].infiniband);
	sysfs_tree_fini(&tree);
	KVX_TEST_END();
}

Test(verbs_sysfs, no_tree_no_devices)
{
	struct verbs_kdev device;

	cr_assert_eq(verbs_sysfs_devices("/nowhere", &device, 1), 0);
	cr_assert_eq(verbs_sysfs_numa("/nowhere"), -1);
	KVX_TEST_END();
}

Test(verbs_sysfs, gids_are_read_with_kind_and_interface)
{
	struct sysfs_tree tree;
	struct verbs_gid gids[8];
	const struct verbs_gid *gid;

	sysfs_tree_init(&tree);
	sysfs_tree_add(&tree, "rxe0", 0, "2");
	cr_assert_eq(verbs_sysfs_gids(tree.root, "rxe0", 1, gids, 8), 4, "empty ones are left out");
	cr_assert_eq(gids[2].kind, VERBS_GID_ROCE_V1);
	cr_assert_eq(gids[3].kind, VERBS_GID_ROCE_V2);
	cr_assert_eq(gids[3].index, 3);
	cr_assert_str_eq(gids[3].netdev, "eth0");
	cr_assert_eq(verbs_gid_choose(gids, 4, false, -1, &gid, NULL), 0);
	cr_assert_eq(gid->index, 3);
	sysfs_tree_fini(&tree);
	KVX_TEST_END();
}

/* The table names the interface only while the port is up. */
Test(verbs_sysfs, the_interface_of_a_dead_port_is_found)
{
	struct sysfs_tree tree;
	struct verbs_kdev devices[3];

	sysfs_tree_init(&tree);
	sysfs_tree_write(&tree, "Ethernet", "infiniband/soft0/ports/1/link_layer");
	sysfs_tree_write(&tree, "eth5", "infiniband/soft0/parent");
	sysfs_tree_write(&tree, "Ethernet", "infiniband/hard0/ports/1/link_layer");
	sysfs_tree_write(&tree, "Ethernet", "infiniband/hard0/ports/2/link_layer");
	sysfs_tree_write(&tree, "0", "infiniband/hard0/device/net/enp1s0/dev_port");
	sysfs_tree_write(&tree, "1", "infiniband/hard0/device/net/enp1s1/dev_port");
	cr_assert_eq(verbs_sysfs_devices(tree.root, devices, 3), 2);
	cr_assert_str_eq(devices[0].ports[0].netdev, "enp1s0");
	cr_assert_str_eq(devices[0].ports[1].netdev, "enp1s1");
	cr_assert_str_eq(devices[1].ports[0].netdev, "eth5");
	sysfs_tree_fini(&tree);
	KVX_TEST_END();
}
