/* Regions: memory that clients registered. The table knows owners, quotas, access and tokens; what
 * a transport needs to reach the memory is kept in `reg` by whoever registers it there. Loop
 * thread. */
#ifndef KVX_REGION_H
#define KVX_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/roles.h"
#include "mem/layout.h"
#include "mem/mem.h"

#define KVX_ACCESS_READ       1u
#define KVX_ACCESS_WRITE      2u
#define KVX_TOKEN_BYTES       16
#define KVX_REGION_NAME_BYTES 65
#define KVX_PUBLISH_BYTES     129 /* the name that a region is published under, with the NUL */
#define KVX_MAX_DOMAINS                                                                            \
	48 /* transport domains of a node: copy workers, fabric domains, NICs, GPUs */
#define KVX_MAX_TENANTS       8
#define KVX_TENANT_NAME_BYTES 32

enum kvx_region_state {
	KVX_REGION_MAPPING, /* being mapped and registered, not usable yet */
	KVX_REGION_LIVE,
	KVX_REGION_FAILED,  /* its memory failed: no new transfers */
	KVX_REGION_CLOSING, /* being retired: no new transfers, the running ones are drained */
};

/* The name under which clients of the tenant find a region, and what they are told then. */
struct kvx_published;

struct kvx_region {
	uint64_t id;
	uint64_t owner;  /* client id */
	uint32_t tenant; /* of the owner: index, 0: default */
	enum kvx_region_state state;
	struct kvx_mem mem;
	struct kvx_layout *layout;      /* NULL: none */
	uint32_t access;                /* KVX_ACCESS_*: what others may do */
	uint8_t token[KVX_TOKEN_BYTES]; /* random; in every descriptor of it */
	char name[KVX_REGION_NAME_BYTES];
	struct kvx_published *published; /* NULL: not, or no longer */
	void *reg[KVX_MAX_DOMAINS];      /* per transport domain; owned by xfer/reg */
	unsigned n_users; /* unfinished transfers that use it, on either side of this node */
	void *retire;     /* owned by xfer/retire */
	struct kvx_region *prev, *next; /* of the same owner; owned by control/client */
	void *record;                   /* owned by control/handle_region */
};

struct kvx_region_limits {
	uint32_t max_regions; /* of the daemon */
	uint32_t max_regions_per_client;
	uint64_t max_bytes; /* of the daemon */
	uint64_t max_bytes_per_client;
	uint64_t max_gpu_bytes; /* of the daemon: GPU memory, which the other limits do not count */
};

struct kvx_regions;

int kvx_regions_create(const struct kvx_region_limits *limits, struct kvx_regions **out_regions);
void kvx_regions_destroy(struct kvx_regions *regions); /* asserts empty */
void kvx_regions_set_limits(struct kvx_regions *regions,
			    const struct kvx_region_limits *limits) KVX_ON_LOOP;

/* What a client asks to be registered. */
struct kvx_region_request {
	uint64_t owner;  /* client id */
	uint32_t tenant; /* of the owner */
	const struct kvx_mem_ops *ops;
	int fd;
	uint64_t fd_offset;
	uint64_t len_bytes;
	struct kvx_gpu_mem *gpu; /* GPU kinds, else NULL */
	uint32_t access;
	uint32_t owner_regions; /* what the owner has already */
	uint64_t owner_bytes;
	struct kvx_layout *layout; /* NULL: none */
};

/* Books a region against the quotas and gives it an id and a token; state MAPPING. Takes
 * layout (checked), also on failure, and on success fd and gpu: an fd that is refused may be
 * anything, and closing it may block. -EDQUOT with the limit's name and value in *why, -ENOMEM, or
 * what mem ops->check says. */
int kvx_region_add(struct kvx_regions *regions, const struct kvx_region_request *request,
		   struct kvx_region **out_region, struct kvx_why *why) KVX_ON_LOOP;
/* Forgets a region and frees it. Its memory must be unmapped (ops->unmap ran on the job thread) and
 * unregistered. */
void kvx_region_remove(struct kvx_regions *regions, struct kvx_region *region) KVX_ON_LOOP;
struct kvx_region *kvx_region_find(const struct kvx_regions *regions, uint64_t id) KVX_ON_LOOP;
struct kvx_region *kvx_region_next(const struct kvx_regions *regions, uint32_t *cursor) KVX_ON_LOOP;
uint32_t kvx_regions_count(const struct kvx_regions *regions) KVX_ON_LOOP;
uint64_t kvx_regions_bytes(const struct kvx_regions *regions) KVX_ON_LOOP;

/* Publishes a region for its tenant: name of 1 to KVX_PUBLISH_BYTES - 1 characters; note is copied.
 * -EEXIST: another region of the tenant has the name; -ENOMEM. */
int kvx_region_publish(struct kvx_regions *regions, struct kvx_region *region, const char *name,
		       const void *note, uint32_t note_bytes, struct kvx_why *why) KVX_ON_LOOP;
/* It is not found any more, and its name is free. Nothing for one that is not published. */
void kvx_region_unpublish(struct kvx_regions *regions, struct kvx_region *region) KVX_ON_LOOP;
/* NULL: nobody has published it. */
struct kvx_region *kvx_region_find_published(const struct kvx_regions *regions, uint32_t tenant,
					     const char *name) KVX_ON_LOOP;
/* "" when it is not published; *out_note is valid until it is no more. */
const char *kvx_region_published_name(const struct kvx_region *region);
uint32_t kvx_region_note(const struct kvx_region *region, const void **out_note);

/* Constant-time comparison. */
bool kvx_region_token_equal(const struct kvx_region *region, const uint8_t token[KVX_TOKEN_BYTES]);

#endif
