/* Which ports of which RDMA devices of this node can be rails, and why the others cannot: each
 * reason says what to do. Looks at what libibverbs offers and at what the kernel shows; opens
 * devices for the time of the look only. Called at start, by any thread. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "transport/verbs/verbs_abi.h"
#include "transport/verbs/verbs_priv.h"
#include "transport/verbs/verbs_rail.h"
#include "transport/verbs/verbs_sysfs.h"

#define MAX_FOUND   128 /* rails, usable or not */
#define WORDS_BYTES 8192

struct probe {
	const struct kvx_verbs_conf *conf;
	struct verbs_kdev *kdevs; /* as the kernel shows them */
	unsigned n_kdevs;
	struct kvx_rail *rails;
	unsigned n_rails;
	char words[WORDS_BYTES]; /* of libibverbs */
};

static struct kvx_rail *rail_add(struct probe *probe, const char *device, uint32_t port)
{
	struct kvx_rail *rail;

	if (probe->n_rails == MAX_FOUND)
		return NULL;
	rail = &probe->rails[probe->n_rails++];
	*rail = (struct kvx_rail){.port = port, .numa_node = -1};
	snprintf(rail->device, sizeof(rail->device), "%s", device);
	if (port > 0)
		snprintf(rail->name, sizeof(rail->name), "%.50s:%u", device, port);
	else
		snprintf(rail->name, sizeof(rail->name), "%s", device);
	return rail;
}

__attribute__((format(printf, 3, 4))) static void
device_refuse(struct probe *probe, const char *device, const char *fmt, ...)
{
	struct kvx_rail *rail = rail_add(probe, device, 0);
	va_list args;

	if (rail == NULL)
		return;
	va_start(args, fmt);
	vsnprintf(rail->reason, sizeof(rail->reason), fmt, args);
	va_end(args);
}

static const struct verbs_kdev *kdev_find(const struct probe *probe, const char *name)
{
	for (unsigned i = 0; i < probe->n_kdevs; i++)
		if (strcmp(probe->kdevs[i].name, name) == 0)
			return &probe->kdevs[i];
	return NULL;
}

static const struct verbs_kport *kport_find(const struct probe *probe, const struct kvx_rail *rail)
{
	const struct verbs_kdev *kdev = kdev_find(probe, rail->device);

	for (unsigned i = 0; kdev != NULL && i < kdev->n_ports; i++)
		if (kdev->ports[i].port == rail->port)
			return &kdev->ports[i];
	return NULL;
}

/* The interface that a person must bring up or give an address, also where no GID can be used. */
static void rail_set_netdev(struct kvx_rail *rail, const struct verbs_kport *kport,
			    const struct verbs_gid *gids, int n)
{
	if (kport != NULL)
		memcpy(rail->netdev, kport->netdev, sizeof(rail->netdev));
	for (int i = 0; i < n && rail->netdev[0] == '\0'; i++)
		memcpy(rail->netdev, gids[i].netdev, sizeof(rail->netdev));
}

/* Without link or address it is usable too: it waits for them. */
static void rail_set_usable(const struct probe *probe, struct kvx_rail *rail,
			    const struct ibv_port_attr *port, const struct verbs_gid *gids,
			    unsigned n)
{
	const struct verbs_gid *gid = NULL;
	struct kvx_why why = {.text = ""};
	int rc = verbs_port_is_up(port, rail->netdev, &why);

	rail->usable = true;
	if (rc == 0)
		rc = verbs_gid_choose(gids, n, rail->link == KVX_RAIL_LINK_INFINIBAND,
				      probe->conf->gid_index, &gid, &why);
	if (rc < 0) {
		memcpy(rail->reason, why.text, sizeof(rail->reason));
		return;
	}
	rail->gid_index = gid->index;
	verbs_gid_text(gid->raw, rail->gid);
	if (gid->netdev[0] != '\0')
		memcpy(rail->netdev, gid->netdev, sizeof(rail->netdev));
}

/* Codes that this libibverbs does not know yet the kernel says in words. */
static uint64_t port_mbps(const struct verbs_kport *kport, const struct ibv_port_attr *attr)
{
	uint64_t mbps = verbs_link_mbps(attr->active_width, attr->active_speed);

	return mbps == 0 && kport != NULL ? verbs_rate_mbps(kport->rate) : mbps;
}

static void port_look(struct probe *probe, struct ibv_context *ctx,
		      const struct ibv_device_attr *attr, struct kvx_rail *rail)
{
	const struct verbs_kport *kport = kport_find(probe, rail);
	struct verbs_gid gids[VERBS_MAX_GIDS];
	struct ibv_port_attr port;
	int n, rc = ibv_query_port(ctx, (uint8_t)rail->port, &port);

	if (rc != 0) {
		snprintf(rail->reason, sizeof(rail->reason), VERBS_PORT_MUTE, strerror(rc));
		return;
	}
	rail->link = port.link_layer == IBV_LINK_LAYER_ETHERNET ? KVX_RAIL_LINK_ETHERNET
								: KVX_RAIL_LINK_INFINIBAND;
	rail->mtu_bytes = verbs_mtu_bytes(port.active_mtu);
	rail->speed_mbps = port_mbps(kport, &port);
	n = verbs_read_gids(ctx, rail->port, &port, gids, VERBS_MAX_GIDS);
	rail_set_netdev(rail, kport, gids, n);
	if (!verbs_devices_want(probe->conf->devices, rail->device, rail->port))
		snprintf(rail->reason, sizeof(rail->reason), "left out by verbs.devices");
	else if (attr->max_qp_rd_atom == 0 || attr->max_qp_init_rd_atom == 0)
		snprintf(rail->reason, sizeof(rail->reason),
			 "the device does not do RDMA reads, which kvxfer needs: leave it out by "
			 "verbs.devices = ^%.60s",
			 rail->device);
	else if (n < 0)
		snprintf(rail->reason, sizeof(rail->reason), VERBS_GIDS_MUTE, strerror(-n));
	else
		rail_set_usable(probe, rail, &port, gids, (unsigned)n);
}

/* What the type of a device says: queue pairs of the kind kvxfer needs, or not. */
static const char *why_not_type(const struct ibv_device *device)
{
	switch (device->transport_type) {
	case IBV_TRANSPORT_IB:
		return NULL;
	case IBV_TRANSPORT_IWARP:
		return "an iWARP device: only InfiniBand and RoCE are supported, other nodes are "
		       "reached by the fabric transport";
	default:
		return "it has no reliable connections (EFA, usNIC): use the fabric transport with "
		       "its provider";
	}
}

static void why_not_open(struct probe *probe, const char *name, const char *uverbs, int error)
{
	switch (error) {
	case EACCES:
	case EPERM:
		device_refuse(probe, name,
			      "no permission to open /dev/infiniband/%s: give the daemon's user "
			      "the group rdma, or DeviceAllow=char-infiniband_verbs in its unit",
			      uverbs);
		break;
	case ENOENT:
	case ENXIO:
		device_refuse(probe, name,
			      "/dev/infiniband/%s is not there: modprobe ib_uverbs; in a container "
			      "pass --device=/dev/infiniband",
			      uverbs);
		break;
	case ENODEV:
		device_refuse(probe, name,
			      "the device is gone or being reset (/dev/infiniband/%s: %s)", uverbs,
			      strerror(error));
		break;
	default:
		device_refuse(probe, name, "ibv_open_device: %s; `kvxferctl doctor` says more",
			      strerror(error != 0 ? error : EIO));
	}
}

static void device_look(struct probe *probe, struct ibv_device *device)
{
	const char *name = ibv_get_device_name(device), *not_type = why_not_type(device);
	struct ibv_device_attr attr;
	struct ibv_context *ctx;
	int rc;

	if (!verbs_devices_want(probe->conf->devices, name, 0)) {
		device_refuse(probe, name, "left out by verbs.devices");
		return;
	}
	if (not_type != NULL) {
		device_refuse(probe, name, "%s", not_type);
		return;
	}
	errno = 0;
	ctx = ibv_open_device(device);
	if (ctx == NULL) {
		why_not_open(probe, name, device->dev_name, errno);
		return;
	}
	rc = ibv_query_device(ctx, &attr);
	if (rc != 0)
		device_refuse(probe, name, "the device cannot be asked (ibv_query_device: %s)",
			      strerror(rc));
	for (uint32_t port = 1; rc == 0 && port <= attr.phys_port_cnt && port <= VERBS_MAX_PORTS;
	     port++) {
		struct kvx_rail *rail = rail_add(probe, name, port);

		if (rail == NULL)
			break;
		rail->numa_node = verbs_sysfs_numa(device->ibdev_path);
		snprintf(rail->firmware, sizeof(rail->firmware), "%s", attr.fw_ver);
		port_look(probe, ctx, &attr, rail);
	}
	(void)ibv_close_device(ctx);
}

/* A device of the kernel that libibverbs does not offer. */
static void kdev_refuse(struct probe *probe, const struct verbs_kdev *kdev)
{
	struct verbs_abi_gap gap;
	char library[64];

	if (verbs_abi_find(probe->words, kdev->name, &gap))
		device_refuse(probe, kdev->name,
			      "its kernel driver has ABI %u, the provider %s here supports %u to "
			      "%u: %s",
			      gap.kernel_abi, gap.provider, gap.min_abi, gap.max_abi,
			      verbs_abi_cure(gap.provider, gap.kernel_abi > gap.max_abi));
	else if (kdev->uverbs[0] == '\0')
		device_refuse(probe, kdev->name,
			      "the kernel offers it to no program: modprobe ib_uverbs");
	else if (verbs_abi_unloadable(probe->words, library, sizeof(library)))
		device_refuse(probe, kdev->name, "libibverbs cannot load provider %s: %s", library,
			      verbs_abi_cure(kdev->driver, false));
	else
		device_refuse(probe, kdev->name,
			      "no user-space provider for it (kernel ABI %d): %s", kdev->abi,
			      verbs_abi_cure(kdev->driver, false));
}

static void kdevs_look(struct probe *probe)
{
	for (unsigned i = 0; i < probe->n_kdevs; i++) {
		const struct verbs_kdev *kdev = &probe->kdevs[i];
		bool offered = false;

		for (unsigned k = 0; k < probe->n_rails && !offered; k++)
			offered = strcmp(probe->rails[k].device, kdev->name) == 0;
		if (!offered && verbs_devices_want(probe->conf->devices, kdev->name, 0))
			kdev_refuse(probe, kdev);
	}
}

/* verbs.devices may name what is not there: a typing error, or a device that is gone. */
static void name_check(void *arg, const char *name)
{
	const struct probe *probe = arg;

	for (unsigned i = 0; i < probe->n_rails; i++)
		if (strcmp(probe->rails[i].device, name) == 0)
			return;
	if (kdev_find(probe, name) == NULL)
		kvx_warn("verbs: verbs.devices names %s, which this node does not have", name);
}

static int probe_give(struct probe *probe, struct kvx_rail *rails, unsigned max,
		      struct kvx_why *why)
{
	unsigned n = probe->n_rails < max ? probe->n_rails : max;

	verbs_rails_sort(probe->rails, probe->n_rails);
	if (probe->n_rails == 0)
		return kvx_why(why, -ENODEV, "no RDMA device: none under /sys/class/infiniband");
	for (unsigned i = n; i < probe->n_rails; i++) {
		const struct kvx_rail *rail = &probe->rails[i];

		if (rail->usable && rail->reason[0] == '\0')
			kvx_warn("verbs: port %s is not used, %u is the most: choose by "
				 "verbs.devices",
				 rail->name, max);
		else
			kvx_info("verbs: %s is not used: %s", rail->name, rail->reason);
	}
	memcpy(rails, probe->rails, n * sizeof(*rails));
	return (int)n;
}

int verbs_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		struct kvx_why *why)
{
	const char *root = conf->test != NULL ? conf->test : VERBS_SYSFS_ROOT;
	struct probe *probe = calloc(1, sizeof(*probe));
	struct ibv_device **list = NULL;
	int rc = -ENOMEM, n = 0;

	if (probe == NULL)
		return kvx_why(why, -ENOMEM, "verbs: out of memory");
	probe->conf = &conf->verbs;
	probe->rails = calloc(MAX_FOUND, sizeof(*probe->rails));
	probe->kdevs = calloc(VERBS_SYSFS_MAX_DEVICES, sizeof(*probe->kdevs));
	if (probe->rails == NULL || probe->kdevs == NULL) {
		(void)kvx_why(why, rc, "verbs: out of memory");
		goto out;
	}
	probe->n_kdevs = verbs_sysfs_devices(root, probe->kdevs, VERBS_SYSFS_MAX_DEVICES);
	list = verbs_list(&n, probe->words, sizeof(probe->words));
	if (list == NULL && errno != ENOSYS && errno != 0)
		kvx_warn("verbs: libibverbs cannot list devices: %s", strerror(errno));
	if (probe->words[0] != '\0')
		kvx_debug("verbs: libibverbs says: %s", probe->words);
	for (int i = 0; list != NULL && i < n; i++)
		device_look(probe, list[i]);
	kdevs_look(probe);
	verbs_devices_each(probe->conf->devices, name_check, probe);
	rc = probe_give(probe, rails, max, why);
	if (list != NULL)
		ibv_free_device_list(list);
out:
	free(probe->kdevs);
	free(probe->rails);
	free(probe);
	return rc;
}
