/* kvxferctl topology: what hangs where in this node, as a matrix. Asks no daemon. */
#include "ctl.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "topo.h"

#define LIMIT_MS 20000

static const char *root_dir;

unsigned kvx_cmd_topology_flags(struct kvx_ctl_flag *flags)
{
	flags[0] = (struct kvx_ctl_flag){"--root", KVX_FLAG_VALUE, NULL, &root_dir};
	return 1;
}

static const char *vendor_name(enum kvx_topo_vendor vendor)
{
	return vendor == KVX_TOPO_AMD ? "amd" : "nvidia";
}

static void node_cell(struct kvx_table *table, int numa_node)
{
	if (numa_node < 0)
		kvx_table_cell(table, "-");
	else
		kvx_table_cell(table, "%d", numa_node);
}

static void print_gpus(const struct kvx_topo *topo)
{
	static const struct kvx_column columns[] = {
	    {"GPU", KVX_LEFT, KVX_KEEP},    {"PCI", KVX_LEFT, KVX_KEEP},
	    {"NUMA", KVX_RIGHT, KVX_KEEP},  {"NIC", KVX_LEFT, KVX_KEEP},
	    {"BY", KVX_LEFT, KVX_KEEP},     {"DRIVER", KVX_LEFT, KVX_HIDE},
	    {"RENDER", KVX_LEFT, KVX_HIDE}, {"NAME", KVX_LEFT, KVX_CUT},
	};
	struct kvx_table *table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));

	for (unsigned i = 0; i < topo->n_gpus; i++) {
		const struct kvx_topo_gpu *gpu = &topo->gpus[i];

		kvx_table_cell(table, "gpu%u", i);
		kvx_table_cell(table, "%s", gpu->path.name);
		node_cell(table, gpu->path.numa_node);
		kvx_table_cell(table, "%s", gpu->nic >= 0 ? topo->nics[gpu->nic].name : "-");
		kvx_table_cell(
		    table, "%s",
		    gpu->nic >= 0 ? kvx_pci_relation_name(topo->nic_distances[i][gpu->nic].relation)
				  : "-");
		kvx_table_cell(table, "%s", kvx_ctl_dash(gpu->driver));
		kvx_table_cell(table, "%s", kvx_ctl_dash(gpu->render));
		kvx_table_cell(table, "%s%s%s", vendor_name(gpu->vendor), *gpu->name ? " " : "",
			       gpu->name);
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void print_nics(const struct kvx_topo *topo)
{
	static const struct kvx_column columns[] = {
	    {"NIC", KVX_LEFT, KVX_KEEP},    {"PCI", KVX_LEFT, KVX_KEEP},
	    {"NUMA", KVX_RIGHT, KVX_KEEP},  {"LINK", KVX_LEFT, KVX_KEEP},
	    {"RATE", KVX_LEFT, KVX_CUT},    {"NETDEV", KVX_LEFT, KVX_HIDE},
	    {"DRIVER", KVX_LEFT, KVX_HIDE},
	};
	struct kvx_table *table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));

	for (unsigned i = 0; i < topo->n_nics; i++) {
		const struct kvx_topo_nic *nic = &topo->nics[i];

		kvx_table_cell(table, "%s", nic->name);
		kvx_table_cell(table, "%s", kvx_ctl_dash(nic->path.name));
		node_cell(table, nic->numa_node);
		kvx_table_cell(table, "%s", nic->active ? "up" : "down");
		kvx_table_color(table, nic->active ? KVX_COLOR_GREEN : KVX_COLOR_YELLOW);
		kvx_table_cell(table, "%s", kvx_ctl_dash(nic->rate));
		kvx_table_cell(table, "%s", kvx_ctl_dash(nic->netdev));
		kvx_table_cell(table, "%s", kvx_ctl_dash(nic->driver));
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void print_nodes(const struct kvx_topo *topo)
{
	static const struct kvx_column columns[] = {
	    {"NUMA", KVX_RIGHT, KVX_KEEP},
	    {"MEMORY", KVX_RIGHT, KVX_KEEP},
	    {"CPUS", KVX_LEFT, KVX_CUT},
	};
	struct kvx_table *table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));
	char buf[KVX_UNIT_BYTES];

	for (unsigned i = 0; i < topo->n_nodes; i++) {
		kvx_table_cell(table, "%d", topo->nodes[i].id);
		kvx_table_cell(table, "%s", kvx_unit_bytes(buf, topo->nodes[i].mem_bytes));
		kvx_table_cell(table, "%s", kvx_ctl_dash(topo->nodes[i].cpus));
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void pair_cell(struct kvx_table *table, const struct kvx_topo *topo, unsigned a, unsigned b)
{
	const struct kvx_topo_pair *pair = &topo->gpu_pairs[a][b];

	if (a == b)
		kvx_table_cell(table, "X");
	else if (pair->link == KVX_TOPO_PCIE)
		kvx_table_cell(table, "%s", kvx_pci_relation_name(pair->pci.relation));
	else if (pair->link == KVX_TOPO_XGMI)
		kvx_table_cell(table, "xGMI:%u", pair->hops);
	else
		kvx_table_cell(table, "NVLink");
	if (a != b && pair->link != KVX_TOPO_PCIE)
		kvx_table_color(table, KVX_COLOR_GREEN);
}

static void print_matrix(const struct kvx_topo *topo)
{
	unsigned n = topo->n_gpus + topo->n_nics;
	struct kvx_column *columns = kvx_tool_alloc((n + 1) * sizeof(*columns));
	char(*titles)[16] = kvx_tool_alloc((topo->n_gpus + 1) * sizeof(*titles));
	struct kvx_table *table;

	columns[0] = (struct kvx_column){"", KVX_LEFT, KVX_KEEP};
	for (unsigned i = 0; i < topo->n_gpus; i++) {
		snprintf(titles[i], sizeof(titles[i]), "gpu%u", i);
		columns[i + 1] = (struct kvx_column){titles[i], KVX_LEFT, KVX_KEEP};
	}
	for (unsigned i = 0; i < topo->n_nics; i++)
		columns[topo->n_gpus + i + 1] =
		    (struct kvx_column){topo->nics[i].name, KVX_LEFT, KVX_KEEP};
	table = kvx_table_create(columns, n + 1);
	for (unsigned a = 0; a < topo->n_gpus; a++) {
		kvx_table_cell(table, "gpu%u", a);
		for (unsigned b = 0; b < topo->n_gpus; b++)
			pair_cell(table, topo, a, b);
		for (unsigned b = 0; b < topo->n_nics; b++) {
			kvx_table_cell(table, "%s%s",
				       kvx_pci_relation_name(topo->nic_distances[a][b].relation),
				       topo->gpus[a].nic == (int)b ? "*" : "");
			if (topo->gpus[a].nic == (int)b)
				kvx_table_color(table, KVX_COLOR_GREEN);
		}
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
	free(titles);
	free(columns);
}

static void print_topology(const struct kvx_topo *topo)
{
	if (topo->n_gpus == 0)
		printf("no GPU\n");
	else
		print_gpus(topo);
	printf("\n");
	if (topo->n_nics == 0)
		printf("no RDMA device\n");
	else
		print_nics(topo);
	printf("\n");
	print_nodes(topo);
	if (topo->n_gpus == 0)
		return;
	printf("\n");
	print_matrix(topo);
	printf("\nxGMI:N, NVLink: linked directly, N hops; PIX: one PCIe switch; PXB: several; "
	       "PHB: one host bridge;\n"
	       "NODE: host bridges of one NUMA node; SYS: between NUMA nodes; -: not on PCI; *: "
	       "the NIC of this GPU\n");
	if (*topo->nvml_note)
		printf("%s\n", topo->nvml_note);
}

/* ---- JSON */

static void set_node(struct json_object *obj, int numa_node)
{
	json_object_object_add(obj, "numa_node",
			       numa_node < 0 ? NULL : json_object_new_int(numa_node));
}

static void set_distance(struct json_object *obj, const struct kvx_pci_distance *d)
{
	kvx_json_set_str(obj, "relation", kvx_pci_relation_name(d->relation));
	kvx_json_set_u64(obj, "pci_hops", d->hops);
}

static struct json_object *json_gpu(const struct kvx_topo *topo, unsigned i)
{
	const struct kvx_topo_gpu *gpu = &topo->gpus[i];
	struct json_object *obj = json_object_new_object(), *nic = NULL;
	char name[16];

	snprintf(name, sizeof(name), "gpu%u", i);
	kvx_json_set_str(obj, "gpu", name);
	kvx_json_set_str(obj, "pci", gpu->path.name);
	kvx_json_set_str(obj, "vendor", vendor_name(gpu->vendor));
	kvx_json_set_str(obj, "name", gpu->name);
	kvx_json_set_str(obj, "uuid", gpu->uuid);
	kvx_json_set_str(obj, "driver", gpu->driver);
	kvx_json_set_str(obj, "render", gpu->render);
	set_node(obj, gpu->path.numa_node);
	kvx_json_set_u64(obj, "memory_bytes", gpu->mem_bytes);
	kvx_json_set_u64(obj, "bar_bytes", gpu->bar_bytes);
	if (gpu->nic >= 0) {
		nic = json_object_new_object();
		kvx_json_set_str(nic, "name", topo->nics[gpu->nic].name);
		set_distance(nic, &topo->nic_distances[i][gpu->nic]);
	}
	json_object_object_add(obj, "nic", nic);
	return obj;
}

static struct json_object *json_nic(const struct kvx_topo_nic *nic)
{
	struct json_object *obj = json_object_new_object();

	kvx_json_set_str(obj, "nic", nic->name);
	kvx_json_set_str(obj, "pci", nic->path.name);
	kvx_json_set_str(obj, "driver", nic->driver);
	kvx_json_set_str(obj, "netdev", nic->netdev);
	kvx_json_set_str(obj, "rate", nic->rate);
	kvx_json_set_bool(obj, "active", nic->active);
	set_node(obj, nic->numa_node);
	return obj;
}

static struct json_object *json_links(const struct kvx_topo *topo)
{
	struct json_object *list = json_object_new_array();

	for (unsigned a = 0; a < topo->n_gpus; a++) {
		for (unsigned b = 0; b < topo->n_gpus; b++) {
			const struct kvx_topo_pair *pair = &topo->gpu_pairs[a][b];
			struct json_object *obj;

			if (a == b)
				continue;
			obj = json_object_new_object();
			kvx_json_set_u64(obj, "from", a);
			kvx_json_set_u64(obj, "to", b);
			kvx_json_set_str(obj, "link", kvx_topo_link_name(pair->link));
			kvx_json_set_u64(obj, "hops", pair->hops);
			set_distance(obj, &pair->pci);
			if (pair->bandwidth_mbs > 0)
				kvx_json_set_u64(obj, "bandwidth_mb_per_s", pair->bandwidth_mbs);
			json_object_array_add(list, obj);
		}
	}
	return list;
}

static struct json_object *json_distances(const struct kvx_topo *topo)
{
	struct json_object *list = json_object_new_array();

	for (unsigned a = 0; a < topo->n_gpus; a++) {
		for (unsigned b = 0; b < topo->n_nics; b++) {
			struct json_object *obj = json_object_new_object();

			kvx_json_set_u64(obj, "gpu", a);
			kvx_json_set_str(obj, "nic", topo->nics[b].name);
			set_distance(obj, &topo->nic_distances[a][b]);
			json_object_array_add(list, obj);
		}
	}
	return list;
}

static void print_json(const struct kvx_topo *topo)
{
	struct json_object *obj = json_object_new_object(), *gpus = json_object_new_array();
	struct json_object *nics = json_object_new_array(), *nodes = json_object_new_array();

	for (unsigned i = 0; i < topo->n_gpus; i++)
		json_object_array_add(gpus, json_gpu(topo, i));
	for (unsigned i = 0; i < topo->n_nics; i++)
		json_object_array_add(nics, json_nic(&topo->nics[i]));
	for (unsigned i = 0; i < topo->n_nodes; i++) {
		struct json_object *node = json_object_new_object();

		kvx_json_set_u64(node, "numa_node", (uint64_t)topo->nodes[i].id);
		kvx_json_set_str(node, "cpus", topo->nodes[i].cpus);
		kvx_json_set_u64(node, "memory_bytes", topo->nodes[i].mem_bytes);
		json_object_array_add(nodes, node);
	}
	json_object_object_add(obj, "gpus", gpus);
	json_object_object_add(obj, "nics", nics);
	json_object_object_add(obj, "numa_nodes", nodes);
	json_object_object_add(obj, "gpu_links", json_links(topo));
	json_object_object_add(obj, "gpu_nics", json_distances(topo));
	kvx_json_set_str(obj, "note", topo->nvml_note);
	kvx_json_print(obj, stdout);
	json_object_put(obj);
}

int kvx_cmd_topology(struct kvx_ctl *ctl)
{
	struct kvx_topo_places places = {
	    .root = "", .nvml = "libnvidia-ml.so.1", .limit_ms = LIMIT_MS};
	char *nvml = NULL;
	struct kvx_topo *topo;

	if (root_dir != NULL) { /* of another node's files, nothing of this one belongs in it */
		nvml = kvx_tool_printf("%s/libnvidia-ml.so.1", root_dir);
		places.root = root_dir;
		places.nvml = nvml;
	}
	topo = kvx_topo_read(&places);
	if (ctl->json)
		print_json(topo);
	else
		print_topology(topo);
	free(topo);
	free(nvml);
	return KVX_CTL_OK;
}
