/* The table of regions: ids, owners, quotas, tokens. Loop thread; called by control (register) and
 * xfer (retire). Maps nothing, registers nothing with a transport and never blocks. */
#include "mem/region.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "base/assert.h"
#include "base/idmap.h"

struct kvx_regions {
	struct kvx_idmap *ids;
	struct kvx_region_limits limits;
	uint64_t bytes; /* of all regions */
};

int kvx_regions_create(const struct kvx_region_limits *limits, struct kvx_regions **out_regions)
{
	struct kvx_regions *regions = calloc(1, sizeof(*regions));
	if (regions == NULL)
		return -ENOMEM;
	/* The limits may change while running; they are checked here, not by the id map. */
	int err = kvx_idmap_create(UINT32_MAX, &regions->ids);
	if (err < 0) {
		free(regions);
		return err;
	}
	regions->limits = *limits;
	*out_regions = regions;
	return 0;
}

void kvx_regions_destroy(struct kvx_regions *regions)
{
	if (regions == NULL)
		return;
	kvx_assert(kvx_idmap_count(regions->ids) == 0 && regions->bytes == 0);
	kvx_idmap_destroy(regions->ids);
	free(regions);
}

void kvx_regions_set_limits(struct kvx_regions *regions, const struct kvx_region_limits *limits)
{
	regions->limits = *limits;
}

static int quota_count(uint64_t have, uint32_t limit, const char *name, struct kvx_why *why)
{
	if (have < limit)
		return 0;
	return kvx_why(why, -EDQUOT,
		       "limit %s is %" PRIu32 " and reached: unregister regions "
		       "that are not needed, or raise it",
		       name, limit);
}

static int quota_bytes(uint64_t have, uint64_t more, uint64_t limit, const char *name,
		       struct kvx_why *why)
{
	if (have <= limit && more <= limit - have)
		return 0;
	return kvx_why(why, -EDQUOT,
		       "limit %s is %" PRIu64 " bytes: %" PRIu64 " are in use and %" PRIu64
		       " more are asked for",
		       name, limit, have, more);
}

/* Names are those of the configuration's [limits] section. */
static int regions_check_quota(const struct kvx_regions *regions,
			       const struct kvx_region_request *request, struct kvx_why *why)
{
	const struct kvx_region_limits *limits = &regions->limits;
	uint64_t more = request->len_bytes;
	int err = quota_count(kvx_idmap_count(regions->ids), limits->max_regions, "regions", why);
	if (err == 0)
		err = quota_count(request->owner_regions, limits->max_regions_per_client,
				  "regions_per_client", why);
	if (err == 0)
		err = quota_bytes(regions->bytes, more, limits->max_bytes, "bytes", why);
	if (err == 0)
		err = quota_bytes(request->owner_bytes, more, limits->max_bytes_per_client,
				  "bytes_per_client", why);
	return err;
}

static int token_make(uint8_t out_token[KVX_TOKEN_BYTES], struct kvx_why *why)
{
	uint8_t token[KVX_TOKEN_BYTES];
	ssize_t n;
	do
		n = getrandom(token, sizeof(token), 0);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(token))
		return kvx_why(why, -EIO, "no random bytes for the region's token");
	memcpy(out_token, token, sizeof(token));
	return 0;
}

static void region_free(struct kvx_region *region)
{
	kvx_mem_fini(&region->mem);
	kvx_layout_destroy(region->layout);
	free(region);
}

int kvx_region_add(struct kvx_regions *regions, const struct kvx_region_request *request,
		   struct kvx_region **out_region, struct kvx_why *why)
{
	struct kvx_mem mem;
	kvx_mem_init(&mem, request->ops, request->fd, request->fd_offset, request->len_bytes);
	struct kvx_region *region = calloc(1, sizeof(*region));
	if (region == NULL) {
		kvx_layout_destroy(request->layout);
		return kvx_why(why, -ENOMEM, "no memory for the region's entry");
	}
	region->mem = mem;
	region->layout = request->layout;
	region->owner = request->owner;
	region->tenant = request->tenant;
	region->access = request->access;
	region->state = KVX_REGION_MAPPING;
	int err = regions_check_quota(regions, request, why);
	if (err == 0)
		err = mem.ops->check(&region->mem, why);
	if (err == 0)
		err = token_make(region->token, why);
	if (err == 0) {
		err = kvx_idmap_add(regions->ids, region, &region->id);
		if (err < 0)
			kvx_why(why, err, "no memory for the region's id");
	}
	if (err < 0) {
		region->mem.fd = -1; /* the caller's again */
		region_free(region);
		return err;
	}
	regions->bytes += region->mem.len_bytes;
	*out_region = region;
	return 0;
}

void kvx_region_remove(struct kvx_regions *regions, struct kvx_region *region)
{
	kvx_assert(region->mem.addr == NULL && region->n_users == 0);
	for (unsigned i = 0; i < KVX_MAX_DOMAINS; i++)
		kvx_assert(region->reg[i] == NULL);
	void *removed = kvx_idmap_remove(regions->ids, region->id);
	kvx_assert(removed == region);
	regions->bytes -= region->mem.len_bytes;
	region_free(region);
}

struct kvx_region *kvx_region_find(const struct kvx_regions *regions, uint64_t id)
{
	return kvx_idmap_find(regions->ids, id);
}

struct kvx_region *kvx_region_next(const struct kvx_regions *regions, uint32_t *cursor)
{
	return kvx_idmap_next(regions->ids, cursor);
}

uint32_t kvx_regions_count(const struct kvx_regions *regions)
{
	return kvx_idmap_count(regions->ids);
}

uint64_t kvx_regions_bytes(const struct kvx_regions *regions)
{
	return regions->bytes;
}

bool kvx_region_token_equal(const struct kvx_region *region, const uint8_t token[KVX_TOKEN_BYTES])
{
	uint8_t differ = 0;
	for (unsigned i = 0; i < KVX_TOKEN_BYTES; i++)
		differ = (uint8_t)(differ | (region->token[i] ^ token[i]));
	return differ == 0;
}
