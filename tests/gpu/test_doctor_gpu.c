/* What kvxferctl doctor finds out about GPUs: on made-up nodes, and with runtimes that misbehave as
 * told. Each finding names what is wrong and says what to do. */
#include <criterion/criterion.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "common/tool.h"
#include "doctor_gpu.h"
#include "node_tree.h"
#include "standin.h"
#include "test_findings.h"

static const char *const gpu_at[] = {
    "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:05:00.0",
    "pci0000:00/0000:00:02.0/0000:11:00.0/0000:12:00.0/0000:15:00.0",
};

struct node {
	struct node_tree tree;
	struct kvx_gpu_places places;
	struct kvx_gpu_daemon daemon;
	struct kvx_report report;
};

static void node_places(struct node *node)
{
	memset(node, 0, sizeof(*node));
	node_tree_init(&node->tree);
	node->places =
	    (struct kvx_gpu_places){.root = node->tree.root, .release = "6.1.0", .limit_ms = 10000};
}

/* Two AMD GPUs in order, one NIC. */
static void amd_init(struct node *node)
{
	node_places(node);
	node_tree_amd(&node->tree, gpu_at[0], 0, 128, 1, 7, "2:11:64000");
	node_tree_amd(&node->tree, gpu_at[1], 0, 129, 2, 7, "1:11:64000");
	node_tree_nic(&node->tree, "mlx5_0", "pci0000:00/0000:00:03.0/0000:20:00.0", 0, true);
	node_tree_write(&node->tree, "", "dev/kfd");
	node_tree_write(&node->tree, "", "dev/dri/renderD128");
	node_tree_write(&node->tree, "", "dev/dri/renderD129");
}

static void nvidia_init(struct node *node)
{
	node_places(node);
	node_tree_nvidia(&node->tree, gpu_at[0], 0, 0);
	node_tree_write(&node->tree, "", "dev/nvidiactl");
	node_tree_write(&node->tree, "", "dev/nvidia-uvm");
	node_tree_write(&node->tree, "", "dev/nvidia0");
}

static void node_look(struct node *node)
{
	kvx_doctor_gpus(&node->report, &node->places, &node->daemon);
}

static void node_fini(struct node *node)
{
	kvx_report_fini(&node->report);
	node_tree_fini(&node->tree);
}

/* There is such a warning, and its cure has these words. */
static void expect_warning(const struct node *node, const char *words, const char *cure)
{
	const struct kvx_finding *finding = test_find(&node->report, KVX_FINDING_WARN, words);

	cr_assert_not_null(finding, "no warning: %s", words);
	cr_assert_not_null(strstr(finding->cure, cure), "%s", finding->cure);
}

Test(doctor_gpu, a_node_in_order_has_no_complaint)
{
	struct node node;

	amd_init(&node);
	node_look(&node);
	cr_assert_eq(node.report.worst, KVX_FINDING_OK);
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_OK, "2 GPU(s): 2 AMD, 0 NVIDIA"));
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "/dev/kfd and 2 render node(s)"));
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "PCI shows all of the GPUs' memory"));
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_OK, "no IOMMU translates"));
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "reach RDMA devices by dma-buf"));
	node_fini(&node);
}

Test(doctor_gpu, no_gpu_is_no_complaint)
{
	struct node node;

	node_places(&node);
	node_look(&node);
	cr_assert_eq(node.report.n_findings, 1);
	cr_assert_eq(node.report.worst, KVX_FINDING_OK);
	node_fini(&node);
}

Test(doctor_gpu, a_missing_device_file_is_named)
{
	char path[256];
	struct node node;

	amd_init(&node);
	snprintf(path, sizeof(path), "%s/dev/kfd", node.tree.root);
	cr_assert_eq(unlink(path), 0);
	node_look(&node);
	expect_warning(&node, "/dev/kfd is not there", "modprobe amdgpu");
	node_fini(&node);
}

/* access() asks for the real user: root hides behind another one. */
Test(doctor_gpu, a_device_file_of_others_is_named)
{
	char path[256];
	struct node node;

	amd_init(&node);
	snprintf(path, sizeof(path), "%s/dev/dri/renderD129", node.tree.root);
	cr_assert_eq(chmod(path, 0), 0);
	snprintf(path, sizeof(path), "%s/dev/kfd", node.tree.root);
	cr_assert_eq(chmod(path, 0666), 0);
	snprintf(path, sizeof(path), "%s/dev/dri/renderD128", node.tree.root);
	cr_assert_eq(chmod(path, 0666), 0);
	if (geteuid() == 0)
		cr_assert_eq(setreuid(65534, (uid_t)-1), 0);
	node_look(&node);
	expect_warning(&node, "/dev/dri/renderD129 cannot be opened by this user", "group render");
	cr_assert_null(test_find(&node.report, KVX_FINDING_WARN, "renderD128"));
	if (geteuid() == 0)
		cr_assert_eq(setreuid(0, (uid_t)-1), 0);
	node_fini(&node);
}

Test(doctor_gpu, nvidia_needs_its_memory_module)
{
	char path[256];
	struct node node;

	nvidia_init(&node);
	snprintf(path, sizeof(path), "%s/dev/nvidia-uvm", node.tree.root);
	cr_assert_eq(unlink(path), 0);
	node_look(&node);
	expect_warning(&node, "/dev/nvidia-uvm is not there", "modprobe nvidia-uvm");
	node_fini(&node);
}

Test(doctor_gpu, a_gpu_without_its_driver_is_named)
{
	struct node_tree_pci given = {"pci0000:00/0000:00:09.0/0000:31:00.0",
				      "0x10de",
				      "0x030200",
				      "vfio-pci",
				      0,
				      1ull << 37};
	struct node node;

	nvidia_init(&node);
	node_tree_pci(&node.tree, &given);
	node_look(&node);
	expect_warning(&node, "gpu1 0000:31:00.0 has the driver vfio-pci", "virtual machine");
	node_fini(&node);
}

Test(doctor_gpu, a_small_bar_is_named_with_both_sizes)
{
	struct node node;

	amd_init(&node);
	node_tree_write(&node.tree, "0x0000001000000000 0x000000100fffffff 0x14220c",
			"sys/bus/pci/devices/0000:15:00.0/resource");
	node_look(&node);
	expect_warning(&node, "gpu1 0000:15:00.0 shows 256 MiB of 192 GiB", "Resizable BAR");
	node_fini(&node);
}

Test(doctor_gpu, an_iommu_that_translates_is_named)
{
	struct node node;

	amd_init(&node);
	node_tree_write(&node.tree, "DMA-FQ", "sys/bus/pci/devices/0000:05:00.0/iommu_group/type");
	node_tree_write(&node.tree, "identity",
			"sys/bus/pci/devices/0000:15:00.0/iommu_group/type");
	node_look(&node);
	expect_warning(&node, "translates addresses for 1 GPU(s)", "iommu=pt");
	node_fini(&node);
}

/* A bridge's configuration whose ACS capability, behind another one, has these control bits. */
static void write_acs(struct node *node, const char *bridge, uint8_t control)
{
	uint8_t config[4096] = {0};
	char path[PATH_MAX];
	FILE *f;

	node_tree_bridge(&node->tree, bridge);
	config[0x100] = 0x01; /* some capability, the next one at 0x148 */
	config[0x102] = 0x81;
	config[0x103] = 0x14;
	config[0x148] = 0x0d;
	config[0x14a] = 0x01;
	config[0x14e] = control;
	snprintf(path, sizeof(path), "%s/sys/devices/%s/config", node->tree.root, bridge);
	f = fopen(path, "we");
	cr_assert_not_null(f);
	cr_assert_eq(fwrite(config, sizeof(config), 1, f), 1);
	fclose(f);
}

Test(doctor_gpu, a_switch_that_redirects_is_named)
{
	struct node node;

	amd_init(&node);
	write_acs(&node, "pci0000:00/0000:00:01.0", 0);
	write_acs(&node, "pci0000:00/0000:00:01.0/0000:01:00.0", 0);
	write_acs(&node, "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0", 0x1d);
	node_look(&node);
	expect_warning(&node, "1 PCI bridge(s) above GPUs, the first 0000:02:00.0", "ECAP_ACS");
	node_fini(&node);
}

Test(doctor_gpu, bridges_that_cannot_be_read_are_not_called_good)
{
	struct node node;

	amd_init(&node);
	write_acs(&node, "pci0000:00/0000:00:01.0", 0);
	node_look(&node);
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "not known for 5 of 6 PCI bridge(s)"));
	node_fini(&node);
}

Test(doctor_gpu, what_keeps_dma_bufs_from_working_is_named)
{
	struct node node;

	amd_init(&node);
	node.places.release = "5.10.0-21-amd64";
	node_tree_write(&node.tree, "CONFIG_PCI=y\n# CONFIG_HSA_AMD_P2P is not set",
			"boot/config-5.10.0-21-amd64");
	node_look(&node);
	expect_warning(&node, "Linux 5.10 cannot give GPU memory", "5.12");
	expect_warning(&node, "without CONFIG_HSA_AMD_P2P", "amdgpu-dkms");
	node_fini(&node);
}

Test(doctor_gpu, nvidias_closed_driver_is_named)
{
	struct node node;

	nvidia_init(&node);
	node_tree_nic(&node.tree, "mlx5_0", "pci0000:00/0000:00:03.0/0000:20:00.0", 0, true);
	node_tree_write(&node.tree, "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54",
			"proc/driver/nvidia/version");
	node_look(&node);
	expect_warning(&node, "the closed one, which exports no dma-buf", "nvidia-open");
	node_fini(&node);
}

/* {"devices": [one row of the transport gpu]} */
static void daemon_says(struct node *node, const char *state, const char *reason)
{
	struct json_object *rows = json_object_new_array(), *row = json_object_new_object();

	json_object_object_add(row, "name", json_object_new_string("gpu1"));
	json_object_object_add(row, "transport", json_object_new_string("gpu"));
	json_object_object_add(row, "state", json_object_new_string(state));
	json_object_object_add(row, "reason", json_object_new_string(reason));
	json_object_array_add(rows, row);
	node->daemon.devices = json_object_new_object();
	json_object_object_add(node->daemon.devices, "devices", rows);
}

Test(doctor_gpu, a_gpu_that_the_daemon_has_lost_is_named)
{
	struct node node;

	amd_init(&node);
	daemon_says(&node, "lost", "");
	node_look(&node);
	expect_warning(&node, "the daemon has lost gpu1", "restart kvxferd");
	json_object_put(node.daemon.devices);
	node_fini(&node);
}

Test(doctor_gpu, gpus_that_the_daemon_does_not_use_are_a_complaint_where_there_are_some)
{
	struct node node;

	amd_init(&node);
	daemon_says(&node, "unusable", "libamdhip64.so.7 was not found");
	node_look(&node);
	expect_warning(&node, "does not use gpu1: libamdhip64.so.7 was not found", "[gpu]");
	json_object_put(node.daemon.devices);
	node_fini(&node);
	node_places(&node);
	daemon_says(&node, "unusable", "libamdhip64.so.7 was not found");
	node_look(&node);
	cr_assert_eq(node.report.worst, KVX_FINDING_OK);
	json_object_put(node.daemon.devices);
	node_fini(&node);
}

Test(doctor_gpu, what_the_daemon_serves_is_told)
{
	struct node node;

	amd_init(&node);
	daemon_says(&node, "usable", "");
	node_look(&node);
	cr_assert_not_null(
	    test_find(&node.report, KVX_FINDING_OK, "serves the memory of 1 GPU(s)"));
	json_object_put(node.daemon.devices);
	node_fini(&node);
}

Test(doctor_gpu, devices_hidden_from_the_daemon_are_named)
{
	struct node node;

	amd_init(&node);
	node.daemon.pid = 4711;
	node_tree_write(&node.tree, "HOME=/", "proc/4711/environ");
	kvx_doctor_gpus(&node.report, &node.places, &node.daemon);
	cr_assert_eq(node.report.worst, KVX_FINDING_OK);
	node_tree_write(&node.tree, "HIP_VISIBLE_DEVICES=1", "proc/4711/environ");
	kvx_doctor_gpus(&node.report, &node.places, &node.daemon);
	expect_warning(&node, "the daemon runs with HIP_VISIBLE_DEVICES=1", "environment");
	node_fini(&node);
}

/* --- runtimes */

static void runtime_look(struct node *node, const char *lib_dir, const char *does,
			 unsigned limit_ms)
{
	nvidia_init(node);
	if (does != NULL)
		cr_assert_eq(setenv("KVX_TEST_BROKEN_GPU", does, 1), 0);
	node->places.ask_runtime = true;
	node->places.lib_dir = lib_dir;
	node->places.limit_ms = limit_ms;
	node_look(node);
}

static unsigned count_runtime(const struct node *node)
{
	unsigned n = 0;

	for (unsigned i = 0; i < node->report.n_findings; i++)
		n += strcmp(node->report.findings[i].check, "gpu runtime") == 0;
	return n;
}

Test(doctor_gpu, a_runtime_that_works_is_named_with_its_release)
{
	struct node node;

	standin_create(1, 1 << 20);
	runtime_look(&node, KVX_TEST_CUDA_DIR, NULL, 10000);
	cr_assert_not_null(test_find(&node.report, KVX_FINDING_OK,
				     "CUDA 13.0 (" KVX_TEST_CUDA_DIR
				     "/libcuda.so.1): 1 device(s), batched "
				     "copies, gather kernel, dma-buf"));
	cr_assert_eq(count_runtime(&node), 1);
	node_fini(&node);
	standin_destroy();
}

Test(doctor_gpu, a_runtime_that_shows_fewer_devices_is_named)
{
	struct node node;

	standin_create(2, 1 << 20);
	nvidia_init(&node);
	node_tree_nvidia(&node.tree, gpu_at[1], 0, 1);
	node_tree_write(&node.tree, "", "dev/nvidia1");
	cr_assert_eq(setenv("CUDA_VISIBLE_DEVICES", "1", 1), 0);
	node.places.ask_runtime = true;
	node.places.lib_dir = KVX_TEST_CUDA_DIR;
	node_look(&node);
	expect_warning(&node, "CUDA shows 1 of 2 device(s)", "CUDA_VISIBLE_DEVICES");
	node_fini(&node);
	standin_destroy();
}

static void expect_broken(const char *does, unsigned limit_ms, const char *words)
{
	struct node node;

	runtime_look(&node, KVX_TEST_BROKEN_DIR, does, limit_ms);
	expect_warning(&node, words, "install the driver's library");
	cr_assert_eq(count_runtime(&node), 1, "it is one line");
	cr_assert_eq(waitpid(-1, NULL, WNOHANG), -1, "no child is left");
	node_fini(&node);
}

Test(doctor_gpu, a_broken_runtime_is_one_line)
{
	expect_broken("crash", 10000, "CUDA crashes when it is started (Segmentation fault)");
	expect_broken("hang", 300, "CUDA does not return when it is started");
	expect_broken("exit", 10000,
		      "CUDA ends the program when it is started: libcuda: no kernel");
	expect_broken("lack", 10000, "it is too old, or not what its name says");
}
