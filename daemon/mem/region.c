/* The table of regions: ids, owners, quotas, tokens, published names. Loop thread; called by
 * control (register) and xfer (retire). Maps nothing, registers nothing with a transport and never
 * blocks. */
#include "mem/region.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
/* Without memory HASH_ADD adds nothing and leaves hh.tbl NULL. */
#define HASH_NONFATAL_OOM 1
#include <uthash.h>

#include "base/assert.h"
#include "base/idmap.h"

struct published_key {
	uint32_t tenant;
	char name[KVX_PUBLISH_BYTES]; /* zeroes behind it */
};

struct kvx_published {
	struct published_key key;
	struct kvx_region *region;
	UT_hash_handle hh;
	uint32_t note_bytes;
	uint8_t note[];
};

struct kvx_regions {
	struct kvx_idmap *ids;
	struct kvx_published *published; /* hash */
	struct kvx_region_limits limits;
	uint64_t bytes;     /* of all regions of host memory */
	uint64_t gpu_bytes; /* of all others */
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
	kvx_assert(regions->gpu_bytes == 0);
	kvx_assert(regions->published == NULL);
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
	if (err == 0 && kvx_mem_kind_is_gpu(request->ops->kind))
		return quota_bytes(regions->gpu_bytes, more, limits->max_gpu_bytes, "gpu.bytes",
				   why);
	if (err == 0)
		err = quota_bytes(regions->bytes, more, limits->max_bytes, "bytes", why);
	if (err == 0)
		err = quota_bytes(request->owner_bytes, more, limits->max_bytes_per_client,
				  "bytes_per_client", why);
	return err;
}

/* The sum that a region is booked in. */
static uint64_t *regions_bytes_of(struct kvx_regions *regions, const struct kvx_region *region)
{
	bool is_gpu = kvx_mem_kind_is_gpu(region->mem.ops->kind);

	return is_gpu ? &regions->gpu_bytes : &regions->bytes;
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
	mem.gpu = request->gpu;
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
		region->mem.gpu = NULL;
		region_free(region);
		return err;
	}
	*regions_bytes_of(regions, region) += region->mem.len_bytes;
	*out_region = region;
	return 0;
}

void kvx_region_remove(struct kvx_regions *regions, struct kvx_region *region)
{
	kvx_assert(region->mem.addr == NULL && region->n_users == 0);
	for (unsigned i = 0; i < KVX_MAX_DOMAINS; i++)
		kvx_assert(region->reg[i] == NULL);
	kvx_region_unpublish(regions, region);
	void *removed = kvx_idmap_remove(regions->ids, region->id);
	kvx_assert(removed == region);
	*regions_bytes_of(regions, region) -= region->mem.len_bytes;
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
	return regions->bytes + regions->gpu_bytes;
}

static void key_fill(struct published_key *key, uint32_t tenant, const char *name)
{
	memset(key, 0, sizeof(*key));
	key->tenant = tenant;
	strncpy(key->name, name, sizeof(key->name) - 1);
}

int kvx_region_publish(struct kvx_regions *regions, struct kvx_region *region, const char *name,
		       const void *note, uint32_t note_bytes, struct kvx_why *why)
{
	struct kvx_published *published;
	kvx_assert(region->published == NULL && strlen(name) < KVX_PUBLISH_BYTES);
	if (kvx_region_find_published(regions, region->tenant, name) != NULL)
		return kvx_why(why, -EEXIST, "the name is taken");
	published = calloc(1, sizeof(*published) + note_bytes);
	if (published == NULL)
		return kvx_why(why, -ENOMEM, "no memory to publish the region");
	key_fill(&published->key, region->tenant, name);
	published->region = region;
	published->note_bytes = note_bytes;
	if (note_bytes > 0)
		memcpy(published->note, note, note_bytes);
	HASH_ADD(hh, regions->published, key, sizeof(published->key), published);
	if (published->hh.tbl == NULL) {
		free(published);
		return kvx_why(why, -ENOMEM, "no memory to publish the region");
	}
	region->published = published;
	return 0;
}

void kvx_region_unpublish(struct kvx_regions *regions, struct kvx_region *region)
{
	if (region->published == NULL)
		return;
	HASH_DEL(regions->published, region->published);
	free(region->published);
	region->published = NULL;
}

struct kvx_region *kvx_region_find_published(const struct kvx_regions *regions, uint32_t tenant,
					     const char *name)
{
	struct published_key key;
	struct kvx_published *published;
	if (strlen(name) >= sizeof(key.name))
		return NULL;
	key_fill(&key, tenant, name);
	HASH_FIND(hh, regions->published, &key, sizeof(key), published);
	return published != NULL ? published->region : NULL;
}

const char *kvx_region_published_name(const struct kvx_region *region)
{
	return region->published != NULL ? region->published->key.name : "";
}

uint32_t kvx_region_note(const struct kvx_region *region, const void **out_note)
{
	if (region->published == NULL)
		return 0;
	*out_note = region->published->note;
	return region->published->note_bytes;
}

bool kvx_region_token_equal(const struct kvx_region *region, const uint8_t token[KVX_TOKEN_BYTES])
{
	uint8_t differ = 0;
	for (unsigned i = 0; i < KVX_TOKEN_BYTES; i++)
		differ = (uint8_t)(differ | (region->token[i] ^ token[i]));
	return differ == 0;
}
