/* The verbs stand-in's devices: lists, ports, GIDs, opening and closing, and the folder that stands
 * in for sysfs. Any thread. */
#include "fake_verbs_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ftw.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char sysfs[64]; /* the folder in place of /sys/class; "": not made */

void fake_verbs_make_gid(struct ibv_gid_entry *entry, uint32_t index, const char *ip,
			 enum ibv_gid_type type)
{
	struct in6_addr addr;
	char mapped[64];

	snprintf(mapped, sizeof(mapped), "%s%s", strchr(ip, ':') == NULL ? "::ffff:" : "", ip);
	if (inet_pton(AF_INET6, mapped, &addr) != 1)
		abort();
	memset(entry, 0, sizeof(*entry));
	memcpy(entry->gid.raw, &addr, sizeof(entry->gid.raw));
	entry->gid_index = index;
	entry->port_num = 1;
	entry->gid_type = type;
	entry->ndev_ifindex = if_nametoindex("lo");
}

static void port_default(struct fake_verbs_port *port, unsigned number)
{
	char ip[32];

	port->attr = (struct ibv_port_attr){
	    .state = IBV_PORT_ACTIVE,
	    .max_mtu = IBV_MTU_4096,
	    .active_mtu = IBV_MTU_1024,
	    .gid_tbl_len = FAKE_VERBS_MAX_GIDS,
	    .port_cap_flags = IBV_PORT_IP_BASED_GIDS,
	    .max_msg_sz = 1u << 30,
	    .pkey_tbl_len = 1,
	    .active_width = 2,  /* 4x */
	    .active_speed = 32, /* 25 Gbit/s each */
	    .phys_state = 5,
	    .link_layer = IBV_LINK_LAYER_ETHERNET,
	};
	snprintf(ip, sizeof(ip), "fe80::%x", number);
	fake_verbs_make_gid(&port->gids[0], 0, ip, IBV_GID_TYPE_ROCE_V1);
	fake_verbs_make_gid(&port->gids[1], 1, ip, IBV_GID_TYPE_ROCE_V2);
	snprintf(ip, sizeof(ip), "10.0.0.%u", number);
	fake_verbs_make_gid(&port->gids[2], 2, ip, IBV_GID_TYPE_ROCE_V1);
	fake_verbs_make_gid(&port->gids[3], 3, ip, IBV_GID_TYPE_ROCE_V2);
}

static void attr_default(struct ibv_device_attr *attr)
{
	*attr = (struct ibv_device_attr){
	    .fw_ver = "1.2.3",
	    .max_mr_size = UINT64_MAX,
	    .page_size_cap = 4096,
	    .vendor_id = 0x15b3,
	    .max_qp = 1024,
	    .max_qp_wr = 16384,
	    .max_sge = 30,
	    .max_sge_rd = 30,
	    .max_cq = 64,
	    .max_cqe = 1 << 20,
	    .max_mr = FV_MAX_KEYS,
	    .max_pd = 64,
	    .max_qp_rd_atom = 16,
	    .max_res_rd_atom = 16 * 1024,
	    .max_qp_init_rd_atom = 16,
	    .max_pkeys = 1,
	    .phys_port_cnt = 1,
	};
}

struct fake_verbs_dev *fake_verbs_add(const char *name)
{
	struct fake_verbs_dev *dev;
	unsigned i;

	fv_lock();
	i = fv.n_devs++;
	if (i >= FAKE_VERBS_MAX_DEVS)
		abort();
	dev = &fv.devs[i];
	*dev = (struct fake_verbs_dev){.has_dmabuf = true, .has_peermem = true};
	dev->dev.node_type = IBV_NODE_CA;
	dev->dev.transport_type = IBV_TRANSPORT_IB;
	snprintf(dev->dev.name, sizeof(dev->dev.name), "%s", name);
	snprintf(dev->dev.dev_name, sizeof(dev->dev.dev_name), "uverbs%u", i);
	snprintf(dev->dev.ibdev_path, sizeof(dev->dev.ibdev_path), "/nonexistent/%.64s", name);
	snprintf(dev->dev.dev_path, sizeof(dev->dev.dev_path), "/nonexistent/uverbs%u", i);
	attr_default(&dev->attr);
	for (unsigned p = 0; p < FAKE_VERBS_MAX_PORTS; p++)
		port_default(&dev->ports[p], 1 + i * FAKE_VERBS_MAX_PORTS + p);
	fv_unlock();
	return dev;
}

struct fake_verbs_dev *fake_verbs_dev(unsigned i)
{
	return &fv.devs[i];
}

static int remove_entry(const char *path, const struct stat *st, int kind, struct FTW *at)
{
	return remove(path);
}

void fake_verbs_remove_all(void)
{
	fv_lock();
	fv.n_devs = 0;
	if (sysfs[0] != '\0')
		nftw(sysfs, remove_entry, 8, FTW_DEPTH | FTW_PHYS);
	sysfs[0] = '\0';
	fv_unlock();
}

const char *fake_verbs_sysfs(void)
{
	if (sysfs[0] != '\0')
		return sysfs;
	snprintf(sysfs, sizeof(sysfs), "/tmp/kvx-verbs-XXXXXX");
	if (mkdtemp(sysfs) == NULL)
		abort();
	for (unsigned i = 0; i < fv.n_devs; i++) {
		char path[sizeof(fv.devs[i].dev.ibdev_path)];

		snprintf(path, sizeof(path), "%s/infiniband/%s", sysfs, fv.devs[i].dev.name);
		memcpy(fv.devs[i].dev.ibdev_path, path, sizeof(path));
	}
	return sysfs;
}

void fake_verbs_sysfs_write(const char *name, const char *text)
{
	char path[512];
	FILE *file;
	int at = snprintf(path, sizeof(path), "%s/", fake_verbs_sysfs());

	for (const char *c = name; *c != '\0'; c++) {
		path[at] = '\0';
		if (*c == '/' && mkdir(path, 0700) != 0 && errno != EEXIST)
			abort();
		path[at++] = *c;
	}
	path[at] = '\0';
	file = fopen(path, "w");
	if (file == NULL || fputs(text, file) < 0 || fclose(file) != 0)
		abort();
}

void fake_verbs_say(const char *words)
{
	fv.words = words;
}

struct fv_ctx *fv_ctx_of(struct ibv_context *context)
{
	return (struct fv_ctx *)((uint8_t *)context - offsetof(struct fv_ctx, verbs.context));
}

struct fake_verbs_dev *fv_dev_of(struct ibv_context *context)
{
	return fv_ctx_of(context)->dev;
}

unsigned fv_dev_index(const struct fake_verbs_dev *dev)
{
	return (unsigned)(dev - fv.devs);
}

struct ibv_device **ibv_get_device_list(int *num_devices)
{
	int err = fv_enter(FV_GET_DEVICE_LIST);
	struct ibv_device **list;

	if (num_devices != NULL)
		*num_devices = 0;
	if (fv.words != NULL)
		fputs(fv.words, stderr);
	if (err != 0)
		return fv_leave_null(err);
	list = calloc(fv.n_devs + 1, sizeof(*list));
	if (list == NULL)
		return fv_leave_null(ENOMEM);
	for (unsigned i = 0; i < fv.n_devs; i++)
		list[i] = &fv.devs[i].dev;
	if (num_devices != NULL)
		*num_devices = (int)fv.n_devs;
	fv.count.device_lists++;
	fv_unlock();
	return list;
}

void ibv_free_device_list(struct ibv_device **list)
{
	fv_lock();
	fv.count.device_lists--;
	fv_unlock();
	free(list);
}

const char *ibv_get_device_name(struct ibv_device *device)
{
	return device->name;
}

int ibv_get_device_index(struct ibv_device *device)
{
	return (int)fv_dev_index((struct fake_verbs_dev *)device);
}

__be64 ibv_get_device_guid(struct ibv_device *device)
{
	return (__be64)(fv_dev_index((struct fake_verbs_dev *)device) + 1);
}

static int query_port(struct ibv_context *context, uint8_t port_num, struct ibv_port_attr *attr,
		      size_t len)
{
	struct fake_verbs_dev *dev = fv_dev_of(context);
	int err = fv_enter(FV_QUERY_PORT);

	if (err == 0 && (port_num < 1 || port_num > dev->attr.phys_port_cnt))
		err = EINVAL;
	if (err == 0 && dev->fatal)
		err = EIO;
	if (err == 0)
		memcpy(attr, &dev->ports[port_num - 1].attr, len);
	return fv_leave(err);
}

static int query_device_ex(struct ibv_context *context,
			   const struct ibv_query_device_ex_input *input,
			   struct ibv_device_attr_ex *attr, size_t len)
{
	int err = fv_enter(FV_QUERY_DEVICE);

	if (err == 0) {
		memset(attr, 0, len);
		attr->orig_attr = fv_dev_of(context)->attr;
	}
	return fv_leave(err);
}

int ibv_query_device(struct ibv_context *context, struct ibv_device_attr *attr)
{
	int err = fv_enter(FV_QUERY_DEVICE);

	if (err == 0)
		*attr = fv_dev_of(context)->attr;
	return fv_leave(err);
}

#undef ibv_query_port
/* Never reached: the header's inline function finds query_port in the extended table. */
int ibv_query_port(struct ibv_context *context, uint8_t port_num,
		   struct _compat_ibv_port_attr *port_attr)
{
	return ENOSYS;
}

static const struct ibv_gid_entry *gid_find(struct ibv_context *context, uint32_t port,
					    uint32_t index)
{
	static const union ibv_gid none;
	struct fake_verbs_dev *dev = fv_dev_of(context);
	const struct ibv_gid_entry *entry;

	if (port < 1 || port > dev->attr.phys_port_cnt || index >= FAKE_VERBS_MAX_GIDS)
		return NULL;
	entry = &dev->ports[port - 1].gids[index];
	return memcmp(&entry->gid, &none, sizeof(none)) == 0 ? NULL : entry;
}

int ibv_query_gid(struct ibv_context *context, uint8_t port_num, int index, union ibv_gid *gid)
{
	const struct ibv_gid_entry *entry;
	int err = fv_enter(FV_QUERY_GID);

	if (err != 0) {
		fv_leave(err);
		return -1;
	}
	entry = index < 0 ? NULL : gid_find(context, port_num, (uint32_t)index);
	if (entry == NULL)
		memset(gid, 0, sizeof(*gid)); /* as sysfs shows it */
	else
		*gid = entry->gid;
	fv_unlock();
	return 0;
}

int _ibv_query_gid_ex(struct ibv_context *context, uint32_t port_num, uint32_t gid_index,
		      struct ibv_gid_entry *entry, uint32_t flags, size_t entry_size)
{
	const struct ibv_gid_entry *found;
	int err = fv_enter(FV_QUERY_GID);

	if (err != 0)
		return fv_leave(err);
	found = gid_find(context, port_num, gid_index);
	if (found == NULL)
		return fv_leave(ENODATA);
	memcpy(entry, found, entry_size);
	entry->port_num = port_num;
	return fv_leave(0);
}

ssize_t _ibv_query_gid_table(struct ibv_context *context, struct ibv_gid_entry *entries, size_t max,
			     uint32_t flags, size_t entry_size)
{
	struct fake_verbs_dev *dev = fv_dev_of(context);
	int err = fv_enter(FV_QUERY_GID);
	size_t n = 0;

	if (err != 0) {
		fv_unlock();
		return -err;
	}
	for (uint32_t port = 1; port <= dev->attr.phys_port_cnt; port++) {
		for (uint32_t i = 0; i < FAKE_VERBS_MAX_GIDS && n < max; i++) {
			const struct ibv_gid_entry *entry = gid_find(context, port, i);

			if (entry == NULL)
				continue;
			memcpy(&entries[n], entry, entry_size);
			entries[n++].port_num = port;
		}
	}
	fv_unlock();
	return (ssize_t)n;
}

int ibv_query_pkey(struct ibv_context *context, uint8_t port_num, int index, __be16 *pkey)
{
	if (index != 0)
		return -1;
	*pkey = 0xffff;
	return 0;
}

struct ibv_context *ibv_open_device(struct ibv_device *device)
{
	struct fake_verbs_dev *dev = (struct fake_verbs_dev *)device;
	int err = fv_enter(FV_OPEN_DEVICE);
	struct ibv_context *context;
	struct fv_ctx *ctx;

	if (err == 0 && dev->fatal)
		err = EIO;
	if (err != 0)
		return fv_leave_null(err);
	ctx = calloc(1, sizeof(*ctx));
	if (ctx == NULL)
		return fv_leave_null(ENOMEM);
	ctx->dev = dev;
	ctx->verbs.sz = sizeof(ctx->verbs);
	ctx->verbs.query_port = query_port;
	ctx->verbs.query_device_ex = query_device_ex;
	context = &ctx->verbs.context;
	context->device = device;
	context->abi_compat = __VERBS_ABI_IS_EXTENDED;
	context->num_comp_vectors = 1;
	context->cmd_fd = -1;
	context->async_fd = fv_fd_open();
	context->ops.post_send = fv_post_send;
	context->ops.post_recv = fv_post_recv;
	context->ops.poll_cq = fv_poll_cq;
	context->ops.req_notify_cq = fv_req_notify_cq;
	if (context->async_fd < 0) {
		err = errno;
		free(ctx);
		return fv_leave_null(err);
	}
	fv_object_init(&ctx->obj, FV_K_CTX);
	dev->n_open++;
	fv.count.contexts++;
	fv_unlock();
	return context;
}

int ibv_close_device(struct ibv_context *context)
{
	struct fv_ctx *ctx = fv_ctx_of(context);
	int err = fv_enter(FV_CLOSE_DEVICE);

	if (!fv_alive(&ctx->obj, FV_K_CTX, "close_device"))
		return fv_leave(EINVAL);
	if (ctx->n_children > 0)
		fv_violate("close_device with %u objects of it left", ctx->n_children);
	if (err != 0)
		return fv_leave(err);
	fv_fd_close(context->async_fd);
	context->async_fd = -1;
	ctx->dev->n_open--;
	fv.count.contexts--;
	fv_object_end(&ctx->obj);
	return fv_leave(0);
}

int ibv_fork_init(void)
{
	return 0;
}

enum ibv_fork_status ibv_is_fork_initialized(void)
{
	return IBV_FORK_UNNEEDED;
}
