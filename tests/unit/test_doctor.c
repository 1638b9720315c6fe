/* What kvxferctl doctor finds out about RDMA: on a made-up /sys/class and with a libibverbs that
 * misbehaves as told. Each finding names the device and says what to do. */
#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "doctor.h"
#include "doctor_library.h"
#include "sysfs_tree.h"
#include "test_end.h"
#include "test_findings.h"

/* One device rdma0 that is in order, with its device file. */
struct node {
	struct sysfs_tree tree;
	char dev[128];
	struct kvx_rdma_places places;
	struct kvx_report report;
};

static void node_init(struct node *node, const char *library_does)
{
	memset(node, 0, sizeof(*node));
	sysfs_tree_init(&node->tree);
	sysfs_tree_add(&node->tree, "rdma0", 0, "6");
	sysfs_tree_write(&node->tree, "", "dev/uverbs0");
	snprintf(node->dev, sizeof(node->dev), "%s/dev", node->tree.root);
	node->places = (struct kvx_rdma_places){.sysfs = node->tree.root,
						.dev = node->dev,
						.soname = KVX_TEST_IBVERBS_SO,
						.limit_ms = 10000};
	cr_assert_eq(setenv("KVX_TEST_IBVERBS", library_does, 1), 0);
}

static void node_look(struct node *node, const char *devices_json)
{
	struct json_object *devices = devices_json ? json_tokener_parse(devices_json) : NULL;

	kvx_doctor_rdma(&node->report, &node->places, devices);
	json_object_put(devices);
}

static void node_fini(struct node *node)
{
	kvx_report_fini(&node->report);
	sysfs_tree_fini(&node->tree);
}

Test(doctor, a_node_in_order_has_no_complaint)
{
	struct node node;

	node_init(&node, "fine");
	node_look(&node, NULL);
	cr_assert_eq(node.report.worst, KVX_FINDING_OK);
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "1 of 1 device(s) can be opened"));
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_OK,
				     "rdma0:1 active, 100 Gb/sec (4X EDR), GID "
				     "3 ::ffff:10.0.0.1 eth0; eth0 has MTU 1500"));
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "0 fe80::1 RoCE v1, 1 fe80::1 RoCE v2"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_provider_of_another_abi_is_named_with_both_and_the_package)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "abi");
	node_look(&node, NULL);
	finding =
	    test_find(&node.report, KVX_FINDING_FAIL,
		      "rdma0 cannot be used: its kernel driver has ABI 6, the user-space provider "
		      "bnxt_re supports 1 to 1");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "libbnxt_re"), "%s", finding->cure);
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_broken_device_beside_a_good_one_is_a_warning)
{
	struct node node;

	node_init(&node, "fine");
	sysfs_tree_add(&node.tree, "other0", 1, "1");
	sysfs_tree_write(&node.tree, "", "dev/uverbs1");
	node_look(&node, NULL);
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_WARN,
				     "other0 cannot be used: it has no user-space provider"));
	cr_assert_eq(node.report.worst, KVX_FINDING_WARN);
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_crashing_provider_takes_only_its_process_down)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "crash");
	node_look(&node, NULL);
	finding = test_find(&node.report, KVX_FINDING_FAIL,
			    "libibverbs crashes at rdma0 (Segmentation fault)");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "verbs.enable = false"));
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_OK, "rdma0:1 active"), "it goes on");
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_hanging_provider_is_given_up)
{
	struct node node;

	node_init(&node, "hang");
	node.places.limit_ms = 1000;
	node_look(&node, NULL);
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_FAIL, "libibverbs does not return at rdma0"));
	cr_assert_eq(waitpid(-1, NULL, WNOHANG), -1, "no child is left");
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_provider_that_exits_is_no_answer)
{
	struct node node;

	node_init(&node, "exit");
	node_look(&node, NULL);
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_WARN, "libibverbs could not be asked"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_missing_library_says_what_to_install)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "fine");
	node.places.soname = "libibverbs-that-is-not-there.so.1";
	node_look(&node, NULL);
	finding = test_find(&node.report, KVX_FINDING_FAIL, "is not installed");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "ibverbs-providers"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_device_that_does_not_open_is_named_with_the_error)
{
	struct node node;

	node_init(&node, "refused");
	node_look(&node, NULL);
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_FAIL,
				     "rdma0 cannot be opened: Input/output error"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_missing_kernel_module_is_named)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "fine");
	sysfs_tree_add(&node.tree, "bare0", 0, NULL);
	node_look(&node, NULL);
	finding =
	    test_find(&node.report, KVX_FINDING_WARN, "bare0: the kernel offers it to no program");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "modprobe ib_uverbs"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_missing_device_file_is_named)
{
	char path[512];
	struct node node;

	node_init(&node, "fine");
	snprintf(path, sizeof(path), "%s/uverbs0", node.dev);
	cr_assert_eq(unlink(path), 0);
	node_look(&node, NULL);
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_WARN, "uverbs0: No such file"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, a_port_without_link_or_address_says_what_it_lacks)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "fine");
	sysfs_tree_write(&node.tree, "0000:0000:0000:0000:0000:0000:0000:0000",
			 "infiniband/rdma0/ports/1/gids/2");
	sysfs_tree_write(&node.tree, "0000:0000:0000:0000:0000:0000:0000:0000",
			 "infiniband/rdma0/ports/1/gids/3");
	sysfs_tree_add(&node.tree, "down0", 1, "6");
	sysfs_tree_write(&node.tree, "", "dev/uverbs1");
	sysfs_tree_write(&node.tree, "1: DOWN", "infiniband/down0/ports/1/state");
	node_look(&node, NULL);
	finding =
	    test_find(&node.report, KVX_FINDING_WARN, "rdma0:1 is active, but cannot be addressed");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "give eth0 an IPv4"), "%s", finding->cure);
	finding = test_find(&node.report, KVX_FINDING_WARN, "down0:1 is not active: 1: DOWN");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "ip link set eth0 up"), "%s", finding->cure);
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, the_daemons_own_reasons_are_told)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "fine");
	node_look(&node,
		  "{\"devices\": [{\"transport\": \"verbs\", \"name\": \"rdma0:1\", "
		  "\"state\": \"usable\"}, {\"transport\": \"verbs\", \"name\": \"rdma1:1\", "
		  "\"state\": \"unusable\", \"reason\": \"left out by verbs.devices\"}, "
		  "{\"transport\": \"verbs\", \"name\": \"rdma2:1\", \"state\": \"lost\", "
		  "\"reason\": \"the port is down\"}, {\"transport\": \"fabric\", \"name\": "
		  "\"x\", \"state\": \"unusable\"}]}");
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_OK, "the daemon uses rdma0:1"));
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "does not use rdma1:1: left out"));
	finding =
	    test_find(&node.report, KVX_FINDING_WARN, "does not use rdma2:1: the port is down");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "restart kvxferd"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, rail_that_waits_says_for_what)
{
	const struct kvx_finding *finding;
	struct node node;

	node_init(&node, "fine");
	node_look(&node, "{\"devices\": [{\"transport\": \"verbs\", \"name\": \"rdma0:1\", "
			 "\"device\": \"rdma0\", \"state\": \"waiting\", \"reason\": \"nothing "
			 "at verbs.gid_index = 9\"}]}");
	finding = test_find(&node.report, KVX_FINDING_WARN, "does not use rdma0:1 yet");
	cr_assert_not_null(finding);
	cr_assert_not_null(strstr(finding->cure, "verbs.gid_index = 9"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, what_was_said_of_a_device_is_not_said_twice)
{
	struct node node;

	node_init(&node, "fine");
	sysfs_tree_write(&node.tree, "1: DOWN", "infiniband/rdma0/ports/1/state");
	node_look(&node, "{\"devices\": [{\"transport\": \"verbs\", \"name\": \"rdma0:1\", "
			 "\"device\": \"rdma0\", \"state\": \"waiting\", \"reason\": \"the "
			 "port is down\"}]}");
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_WARN, "rdma0:1 is not active"));
	cr_assert_null(test_find(&node.report, KVX_FINDING_WARN, "does not use"));
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, no_device_is_no_complaint_and_asks_no_library)
{
	struct node node;

	node_init(&node, "crash");
	node.places.sysfs = "/nowhere";
	node_look(&node, NULL);
	cr_assert_eq(node.report.worst, KVX_FINDING_OK);
	cr_assert_eq(node.report.n_findings, 1);
	node_fini(&node);
	KVX_TEST_END();
}

Test(doctor, the_release_is_read_off_the_file_name)
{
	struct kvx_library library = {.path = "/usr/lib/x86_64-linux-gnu/libibverbs.so.1.14.44.0"};
	char buf[16];

	cr_assert_str_eq(kvx_library_release(&library, buf, sizeof(buf)), "44.0");
	strcpy(library.path, "/opt/vendor/libibverbs.so.1");
	cr_assert_str_eq(kvx_library_release(&library, buf, sizeof(buf)), "");
	KVX_TEST_END();
}
