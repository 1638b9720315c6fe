/* How near PCI devices are, and which NIC each GPU is given. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/pci.h"
#include "sysfs_tree.h"
#include "test_end.h"

/* "pci0000:00/0000:00:01.0/0000:01:00.0" in a tree of its own kind; the path read back. */
static struct kvx_pci_path place(struct sysfs_tree *tree, const char *at, int numa)
{
	const char *name = strrchr(at, '/') + 1;
	char line[16], from[512], to[512];
	struct kvx_pci_path path;

	snprintf(line, sizeof(line), "%d", numa);
	sysfs_tree_write(tree, line, "devices/%s/numa_node", at);
	sysfs_tree_write(tree, "", "bus/pci/devices/uevent");
	snprintf(from, sizeof(from), "%s/bus/pci/devices/%s", tree->root, name);
	snprintf(to, sizeof(to), "../../../devices/%s", at);
	cr_assert_eq(symlink(to, from), 0);
	cr_assert_eq(kvx_pci_path_read(tree->root, name, &path), 0);
	return path;
}

static void expect(const struct kvx_pci_path *a, const struct kvx_pci_path *b,
		   enum kvx_pci_relation relation, unsigned hops)
{
	struct kvx_pci_distance there = kvx_pci_distance_of(a, b);
	struct kvx_pci_distance back = kvx_pci_distance_of(b, a);

	cr_expect_eq(there.relation, relation, "%s: %s", a->name,
		     kvx_pci_relation_name(there.relation));
	cr_expect_eq(there.hops, hops, "%s: %u", a->name, there.hops);
	cr_expect_eq(back.relation, there.relation);
	cr_expect_eq(back.hops, there.hops);
}

Test(pci, names_are_taken_in_every_form_and_nothing_else_is)
{
	char name[KVX_PCI_NAME_BYTES];

	cr_assert(kvx_pci_name("0000:C1:00.0", name));
	cr_assert_str_eq(name, "0000:c1:00.0");
	cr_assert(kvx_pci_name("00000001:0a:1f.7", name));
	cr_assert_str_eq(name, "0001:0a:1f.7");
	cr_assert(kvx_pci_name("c1:00.0", name));
	cr_assert_str_eq(name, "0000:c1:00.0");
	cr_assert_not(kvx_pci_name("pci0000:c0", name));
	cr_assert_not(kvx_pci_name("0000:c1:00.0x", name));
	cr_assert_not(kvx_pci_name("0000:c1:20.0", name));
	cr_assert_not(kvx_pci_name("", name));
	KVX_TEST_END();
}

Test(pci, relations_are_told_by_the_way_between)
{
	struct kvx_pci_path gpu, mate, cousin, neighbour, far, other, function;
	struct sysfs_tree tree;

	sysfs_tree_init(&tree);
	gpu = place(&tree, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.0", 0);
	function =
	    place(&tree, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:03:00.1", 0);
	mate = place(&tree, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:04:00.0", 0);
	cousin = place(&tree,
		       "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:05:00.0/"
		       "0000:06:00.0/0000:07:00.0",
		       0);
	neighbour = place(&tree, "pci0000:00/0000:00:02.0/0000:08:00.0", 0);
	far = place(&tree, "pci0000:40/0000:40:01.0/0000:41:00.0", 0);
	other = place(&tree, "pci0000:80/0000:80:01.0/0000:81:00.0", 1);
	cr_assert_eq(gpu.n_bridges, 3);
	cr_assert_str_eq(gpu.host, "pci0000:00");
	cr_assert_str_eq(gpu.bridges[0], "0000:00:01.0");
	cr_assert_eq(other.numa_node, 1);
	expect(&gpu, &function, KVX_PCI_SAME, 0);
	expect(&gpu, &mate, KVX_PCI_ONE_SWITCH, 4);
	expect(&gpu, &cousin, KVX_PCI_SWITCHES, 6);
	expect(&gpu, &neighbour, KVX_PCI_HOST_BRIDGE, 6);
	expect(&gpu, &far, KVX_PCI_NUMA_NODE, 7);
	expect(&gpu, &other, KVX_PCI_SYSTEM, 8);
	sysfs_tree_fini(&tree);
	KVX_TEST_END();
}

Test(pci, what_is_not_there_is_said_so)
{
	struct kvx_pci_path path = {.name = ""}, none = {.name = ""};
	struct sysfs_tree tree;

	sysfs_tree_init(&tree);
	cr_assert_eq(kvx_pci_path_read(tree.root, "0000:01:00.0", &path), -ENOENT);
	cr_assert_eq(kvx_pci_path_read(tree.root, "rxe0", &path), -EINVAL);
	cr_assert_eq(kvx_pci_path_of(tree.root, "infiniband", "rxe0", &path), -ENOENT);
	cr_assert_eq(kvx_pci_distance_of(&path, &none).relation, KVX_PCI_UNKNOWN);
	sysfs_tree_fini(&tree);
	KVX_TEST_END();
}

#define D(relation, hops)                                                                          \
	{                                                                                          \
		KVX_PCI_##relation, hops                                                           \
	}

Test(pci, each_gets_the_nearest_and_equals_are_spread)
{
	static const struct kvx_pci_distance d[4][3] = {
	    {D(ONE_SWITCH, 4), D(SYSTEM, 8), D(ONE_SWITCH, 4)},
	    {D(ONE_SWITCH, 4), D(SYSTEM, 8), D(ONE_SWITCH, 4)},
	    {D(ONE_SWITCH, 4), D(SYSTEM, 8), D(ONE_SWITCH, 4)},
	    {D(SYSTEM, 8), D(NUMA_NODE, 7), D(SYSTEM, 8)},
	};
	int to[4];

	kvx_pci_assign(&d[0][0], 4, 3, NULL, to);
	cr_assert_eq(to[0], 0);
	cr_assert_eq(to[1], 2);
	cr_assert_eq(to[2], 0);
	cr_assert_eq(to[3], 1);
	KVX_TEST_END();
}

Test(pci, what_cannot_be_used_is_not_given)
{
	static const struct kvx_pci_distance d[2] = {D(ONE_SWITCH, 4), D(SYSTEM, 8)};
	bool usable[2] = {false, true};
	int to[1];

	kvx_pci_assign(d, 1, 2, usable, to);
	cr_assert_eq(to[0], 1);
	usable[1] = false;
	kvx_pci_assign(d, 1, 2, usable, to);
	cr_assert_eq(to[0], -1);
	kvx_pci_assign(d, 1, 0, NULL, to);
	cr_assert_eq(to[0], -1);
	KVX_TEST_END();
}
