/* kvxferctl topology on made-up nodes: what is found, how GPUs are linked, which NIC each is given;
 * and what the command prints. */
#include <criterion/criterion.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "node_tree.h"
#include "test_node.h"
#include "topo.h"

/* Two sockets, on each two switches, below each a GPU and a NIC, as accelerator nodes are built. */
static const char *const gpu_at[] = {
    "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:00.0/0000:05:00.0",
    "pci0000:00/0000:00:02.0/0000:11:00.0/0000:12:00.0/0000:15:00.0",
    "pci0000:80/0000:80:01.0/0000:81:00.0/0000:82:00.0/0000:85:00.0",
    "pci0000:80/0000:80:02.0/0000:91:00.0/0000:92:00.0/0000:95:00.0",
};
static const char *const nic_at[] = {
    "pci0000:80/0000:80:02.0/0000:91:00.0/0000:92:01.0/0000:96:00.0",
    "pci0000:80/0000:80:01.0/0000:81:00.0/0000:82:01.0/0000:86:00.0",
    "pci0000:00/0000:00:02.0/0000:11:00.0/0000:12:01.0/0000:16:00.0",
    "pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:06:00.0",
};

static void add_nics(struct node_tree *tree, unsigned n)
{
	char name[16];

	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "mlx5_%u", i);
		node_tree_nic(tree, name, nic_at[i], i < 2 ? 1 : 0, true);
	}
}

/* kfd nodes 0 and 1 are processors. links: of each GPU. */
static void amd_node(struct node_tree *tree, const char *const links[4])
{
	node_tree_init(tree);
	node_tree_numa(tree, 0, "0-47,96-143");
	node_tree_numa(tree, 1, "48-95,144-191");
	node_tree_write(tree, "0", "sys/class/kfd/kfd/topology/nodes/0/gpu_id");
	node_tree_write(tree, "0", "sys/class/kfd/kfd/topology/nodes/1/gpu_id");
	for (unsigned i = 0; i < 4; i++)
		node_tree_amd(tree, gpu_at[i], i < 2 ? 0 : 1, 128 + i, 2 + i, 77, links[i]);
	add_nics(tree, 4);
}

static const char *const full_mesh[4] = {
    "0:2:64000 3:11:64000 4:11:64000 5:11:64000",
    "0:2:64000 2:11:64000 4:11:64000 5:11:64000",
    "1:2:64000 2:11:64000 3:11:64000 5:11:64000",
    "1:2:64000 2:11:64000 3:11:64000 4:11:64000",
};

static struct kvx_topo *look(const struct node_tree *tree, const char *nvml)
{
	struct kvx_topo_places places = {.root = tree->root, .nvml = nvml, .limit_ms = 2000};

	return kvx_topo_read(&places);
}

Test(topology, amd_gpus_of_a_hive_are_linked_by_xgmi)
{
	struct node_tree tree;
	struct kvx_topo *topo;

	amd_node(&tree, full_mesh);
	topo = look(&tree, NULL);
	cr_assert_eq(topo->n_gpus, 4);
	cr_assert_str_eq(topo->gpus[0].path.name, "0000:05:00.0");
	cr_assert_str_eq(topo->gpus[3].path.name, "0000:95:00.0");
	cr_assert_str_eq(topo->gpus[1].name, "MI300X");
	cr_assert_str_eq(topo->gpus[1].render, "renderD129");
	cr_assert_str_eq(topo->gpus[1].driver, "amdgpu");
	cr_assert_eq(topo->gpus[1].mem_bytes, 192ull << 30);
	cr_assert_eq(topo->gpus[1].bar_bytes, 192ull << 30);
	for (unsigned a = 0; a < 4; a++)
		for (unsigned b = 0; b < 4; b++) {
			if (a == b)
				continue;
			cr_assert_eq(topo->gpu_pairs[a][b].link, KVX_TOPO_XGMI, "%u %u", a, b);
			cr_assert_eq(topo->gpu_pairs[a][b].hops, 1);
			cr_assert_eq(topo->gpu_pairs[a][b].bandwidth_mbs, 64000);
		}
	cr_assert_eq(topo->gpu_pairs[0][1].pci.relation, KVX_PCI_HOST_BRIDGE);
	cr_assert_eq(topo->gpu_pairs[0][2].pci.relation, KVX_PCI_SYSTEM);
	free(topo);
	node_tree_fini(&tree);
}

Test(topology, gpus_of_a_ring_reach_each_other_in_more_hops)
{
	static const char *const ring[4] = {"3:11:50000 5:11:50000", "2:11:50000 4:11:50000",
					    "3:11:50000 5:11:50000", "4:11:50000 2:11:50000"};
	struct node_tree tree;
	struct kvx_topo *topo;

	amd_node(&tree, ring);
	topo = look(&tree, NULL);
	cr_assert_eq(topo->gpu_pairs[0][1].hops, 1);
	cr_assert_eq(topo->gpu_pairs[0][3].hops, 1);
	cr_assert_eq(topo->gpu_pairs[0][2].link, KVX_TOPO_XGMI);
	cr_assert_eq(topo->gpu_pairs[0][2].hops, 2);
	cr_assert_eq(topo->gpu_pairs[0][2].bandwidth_mbs, 0, "nobody has said it");
	free(topo);
	node_tree_fini(&tree);
}

Test(topology, without_links_pcie_is_what_there_is)
{
	static const char *const none[4] = {"0:2:64000", "0:2:64000", "1:2:64000", "1:2:64000"};
	struct node_tree tree;
	struct kvx_topo *topo;

	amd_node(&tree, none);
	topo = look(&tree, NULL);
	cr_assert_eq(topo->gpu_pairs[0][1].link, KVX_TOPO_PCIE);
	cr_assert_eq(topo->gpu_pairs[0][1].hops, topo->gpu_pairs[0][1].pci.hops);
	free(topo);
	node_tree_fini(&tree);
}

Test(topology, each_gpu_is_given_the_nic_of_its_switch)
{
	static const int want[4] = {3, 2, 1, 0};
	struct node_tree tree;
	struct kvx_topo *topo;

	amd_node(&tree, full_mesh);
	topo = look(&tree, NULL);
	cr_assert_eq(topo->n_nics, 4);
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(topo->gpus[i].nic, want[i], "gpu%u has %d", i, topo->gpus[i].nic);
		cr_assert_eq(topo->nic_distances[i][want[i]].relation, KVX_PCI_ONE_SWITCH);
	}
	free(topo);
	node_tree_fini(&tree);
}

Test(topology, a_nic_whose_port_is_down_is_not_given)
{
	struct node_tree tree;
	struct kvx_topo *topo;

	amd_node(&tree, full_mesh);
	node_tree_write(&tree, "1: DOWN", "sys/class/infiniband/mlx5_3/ports/1/state");
	topo = look(&tree, NULL);
	cr_assert_eq(topo->gpus[0].nic, 2, "the other one of its socket, not %d",
		     topo->gpus[0].nic);
	cr_assert_not(topo->nics[3].active);
	free(topo);
	node_tree_fini(&tree);
}

Test(topology, a_software_device_is_no_ones_neighbour)
{
	struct node_tree tree;
	struct kvx_topo *topo;

	node_tree_init(&tree);
	node_tree_amd(&tree, gpu_at[0], 0, 128, 2, 0, "");
	node_tree_write(&tree, "4: ACTIVE", "sys/class/infiniband/rxe0/ports/1/state");
	topo = look(&tree, NULL);
	cr_assert_eq(topo->n_nics, 1);
	cr_assert_eq(topo->nic_distances[0][0].relation, KVX_PCI_UNKNOWN);
	cr_assert_eq(topo->gpus[0].nic, 0, "better than none");
	free(topo);
	node_tree_fini(&tree);
}

static void nvidia_node(struct node_tree *tree)
{
	node_tree_init(tree);
	for (unsigned i = 0; i < 4; i++)
		node_tree_nvidia(tree, gpu_at[i], i < 2 ? 0 : 1, i);
}

Test(topology, nvlink_is_what_nvml_says)
{
	struct node_tree tree;
	struct kvx_topo *topo;

	nvidia_node(&tree);
	cr_assert_eq(setenv("KVX_TEST_NVML", "0000:05:00.0 0000:15:00.0", 1), 0);
	topo = look(&tree, KVX_TEST_NVML_SO);
	cr_assert_str_eq(topo->gpus[2].name, "NVIDIA H200");
	cr_assert_str_eq(topo->gpus[2].uuid, "GPU-00000000-0002");
	cr_assert_eq(topo->gpu_pairs[0][1].link, KVX_TOPO_NVLINK);
	cr_assert_eq(topo->gpu_pairs[1][0].link, KVX_TOPO_NVLINK);
	cr_assert_eq(topo->gpu_pairs[0][2].link, KVX_TOPO_PCIE);
	cr_assert_str_eq(topo->nvml_note, "");
	free(topo);
	node_tree_fini(&tree);
}

static void expect_note(const char *nvml, const char *does, const char *words)
{
	struct node_tree tree;
	struct kvx_topo *topo;

	nvidia_node(&tree);
	cr_assert_eq(setenv("KVX_TEST_NVML", does, 1), 0);
	topo = look(&tree, nvml);
	cr_assert_eq(topo->n_gpus, 4, "the rest is told all the same");
	cr_assert_not_null(strstr(topo->nvml_note, words), "%s", topo->nvml_note);
	free(topo);
	node_tree_fini(&tree);
}

Test(topology, an_nvml_that_fails_is_a_note_and_no_more)
{
	expect_note("libnvidia-ml-that-is-not-there.so.1", "", "is not installed");
	expect_note(KVX_TEST_NVML_SO, "crash", "it crashes");
	expect_note(KVX_TEST_NVML_SO, "hang", "it does not return");
	expect_note(KVX_TEST_NVML_SO, "refuse", "does not reach the driver");
}

Test(topology, other_display_devices_are_no_gpus)
{
	struct node_tree_pci bmc = {
	    "pci0000:00/0000:00:05.0", "0x1a03", "0x030000", "ast", 0, 1 << 20};
	struct node_tree_pci audio = {"pci0000:00/0000:00:06.0", "0x10de", "0x040300",
				      "snd_hda_intel",           0,        1 << 20};
	struct node_tree tree;
	struct kvx_topo *topo;

	node_tree_init(&tree);
	node_tree_pci(&tree, &bmc);
	node_tree_pci(&tree, &audio);
	topo = look(&tree, NULL);
	cr_assert_eq(topo->n_gpus, 0);
	free(topo);
	node_tree_fini(&tree);
}

static char out[65536];

static int run_topology(const struct node_tree *tree, const char *more)
{
	const char *argv[] = {getenv("KVXFERCTL"), "topology", "--root", tree->root, more, NULL};

	return test_run(argv, out, sizeof(out));
}

Test(topology, the_command_prints_a_matrix)
{
	struct node_tree tree;

	amd_node(&tree, full_mesh);
	cr_assert_eq(run_topology(&tree, NULL), 0, "%s", out);
	cr_assert_not_null(strstr(out, "      gpu0    gpu1    gpu2    gpu3    mlx5_0  mlx5_1  "
				       "mlx5_2  mlx5_3\n"),
			   "%s", out);
	cr_assert_not_null(strstr(out, "gpu0  X       xGMI:1  xGMI:1  xGMI:1  SYS     SYS     PHB  "
				       "   PIX*\n"),
			   "%s", out);
	cr_assert_not_null(strstr(out, "gpu3  xGMI:1  xGMI:1  xGMI:1  X       PIX*    PHB     SYS  "
				       "   SYS\n"),
			   "%s", out);
	node_tree_fini(&tree);
}

Test(topology, the_command_prints_json)
{
	struct json_object *root, *list, *gpu, *nic, *value;
	struct node_tree tree;

	amd_node(&tree, full_mesh);
	cr_assert_eq(run_topology(&tree, "--json"), 0, "%s", out);
	root = json_tokener_parse(out);
	cr_assert_not_null(root, "%s", out);
	cr_assert(json_object_object_get_ex(root, "gpus", &list));
	cr_assert_eq(json_object_array_length(list), 4);
	gpu = json_object_array_get_idx(list, 2);
	cr_assert(json_object_object_get_ex(gpu, "nic", &nic));
	cr_assert(json_object_object_get_ex(nic, "name", &value));
	cr_assert_str_eq(json_object_get_string(value), "mlx5_1");
	cr_assert(json_object_object_get_ex(nic, "relation", &value));
	cr_assert_str_eq(json_object_get_string(value), "PIX");
	cr_assert(json_object_object_get_ex(root, "gpu_links", &list));
	cr_assert_eq(json_object_array_length(list), 12);
	cr_assert(json_object_object_get_ex(root, "gpu_nics", &list));
	cr_assert_eq(json_object_array_length(list), 16);
	cr_assert(json_object_object_get_ex(root, "numa_nodes", &list));
	cr_assert_eq(json_object_array_length(list), 2);
	json_object_put(root);
	node_tree_fini(&tree);
}

Test(topology, an_empty_node_is_no_error)
{
	struct node_tree tree;

	node_tree_init(&tree);
	cr_assert_eq(run_topology(&tree, NULL), 0, "%s", out);
	cr_assert_not_null(strstr(out, "no GPU\n"));
	cr_assert_not_null(strstr(out, "no RDMA device\n"));
	node_tree_fini(&tree);
}
