/* Regions: memory of this process that the daemon may move bytes from and to. The user's thread;
 * owns the fd, and the mapping of what the library allocated, until the daemon has fenced it. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <utlist.h>

#define ACCESS_ALL (KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE)

/* ---- options */

static int plane_check(struct kvxfer_client *client, const struct kvxfer_plane *plane,
		       uint32_t index, uint64_t len_bytes)
{
	uint64_t n = plane->n_blocks > 0 ? plane->n_blocks : 1, end;

	if (plane->name != NULL &&
	    strnlen(plane->name, KVX_CL_PLANE_NAME_MAX + 1) > KVX_CL_PLANE_NAME_MAX)
		return kvx_cl_fail(client, -EINVAL, "plane %u: its name is longer than %d bytes",
				   index, KVX_CL_PLANE_NAME_MAX);
	if (plane->block_bytes == 0)
		return kvx_cl_fail(client, -EINVAL, "plane %u: block_bytes is 0", index);
	if (plane->block_stride < plane->block_bytes)
		return kvx_cl_fail(client, -EINVAL,
				   "plane %u: block_stride %llu is less than block_bytes %llu",
				   index, (unsigned long long)plane->block_stride,
				   (unsigned long long)plane->block_bytes);
	if (__builtin_mul_overflow(n - 1, plane->block_stride, &end) ||
	    __builtin_add_overflow(end, plane->block_bytes, &end) ||
	    __builtin_add_overflow(end, plane->offset, &end) || end > len_bytes)
		return kvx_cl_fail(client, -EINVAL,
				   "plane %u leaves the region of %llu bytes: offset %llu, %llu "
				   "blocks, stride %llu, block_bytes %llu",
				   index, (unsigned long long)len_bytes,
				   (unsigned long long)plane->offset, (unsigned long long)n,
				   (unsigned long long)plane->block_stride,
				   (unsigned long long)plane->block_bytes);
	return 0;
}

static int layout_check(struct kvxfer_client *client, const struct kvxfer_layout *layout,
			uint64_t len_bytes)
{
	if (layout->n_planes == 0 || layout->planes == NULL)
		return kvx_cl_fail(client, -EINVAL, "the layout has no planes: pass none instead");
	if (layout->n_planes > client->limits.max_planes)
		return kvx_cl_fail(client, -EMSGSIZE, "%u planes: the daemon's limit is %u",
				   layout->n_planes, client->limits.max_planes);
	for (uint32_t i = 0; i < layout->n_planes; i++) {
		int err = plane_check(client, &layout->planes[i], i, len_bytes);

		if (err < 0)
			return err;
	}
	return 0;
}

static int publish_check(struct kvxfer_client *client, const struct kvxfer_region_options *opts)
{
	if (opts->note == NULL && opts->note_bytes > 0)
		return kvx_cl_fail(client, -EINVAL, "note is NULL");
	if (opts->note_bytes > client->limits.max_payload_bytes)
		return kvx_cl_fail(client, -EMSGSIZE, "a note of %zu bytes: the limit is %u",
				   opts->note_bytes, client->limits.max_payload_bytes);
	if (opts->publish == NULL)
		return opts->note_bytes == 0
			   ? 0
			   : kvx_cl_fail(client, -EINVAL, "a note without a name to publish");
	if (!kvx_cl_name_is_plain(opts->publish))
		return kvx_cl_fail(client, -EINVAL,
				   "publish has 1 to %d characters of printable ASCII, none of "
				   "them blank",
				   KVX_CL_PUBLISH_MAX);
	if (opts->access == 0)
		return kvx_cl_fail(client, -EACCES,
				   "a region without access bits cannot be published: others may "
				   "do nothing with it");
	return 0;
}

/* flags: those that have a meaning for what is asked. */
static int options_read(struct kvxfer_client *client, const struct kvxfer_region_options *options,
			uint32_t flags, struct kvxfer_region_options *out_options)
{
	struct kvxfer_region_options opts = {0};
	struct kvx_why why;

	if (options != NULL && kvx_cl_copy_options(&opts, sizeof(opts), options, &why) < 0)
		return kvx_cl_fail(client, -EINVAL, "kvxfer_region_options: %s", why.text);
	if ((opts.access & ~(uint32_t)ACCESS_ALL) != 0)
		return kvx_cl_fail(client, -EINVAL, "access has unknown bits: 0x%x", opts.access);
	if ((opts.flags & ~flags & KVXFER_REGION_HUGEPAGES) != 0)
		return kvx_cl_fail(client, -EINVAL,
				   "KVXFER_REGION_HUGEPAGES is for "
				   "kvxfer_region_alloc(): make the memfd with "
				   "MFD_HUGETLB instead");
	if ((opts.flags & ~flags) != 0)
		return kvx_cl_fail(client, -EINVAL, "flags has bits that mean nothing here: 0x%x",
				   opts.flags);
	*out_options = opts;
	return publish_check(client, &opts);
}

/* ---- life */

static int region_publish(struct kvxfer_region *region, const struct kvxfer_region_options *opts)
{
	if (opts->publish == NULL)
		return 0;
	memcpy(region->publish, opts->publish, strlen(opts->publish) + 1);
	if (opts->note_bytes == 0)
		return 0;
	region->note = malloc(opts->note_bytes);
	if (region->note == NULL)
		return kvx_cl_fail(region->client, -ENOMEM, "out of memory");
	memcpy(region->note, opts->note, opts->note_bytes);
	region->note_bytes = opts->note_bytes;
	return 0;
}

static int region_create(struct kvxfer_client *client, const struct kvxfer_region_options *opts,
			 uint64_t len_bytes, struct kvxfer_region **out_region)
{
	struct kvxfer_region *region;
	int err = 0;

	if (opts->layout != NULL)
		err = layout_check(client, opts->layout, len_bytes);
	if (err < 0)
		return err;
	region = calloc(1, sizeof(*region));
	if (region == NULL)
		return kvx_cl_fail(client, -ENOMEM, "out of memory");
	region->client = client;
	region->fd = -1;
	region->access = opts->access;
	DL_APPEND(client->regions, region);
	if (kvx_cl_copy_name(region->name, opts->name) < 0)
		err = kvx_cl_fail(client, -EINVAL, "the region's name is longer than 64 bytes");
	else if (opts->layout != NULL && kvx_cl_planes_copy(opts->layout, &region->layout) < 0)
		err = kvx_cl_fail(client, -ENOMEM, "out of memory");
	else
		err = region_publish(region, opts);
	if (err < 0) {
		kvx_cl_region_destroy(region, true);
		return err;
	}
	*out_region = region;
	return 0;
}

/* fenced: no DMA to the memory is possible. Else the mapping is left on purpose, so that its
 * addresses cannot become something else's. */
void kvx_cl_region_destroy(struct kvxfer_region *region, bool fenced)
{
	if (region->map != NULL && fenced)
		munmap(region->map, region->len_bytes);
	if (region->fd >= 0)
		close(region->fd);
	kvx_cl_planes_fini(&region->layout);
	kvx_cl_gpu_destroy(region->gpu);
	free(region->descriptor);
	free(region->note);
	DL_DELETE(region->client->regions, region);
	free(region);
}

int kvx_cl_region_send(struct kvxfer_region *region, const struct kvx_cl_memory *memory)
{
	Kvxp__RegionRegister message = KVXP__REGION_REGISTER__INIT;
	struct kvxfer_client *client = region->client;
	struct kvx_cl_request *request;
	int err;

	request = kvx_cl_request_create(client, KVXP__FRAME_TYPE__FRAME_REGION_REGISTER);
	if (request == NULL)
		return -ENOMEM;
	message.request_id = request->id;
	message.kind = memory->kind;
	message.gpu = memory->gpu;
	message.fd_offset = region->offset;
	message.len = region->len_bytes;
	message.access = region->access;
	message.name = region->name;
	message.publish = region->publish;
	message.note.data = region->note;
	message.note.len = region->note_bytes;
	if (region->layout.n_planes > 0) {
		message.layout = kvx_cl_planes_encode(&region->layout);
		request->unsent = message.layout == NULL;
	}
	if (request->unsent)
		err = kvx_cl_fail(client, -ENOMEM, "out of memory");
	else
		err = kvx_cl_request_send_fds(client, request, &message.base, memory->fds,
					      memory->n_fds);
	if (err == 0 && request->reply->id == 0)
		err = kvx_cl_fail(client, -EPROTO, "the daemon gave the region no id");
	if (err == 0)
		region->id = request->reply->id;
	free(message.layout);
	free(region->descriptor);
	region->descriptor = NULL;
	kvx_cl_request_end(client, request);
	return err;
}

/* Makes it known to the daemon, anew after a reconnect: then it is in use. */
int kvx_cl_region_announce(struct kvxfer_region *region)
{
	const struct kvx_cl_memory host = {.kind = 1, .fds = &region->fd, .n_fds = 1};

	return region->gpu != NULL ? kvx_cl_gpu_announce(region, true)
				   : kvx_cl_region_send(region, &host);
}

static int region_finish(struct kvxfer_region *region, int err, struct kvxfer_region **out_region)
{
	if (err < 0) {
		/* Nobody but the daemon knows it: what it may still register for an abandoned
		 * request has no descriptor, so that nothing can land in it. */
		kvx_cl_region_destroy(region, true);
		return err;
	}
	*out_region = region;
	return 0;
}

int kvxfer_region_alloc(struct kvxfer_client *client, uint64_t len_bytes,
			const struct kvxfer_region_options *options,
			struct kvxfer_region **out_region)
{
	struct kvxfer_region_options opts;
	struct kvxfer_region *region;
	struct kvx_cl_memfd memfd;
	struct kvx_why why;
	int err;

	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	if (out_region == NULL)
		return kvx_cl_fail(client, -EINVAL, "out_region is NULL");
	if (len_bytes == 0)
		return kvx_cl_fail(client, -EINVAL, "len_bytes is 0");
	err = options_read(client, options, KVXFER_REGION_HUGEPAGES, &opts);
	if (err < 0)
		return err;
	err = region_create(client, &opts, len_bytes, &region);
	if (err < 0)
		return err;
	err = kvx_cl_memfd_create(len_bytes, (opts.flags & KVXFER_REGION_HUGEPAGES) != 0,
				  region->name, &memfd, &why);
	if (err < 0) {
		kvx_cl_region_destroy(region, true);
		return kvx_cl_fail(client, err, "%s", why.text);
	}
	region->fd = memfd.fd;
	region->map = memfd.map;
	region->len_bytes = memfd.len_bytes;
	return region_finish(region, kvx_cl_region_announce(region), out_region);
}

int kvxfer_region_register(struct kvxfer_client *client, int fd, uint64_t offset,
			   uint64_t len_bytes, const struct kvxfer_region_options *options,
			   struct kvxfer_region **out_region)
{
	struct kvxfer_region_options opts;
	struct kvxfer_region *region;
	struct kvx_why why;
	int err;

	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	if (out_region == NULL)
		return kvx_cl_fail(client, -EINVAL, "out_region is NULL");
	err = options_read(client, options, 0, &opts);
	if (err < 0)
		return err;
	err = region_create(client, &opts, len_bytes, &region);
	if (err < 0)
		return err;
	err = kvx_cl_memfd_adopt(fd, offset, len_bytes, &region->fd, &why);
	if (err < 0) {
		kvx_cl_region_destroy(region, true);
		return kvx_cl_fail(client, err, "%s", why.text);
	}
	region->offset = offset;
	region->len_bytes = len_bytes;
	return region_finish(region, kvx_cl_region_announce(region), out_region);
}

int kvxfer_region_register_gpu(struct kvxfer_client *client,
			       const struct kvxfer_gpu_segment *segments, uint32_t n_segments,
			       const struct kvxfer_region_options *options,
			       struct kvxfer_region **out_region)
{
	struct kvxfer_region_options opts;
	struct kvxfer_region *region;
	struct kvx_cl_gpu *gpu;
	uint64_t len_bytes;
	int err;

	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	if (out_region == NULL)
		return kvx_cl_fail(client, -EINVAL, "out_region is NULL");
	err = options_read(client, options, KVXFER_REGION_IN_USE, &opts);
	if (err < 0)
		return err;
	err = kvx_cl_gpu_create(client, segments, n_segments, &gpu, &len_bytes);
	if (err < 0)
		return err;
	err = region_create(client, &opts, len_bytes, &region);
	if (err < 0) {
		kvx_cl_gpu_destroy(gpu);
		return err;
	}
	region->gpu = gpu;
	region->len_bytes = len_bytes;
	err = kvx_cl_gpu_announce(region, (opts.flags & KVXFER_REGION_IN_USE) != 0);
	return region_finish(region, err, out_region);
}

void *kvxfer_region_data(const struct kvxfer_region *region)
{
	return region != NULL ? region->map : NULL;
}

uint64_t kvxfer_region_bytes(const struct kvxfer_region *region)
{
	return region != NULL ? region->len_bytes : 0;
}

int kvxfer_region_unregister(struct kvxfer_region *region)
{
	int err;

	if (region == NULL)
		return -EINVAL;
	err = kvx_cl_release(region->client, KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER, region->id,
			     &region->closing);
	if (err == 0 || err == -ECONNRESET)
		kvx_cl_region_destroy(region, true);
	return err;
}

/* ---- export */

static int region_ask_descriptor(struct kvxfer_region *region)
{
	Kvxp__RegionExport message = KVXP__REGION_EXPORT__INIT;
	struct kvxfer_client *client = region->client;
	struct kvx_cl_request *request;
	int err;

	request = kvx_cl_request_create(client, KVXP__FRAME_TYPE__FRAME_REGION_EXPORT);
	if (request == NULL)
		return -ENOMEM;
	message.request_id = request->id;
	message.region = region->id;
	err = kvx_cl_request_send(client, request, &message.base, -1);
	if (err == 0) {
		const ProtobufCBinaryData *data = &request->reply->data;

		if (data->len == 0 || data->len > KVXFER_DESCRIPTOR_MAX)
			err = kvx_cl_fail(client, -EPROTO,
					  "the daemon gave a descriptor of %zu bytes", data->len);
		else if ((region->descriptor = malloc(data->len)) == NULL)
			err = kvx_cl_fail(client, -ENOMEM, "out of memory");
		else
			region->descriptor_bytes = data->len;
		if (err == 0)
			memcpy(region->descriptor, data->data, data->len);
	}
	kvx_cl_request_end(client, request);
	return err;
}

int kvxfer_region_export(struct kvxfer_region *region, void *buf, size_t buf_bytes)
{
	struct kvxfer_client *client;
	int err;

	if (region == NULL)
		return -EINVAL;
	client = region->client;
	err = kvx_cl_enter_setup(client);
	if (err < 0)
		return err;
	if (buf == NULL)
		return kvx_cl_fail(client, -EINVAL, "buf is NULL");
	if (region->access == 0)
		return kvx_cl_fail(client, -EACCES,
				   "the region was registered without access bits: "
				   "others may do nothing with it");
	err = region->descriptor == NULL ? region_ask_descriptor(region) : 0;
	if (err < 0)
		return err;
	if (buf_bytes < region->descriptor_bytes)
		return kvx_cl_fail(client, -ENOSPC, "the descriptor has %zu bytes, buf only %zu",
				   region->descriptor_bytes, buf_bytes);
	memcpy(buf, region->descriptor, region->descriptor_bytes);
	return (int)region->descriptor_bytes;
}
