/* The RDMA device that the daemon uses for a GPU is the one that kvxferctl topology shows: both are
 * asked about the same made-up nodes. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "base/roles.h"
#include "node_tree.h"
#include "test_end.h"
#include "topo.h"
#include "transport/fake/fake.h"
#include "xfer/node.h"

#define MAX_GPUS 8
#define MAX_NICS 6

static struct {
	struct node_tree tree;
	unsigned n_gpus, n_nics;
	char gpus[MAX_GPUS][KVX_PCI_NAME_BYTES];
	char nics[MAX_NICS][KVX_RAIL_NAME_BYTES];
	bool up[MAX_NICS];
} made;

static struct kvx_fake_script script;
static struct kvx_transport_ops gpu_ops, nic_ops;

static uint64_t rng_state;
static unsigned rng(unsigned n)
{
	rng_state ^= rng_state << 13;
	rng_state ^= rng_state >> 7;
	rng_state ^= rng_state << 17;
	return (unsigned)(rng_state % n);
}

/* Somewhere below one of two sockets' two host bridges, perhaps below a switch of others. */
static void place(char at[256], int *out_numa, unsigned bus)
{
	unsigned host = rng(4), port = rng(2), n;

	*out_numa = (int)(host / 2);
	n = (unsigned)snprintf(at, 256, "pci0000:%x0/0000:%x0:0%u.0", host, host, port);
	if (rng(3) > 0)
		n += (unsigned)snprintf(at + n, 256 - n, "/0000:%x%u:00.0/0000:%x%u:0%u.0", host,
					port + 1, host, port + 3, rng(2));
	snprintf(at + n, 256 - n, "/0000:%02x:00.0", bus);
}

static void make_node(void)
{
	char at[256];
	int numa;

	memset(&made, 0, sizeof(made));
	node_tree_init(&made.tree);
	node_tree_numa(&made.tree, 0, "0-7");
	node_tree_write(&made.tree, "", "sys/bus/pci/devices/uevent");
	made.n_gpus = 1 + rng(MAX_GPUS);
	made.n_nics = 2 + rng(MAX_NICS - 1);
	for (unsigned i = 0; i < made.n_gpus; i++) {
		place(at, &numa, 0xb0 + (i * 5) % 16);
		node_tree_nvidia(&made.tree, at, numa, i);
		snprintf(made.gpus[i], sizeof(made.gpus[i]), "%s", strrchr(at, '/') + 1);
	}
	for (unsigned i = 0; i < made.n_nics; i++) {
		place(at, &numa, 0xd0 + i);
		snprintf(made.nics[i], sizeof(made.nics[i]), "mlx5_%u", 8 + i);
		made.up[i] = rng(5) > 0;
		node_tree_nic(&made.tree, made.nics[i], at, numa, made.up[i]);
	}
}

static int gpu_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		     struct kvx_why *why)
{
	for (unsigned i = 0; i < made.n_gpus; i++) { /* in another order than topology's */
		struct kvx_rail *rail = &rails[made.n_gpus - 1 - i];

		*rail = (struct kvx_rail){.numa_node = -1, .usable = true};
		snprintf(rail->name, sizeof(rail->name), "gpu%u", i);
		snprintf(rail->gpu.pci, sizeof(rail->gpu.pci), "%s", made.gpus[i]);
	}
	return (int)made.n_gpus;
}

static int nic_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		     struct kvx_why *why)
{
	for (unsigned i = 0; i < made.n_nics; i++) {
		struct kvx_rail *rail = &rails[made.n_nics - 1 - i];

		*rail = (struct kvx_rail){.numa_node = -1, .port = 1, .usable = made.up[i]};
		snprintf(rail->name, sizeof(rail->name), "%s:1", made.nics[i]);
		snprintf(rail->device, sizeof(rail->device), "%s", made.nics[i]);
	}
	return (int)made.n_nics;
}

static int any_open(const struct kvx_dom_conf *conf, struct kvx_dom **out_dom,
		    struct kvx_transport_limits *out_limits, struct kvx_why *why)
{
	struct kvx_dom_conf any = *conf;

	any.rail = NULL;
	return kvx_fake_ops.open(&any, out_dom, out_limits, why);
}

static uint64_t now(void *arg)
{
	return ((struct kvx_fake_script *)arg)->now_ns;
}

/* "" : none is near. */
static const char *daemon_choice(const struct kvx_node *node, const char *pci)
{
	struct kvx_gpu_id id = {.pci = ""};
	unsigned n;
	const struct kvx_node_rail *rails = kvx_node_rails(node, &n);
	uint64_t near;

	snprintf(id.pci, sizeof(id.pci), "%s", pci);
	near = kvx_node_near_rails(node, &id);
	for (unsigned i = 0; i < n; i++)
		if (rails[i].worker != NULL && near & 1ull << rails[i].dom_index)
			return rails[i].rail.device;
	return "";
}

static void compare(const struct kvx_node *node, unsigned seed)
{
	const struct kvx_topo_places places = {.root = made.tree.root};
	struct kvx_topo *topo = kvx_topo_read(&places);

	cr_assert_eq(topo->n_gpus, made.n_gpus);
	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_topo_gpu *gpu = &topo->gpus[i];
		const char *shown = gpu->nic >= 0 ? topo->nics[gpu->nic].name : "";

		cr_assert_str_eq(daemon_choice(node, gpu->path.name), shown, "node %u, GPU %s",
				 seed, gpu->path.name);
	}
	free(topo);
}

Test(near, daemon_uses_the_device_that_topology_shows)
{
	kvx_role_set_loop();
	kvx_assert_on_loop();
	gpu_ops = nic_ops = kvx_fake_ops;
	gpu_ops.name = "gpu";
	gpu_ops.probe = gpu_probe;
	gpu_ops.open = nic_ops.open = any_open;
	nic_ops.probe = nic_probe;
	for (unsigned seed = 1; seed <= 40; seed++) {
		char sysfs[96];
		struct kvx_node_conf conf = {
		    .epoch = 1,
		    .dom = {.test = &script},
		    .copy_workers = 1,
		    .peer_ops = {&nic_ops},
		    .quantum_bytes = 1u << 20,
		    .n_batches = 16,
		    .region_limits = {64, 64, 1ull << 40, 1ull << 40},
		    .xfers = {.max_xfers = 10, .history = 8},
		    .copy_ops = &kvx_fake_ops,
		    .gpu_ops = &gpu_ops,
		    .sysfs = sysfs,
		};
		struct kvx_node *node;
		struct kvx_why why = {""};

		rng_state = seed * 0x9e3779b97f4a7c15u;
		make_node();
		snprintf(sysfs, sizeof(sysfs), "%s/sys", made.tree.root);
		cr_assert_eq(kvx_timers_create(now, &script, &conf.timers), 0);
		cr_assert_eq(kvx_node_open(&conf, &node, &why), 0, "%s", why.text);
		compare(node, seed);
		kvx_node_close(node);
		kvx_timers_destroy(conf.timers);
		node_tree_fini(&made.tree);
	}
	KVX_TEST_END();
}
