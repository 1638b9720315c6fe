/* doctor: why this node's RDMA devices can or cannot be used: kernel modules, device files, the
 * user-space providers and their ABI, ports, GIDs, MTU. Asks the kernel (sysfs), libibverbs in a
 * process of its own, and the daemon if there is one. */
#include "doctor.h"

#include <errno.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "common/tool.h"
#include "doctor_library.h"
#include "transport/verbs/verbs_abi.h"
#include "transport/verbs/verbs_sysfs.h"

#define GIDS_SHOWN     8
#define ROCE_MTU_BYTES 4200 /* of the interface, for packets of 4096 bytes */

struct rdma_look {
	struct kvx_report *report;
	const struct kvx_rdma_places *places;
	struct verbs_kdev devices[VERBS_SYSFS_MAX_DEVICES];
	unsigned n_devices;
	struct kvx_library library;
	unsigned n_usable;                  /* devices that this user can open */
	bool told[VERBS_SYSFS_MAX_DEVICES]; /* something is wrong with it, and was said */
};

static void complain(struct rdma_look *look, const struct verbs_kdev *device,
		     enum kvx_finding_level level, const char *check, char *text, char *cure)
{
	look->told[device - look->devices] = true;
	kvx_report_add(look->report, level, check, text, cure);
}

static bool any_file(const char *pattern)
{
	glob_t found;
	bool any;

	if (glob(pattern, GLOB_NOSORT, NULL, &found) != 0)
		return false;
	any = found.gl_pathc > 0;
	globfree(&found);
	return any;
}

/* NICs that do RDMA once a second module is loaded. */
static void no_devices(struct kvx_report *report)
{
	static const struct {
		const char *driver, *module;
	} pairs[] = {
	    {"mlx5_core", "mlx5_ib"}, {"bnxt_en", "bnxt_re"},   {"ionic", "ionic_rdma"},
	    {"ice", "irdma"},         {"mlx4_core", "mlx4_ib"}, {"qede", "qedr"},
	};
	char pattern[128];

	for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
		snprintf(pattern, sizeof(pattern), "/sys/bus/pci/drivers/%s/*:*:*.*",
			 pairs[i].driver);
		if (!any_file(pattern))
			continue;
		kvx_report_ok(report, "rdma",
			      kvx_tool_printf("no RDMA device: other nodes are reached over TCP; "
					      "there are NICs of %s here: if they are to do RDMA, "
					      "`modprobe %s`",
					      pairs[i].driver, pairs[i].module));
		return;
	}
	kvx_report_ok(report, "rdma",
		      kvx_tool_strdup("no RDMA device: other nodes are reached over TCP"));
}

/* ---- device files */

static void check_files(struct rdma_look *look, const struct verbs_kdev *device)
{
	char path[300];

	if (device->uverbs[0] == '\0') {
		complain(look, device, KVX_FINDING_WARN, "rdma",
			 kvx_tool_printf("%s: the kernel offers it to no program: ib_uverbs "
					 "is not loaded",
					 device->name),
			 kvx_tool_strdup("modprobe ib_uverbs, and name it in "
					 "/etc/modules-load.d"));
		return;
	}
	snprintf(path, sizeof(path), "%s/%s", look->places->dev, device->uverbs);
	if (access(path, F_OK) != 0)
		complain(look, device, KVX_FINDING_WARN, "rdma",
			 kvx_tool_printf("%s: %s: %s", device->name, path, strerror(errno)),
			 kvx_tool_strdup("in a container pass --device=/dev/infiniband; else "
					 "check udev"));
	else if (access(path, R_OK | W_OK) != 0)
		complain(look, device, KVX_FINDING_WARN, "rdma",
			 kvx_tool_printf("%s: %s: not readable and writable for this user",
					 device->name, path),
			 kvx_tool_strdup("give the daemon's user the group of the file "
					 "(rdma), and DeviceAllow=char-infiniband_verbs in "
					 "its unit"));
}

/* ---- user-space providers */

static const struct kvx_library_device *library_find(const struct kvx_library *library,
						     const char *name)
{
	for (unsigned i = 0; i < library->n_devices; i++)
		if (strcmp(library->devices[i].name, name) == 0)
			return &library->devices[i];
	return NULL;
}

/* A node with one broken device goes on with the others: a warning. With none it is a failure. */
static enum kvx_finding_level provider_level(const struct rdma_look *look)
{
	return look->n_usable > 0 ? KVX_FINDING_WARN : KVX_FINDING_FAIL;
}

static void check_provider(struct rdma_look *look, const struct verbs_kdev *device)
{
	const struct kvx_library_device *offered = library_find(&look->library, device->name);
	const char *words = look->library.words;
	struct verbs_abi_gap gap;
	char release[16], name[64];

	if (device->uverbs[0] == '\0' || (offered != NULL && offered->open_errno == 0))
		return;
	kvx_library_release(&look->library, release, sizeof(release));
	if (offered != NULL) {
		if (offered->open_errno == EACCES || offered->open_errno == ENOENT)
			return; /* check_files() has said it */
		complain(look, device, provider_level(look), "rdma",
			 kvx_tool_printf("%s cannot be opened: %s", device->name,
					 strerror(offered->open_errno)),
			 kvx_tool_printf("dmesg shows why (a reset, firmware, memory); %s",
					 verbs_abi_cure(device->driver, false)));
	} else if (verbs_abi_find(words, device->name, &gap)) {
		complain(
		    look, device, provider_level(look), "rdma",
		    kvx_tool_printf("%s cannot be used: its kernel driver has ABI %u, the "
				    "user-space provider %s%s%s supports %u to %u",
				    device->name, gap.kernel_abi, gap.provider,
				    *release != '\0' ? " of rdma-core " : "", release, gap.min_abi,
				    gap.max_abi),
		    kvx_tool_strdup(verbs_abi_cure(gap.provider, gap.kernel_abi > gap.max_abi)));
	} else {
		bool unloadable = verbs_abi_unloadable(words, name, sizeof(name));

		complain(look, device, provider_level(look), "rdma",
			 kvx_tool_printf("%s cannot be used: %s%s (kernel %s%sABI %d%s%s)",
					 device->name,
					 unloadable ? "libibverbs could not load provider "
						    : "it has no user-space provider",
					 unloadable ? name : "", device->driver,
					 *device->driver != '\0' ? " " : "", device->abi,
					 *release != '\0' ? ", rdma-core " : "", release),
			 kvx_tool_strdup(verbs_abi_cure(device->driver, false)));
	}
}

/* What went wrong with all of the library. False: it did not answer. */
static bool check_library(struct rdma_look *look)
{
	const struct kvx_library *library = &look->library;
	const char *last = *library->last != '\0' ? library->last : "a provider";

	switch (library->end) {
	case KVX_LIBRARY_ANSWERED:
		return true;
	case KVX_LIBRARY_MISSING:
		kvx_report_add(
		    look->report, KVX_FINDING_FAIL, "rdma",
		    kvx_tool_printf("%s is not installed", look->places->soname),
		    kvx_tool_strdup("install libibverbs1 and ibverbs-providers (Debian), "
				    "libibverbs (Red Hat)"));
		return false;
	case KVX_LIBRARY_CRASHED:
		kvx_report_add(look->report, KVX_FINDING_FAIL, "rdma",
			       kvx_tool_printf("libibverbs crashes at %s (%s): kvxferd would too",
					       last, strsignal(library->number)),
			       kvx_tool_strdup("set verbs.enable = false, then update or remove "
					       "that provider; ibv_devinfo shows the same"));
		return false;
	case KVX_LIBRARY_HUNG:
		kvx_report_add(look->report, KVX_FINDING_FAIL, "rdma",
			       kvx_tool_printf("libibverbs does not return at %s%s: kvxferd would "
					       "not start",
					       last, library->left),
			       kvx_tool_strdup("set verbs.enable = false, and see dmesg for the "
					       "device"));
		return false;
	case KVX_LIBRARY_FAILED:
		break;
	}
	kvx_report_add(
	    look->report, KVX_FINDING_WARN, "rdma",
	    kvx_tool_printf("libibverbs could not be asked: %s", strerror(library->number)),
	    kvx_tool_strdup("run ibv_devinfo"));
	return false;
}

static void check_providers(struct rdma_look *look)
{
	char release[16];

	kvx_library_ask(look->places->soname, look->places->limit_ms, &look->library);
	if (!check_library(look))
		return;
	for (unsigned i = 0; i < look->library.n_devices; i++)
		look->n_usable += look->library.devices[i].open_errno == 0;
	for (unsigned i = 0; i < look->n_devices; i++)
		check_provider(look, &look->devices[i]);
	kvx_library_release(&look->library, release, sizeof(release));
	if (look->n_usable > 0)
		kvx_report_ok(look->report, "rdma",
			      kvx_tool_printf("%u of %u device(s) can be opened%s%s",
					      look->n_usable, look->n_devices,
					      *release != '\0' ? ", rdma-core " : "", release));
}

/* ---- ports */

/* MTU of a network interface; 0: unknown. */
static uint64_t netdev_mtu(const struct rdma_look *look, const char *netdev)
{
	char path[128], line[32];

	snprintf(path, sizeof(path), "%s/net/%s/mtu", look->places->sysfs, netdev);
	return kvx_read_line(path, line, sizeof(line)) ? strtoull(line, NULL, 10) : 0;
}

static void port_is_fine(struct rdma_look *look, const char *name, const struct verbs_kport *port,
			 const struct verbs_gid *gid)
{
	uint64_t mtu = port->infiniband ? 0 : netdev_mtu(look, gid->netdev);
	char text[VERBS_GID_TEXT_BYTES], more[96] = "";

	if (mtu != 0 && mtu < ROCE_MTU_BYTES)
		snprintf(more, sizeof(more),
			 "; %s has MTU %llu: with %d or more packets carry 4096 bytes", gid->netdev,
			 (unsigned long long)mtu, ROCE_MTU_BYTES);
	kvx_report_ok(look->report, "rdma port",
		      kvx_tool_printf("%s:%u active, %s, GID %u %s%s%s%s", name, port->port,
				      port->rate, gid->index, verbs_gid_text(gid->raw, text),
				      *gid->netdev != '\0' ? " " : "", gid->netdev, more));
}

static void gids_show(struct rdma_look *look, const char *name, uint32_t port,
		      const struct verbs_gid *gids, unsigned n)
{
	static const char *const kinds[] = {"InfiniBand", "RoCE v1", "RoCE v2"};
	char *list = kvx_tool_strdup(""), text[VERBS_GID_TEXT_BYTES];

	for (unsigned i = 0; i < n && i < GIDS_SHOWN; i++) {
		char *longer =
		    kvx_tool_printf("%s%s%u %s %s", list, i > 0 ? ", " : "", gids[i].index,
				    verbs_gid_text(gids[i].raw, text), kinds[gids[i].kind]);

		free(list);
		list = longer;
	}
	kvx_report_ok(
	    look->report, "rdma gids",
	    kvx_tool_printf("%s:%u: %s%s", name, port, list, n > GIDS_SHOWN ? ", and more" : ""));
	free(list);
}

static void check_port(struct rdma_look *look, const struct verbs_kdev *device,
		       const struct verbs_kport *port)
{
	const char *name = device->name;
	struct verbs_gid gids[VERBS_MAX_GIDS];
	const struct verbs_gid *gid;
	struct kvx_why why;
	unsigned n;

	if (!port->active) {
		complain(look, device, KVX_FINDING_WARN, "rdma port",
			 kvx_tool_printf("%s:%u is not active: %s, %s", name, port->port,
					 port->state, port->physical),
			 port->infiniband
			     ? kvx_tool_strdup("check cable and switch port, and that a "
					       "subnet manager runs (ibstat, sminfo)")
			     : kvx_tool_printf("`ip link set %s up`, check cable and switch "
					       "port (rdma link, ethtool)",
					       *port->netdev != '\0' ? port->netdev : "DEV"));
		return;
	}
	n = verbs_sysfs_gids(look->places->sysfs, name, port->port, gids, VERBS_MAX_GIDS);
	if (verbs_gid_choose(gids, n, port->infiniband, -1, &gid, &why) == 0)
		port_is_fine(look, name, port, gid);
	else
		complain(
		    look, device, KVX_FINDING_WARN, "rdma port",
		    kvx_tool_printf("%s:%u is active, but cannot be addressed", name, port->port),
		    kvx_tool_strdup(why.text));
	if (!port->infiniband && n > 0)
		gids_show(look, name, port->port, gids, n);
}

/* ---- what the daemon makes of it */

static bool device_told(const struct rdma_look *look, const char *name)
{
	for (unsigned i = 0; i < look->n_devices; i++)
		if (strcmp(look->devices[i].name, name) == 0)
			return look->told[i];
	return false;
}

static void check_rail(const struct rdma_look *look, struct json_object *rail)
{
	const char *name = kvx_json_str(rail, "name"), *reason = kvx_json_str(rail, "reason");

	if (strcmp(kvx_json_str(rail, "state"), "usable") == 0)
		kvx_report_ok(look->report, "rdma use",
			      kvx_tool_printf("the daemon uses %s", name));
	else if (strcmp(kvx_json_str(rail, "state"), "waiting") == 0) {
		if (!device_told(look, kvx_json_str(rail, "device")))
			kvx_report_add(
			    look->report, KVX_FINDING_WARN, "rdma use",
			    kvx_tool_printf("the daemon does not use %s yet: it waits", name),
			    kvx_tool_strdup(reason));
	} else if (strcmp(kvx_json_str(rail, "state"), "hanging") == 0)
		kvx_report_add(look->report, KVX_FINDING_WARN, "rdma use",
			       kvx_tool_printf("%s: %s", name, reason),
			       kvx_tool_strdup("see dmesg for the device; where the call does not "
					       "return at all, restart kvxferd"));
	else if (strncmp(reason, "left out", 8) == 0)
		kvx_report_ok(look->report, "rdma use",
			      kvx_tool_printf("the daemon does not use %s: %s", name, reason));
	else if (!device_told(look, kvx_json_str(rail, "device")))
		/* Nothing wrong now: it was so when the daemon started, or it is its configuration.
		 */
		kvx_report_add(look->report, KVX_FINDING_WARN, "rdma use",
			       kvx_tool_printf("the daemon does not use %s: %s", name, reason),
			       kvx_tool_strdup("restart kvxferd if that is over: it looks for "
					       "devices when it starts"));
}

static void check_daemon(const struct rdma_look *look, struct json_object *devices)
{
	struct json_object *rails = kvx_json_array(devices, "devices");

	for (size_t i = 0; i < kvx_json_length(rails); i++) {
		struct json_object *rail = kvx_json_at(rails, i);

		if (strcmp(kvx_json_str(rail, "transport"), "verbs") == 0 &&
		    *kvx_json_str(rail, "name") != '\0')
			check_rail(look, rail);
	}
}

void kvx_doctor_rdma(struct kvx_report *report, const struct kvx_rdma_places *places,
		     struct json_object *devices)
{
	struct rdma_look *look = kvx_tool_alloc(sizeof(*look));

	look->report = report;
	look->places = places;
	look->n_devices =
	    verbs_sysfs_devices(places->sysfs, look->devices, VERBS_SYSFS_MAX_DEVICES);
	if (look->n_devices == 0) {
		no_devices(report);
		free(look);
		return;
	}
	for (unsigned i = 0; i < look->n_devices; i++)
		check_files(look, &look->devices[i]);
	check_providers(look);
	for (unsigned i = 0; i < look->n_devices; i++)
		for (unsigned k = 0; k < look->devices[i].n_ports; k++)
			check_port(look, &look->devices[i], &look->devices[i].ports[k]);
	check_daemon(look, devices);
	free(look);
}
