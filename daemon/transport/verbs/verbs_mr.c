/* Memory of a domain: registers regions with the device, in chunks where it takes no more at once,
 * and makes and reads the keys that name them to peers. Registering pins memory and may take
 * seconds: [mem] thread; keys of peers [data]. The rights of remote ends are those that the
 * region's owner gave, nothing else: no atomics, no memory windows, no paging on demand. */
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "base/log.h"
#include "transport/verbs/verbs_priv.h"

#define MKEY_VERSION     1u
#define WHOLE_SHIFT      63u
#define MIN_CHUNK_SHIFT  12u /* a page */
#define PAGE_MASK        4095u
#define DEREG_TRIES      100u
#define DEREG_PAUSE_NS   100000000
#define CAP_IPC_LOCK_BIT 14

/* As it travels; little-endian; of the keys only those in use. */
struct wire_mkey {
	uint8_t version;
	uint8_t rights;
	uint8_t chunk_shift;
	uint8_t n_chunks;
	uint32_t base;
	uint64_t len_bytes;
	uint32_t rkeys[VERBS_MAX_CHUNKS];
};
_Static_assert(sizeof(struct wire_mkey) == KVX_TRANSPORT_MKEY_MAX, "mkey fills its field");
#define WIRE_HEAD_BYTES offsetof(struct wire_mkey, rkeys)

/* How [base, base + len) is cut: 0, or -EMSGSIZE. */
static int chunks_plan(uint64_t max_mr_bytes, uint64_t span, uint32_t *out_shift, uint32_t *out_n)
{
	uint32_t shift = WHOLE_SHIFT;
	uint64_t n = 1;

	if (span > max_mr_bytes) {
		if (max_mr_bytes >> MIN_CHUNK_SHIFT == 0)
			return -EMSGSIZE;
		shift = 63u - (uint32_t)__builtin_clzll(max_mr_bytes);
		n = ((span - 1) >> shift) + 1;
	}
	if (n > VERBS_MAX_CHUNKS)
		return -EMSGSIZE;
	*out_shift = shift;
	*out_n = (uint32_t)n;
	return 0;
}

/* CAP_IPC_LOCK lifts the limit. */
static bool may_lock_all(void)
{
	struct rlimit limit;
	FILE *file;
	char line[256];
	bool may = false;

	if (getrlimit(RLIMIT_MEMLOCK, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY)
		return true;
	file = fopen("/proc/self/status", "re");
	while (file != NULL && fgets(line, sizeof(line), file) != NULL)
		if (strncmp(line, "CapEff:", 7) == 0)
			may = (strtoull(line + 7, NULL, 16) >> CAP_IPC_LOCK_BIT & 1) != 0;
	if (file != NULL)
		fclose(file);
	return may;
}

static void reg_complain(const struct kvx_mr *mr, const struct kvx_mem *mem, int error)
{
	const char *cure = "";

	switch (error) {
	case ENOMEM:
	case EPERM:
	case EAGAIN:
		cure = may_lock_all()
			   ? ": the kernel or the device has no room for it: register less, or "
			     "memory of larger pages"
			   : ": the limit of locked memory: set LimitMEMLOCK=infinity in "
			     "kvxferd.service (or ulimit -l), or give it CAP_IPC_LOCK";
		break;
	case EFAULT:
		cure = ": the memory is not there: was it truncated, or a hole punched?";
		break;
	case EOPNOTSUPP:
	case EPROTONOSUPPORT:
		if (mem->addr == NULL)
			cure = ": the device's driver takes no dma-buf: mlx5 does from Linux 5.12 "
			       "on, others later or in the vendor's release";
		break;
	case EINVAL:
		if (mem->addr == NULL)
			cure = ": the dma-buf is refused: its exporter must let other devices "
			       "reach it (PCIe peer-to-peer)";
		break;
	default:
		break;
	}
	kvx_error("verbs: %s: registering %" PRIu64 " bytes of %s memory failed: %s%s",
		  mr->dom->name, mr->len_bytes, mem->ops->name, strerror(error), cure);
}

/* LOCAL_WRITE always: the owner may read into its own memory, which no right tells. */
static int reg_access(uint32_t rights)
{
	int access = IBV_ACCESS_LOCAL_WRITE;

	if (rights & KVX_ACCESS_READ)
		access |= IBV_ACCESS_REMOTE_READ;
	if (rights & KVX_ACCESS_WRITE)
		access |= IBV_ACCESS_REMOTE_WRITE;
	return access;
}

/* 0 or -errno. A fence for what comes in: once it is through, nobody reaches the memory. */
static int chunk_dereg(struct kvx_mr *mr, uint32_t i)
{
	int rc = verbs_err(ibv_dereg_mr(mr->chunks[i]));

	if (rc == -EIO && verbs_device_is_gone(mr->dom->context))
		rc = 0; /* the kernel has taken it down with the device */
	if (rc == 0)
		mr->chunks[i] = NULL;
	return rc;
}

static void chunks_dereg(struct kvx_mr *mr)
{
	static const struct timespec pause = {.tv_nsec = DEREG_PAUSE_NS};
	int rc = 0;

	for (uint32_t i = 0; i < mr->n_chunks; i++) {
		for (unsigned n = 0; mr->chunks[i] != NULL && n < DEREG_TRIES; n++) {
			if (n > 0)
				nanosleep(&pause, NULL);
			rc = chunk_dereg(mr, i);
		}
		if (mr->chunks[i] == NULL)
			continue;
		/* The owner will be told that nobody reaches its memory any more. Only the end of
		 * the process makes that true now. */
		kvx_error("verbs: %s: ibv_dereg_mr: %s: memory stays open to the network, so the "
			  "daemon ends",
			  mr->dom->name, strerror(-rc));
		kvx_assert(mr->chunks[i] == NULL);
	}
}

static int chunk_reg(struct kvx_mr *mr, const struct kvx_mem *mem, struct ibv_pd *pd, uint32_t i)
{
	uint64_t size = 1ull << mr->chunk_shift, end = mr->base + mr->len_bytes;
	uint64_t start = i == 0 ? mr->base : (uint64_t)i * size;
	uint64_t at = start - mr->base;
	int access = reg_access(mr->rights);
	struct ibv_mr *chunk;

	if (end - (uint64_t)i * size > size)
		end = (uint64_t)i * size + size;
	errno = 0;
	if (mem->addr != NULL)
		chunk = ibv_reg_mr_iova(pd, mem->addr + at, end - start, start, access);
	else
		chunk =
		    ibv_reg_dmabuf_mr(pd, mem->fd_offset + at, end - start, start, mem->fd, access);
	if (chunk == NULL) {
		int error = errno != 0 ? errno : ENOMEM;

		reg_complain(mr, mem, error);
		return verbs_err(error);
	}
	mr->chunks[i] = chunk;
	mr->lkeys[i] = chunk->lkey;
	return 0;
}

static int mr_init(struct kvx_mr *mr, const struct kvx_mem *mem)
{
	uint64_t start = mem->addr != NULL ? (uint64_t)(uintptr_t)mem->addr : mem->fd_offset;
	int rc;

	mr->host = mem->addr;
	mr->len_bytes = mem->len_bytes;
	mr->base = (uint32_t)(start & PAGE_MASK);
	if (mem->len_bytes == 0 || mem->len_bytes > UINT64_MAX / 2)
		return -EINVAL;
	rc = chunks_plan(mr->dom->max_mr_bytes, mr->base + mr->len_bytes, &mr->chunk_shift,
			 &mr->n_chunks);
	if (rc < 0)
		kvx_error("verbs: %s: a region of %" PRIu64 " bytes is too large: the device "
			  "registers %" PRIu64 " at once, kvxfer %u such pieces",
			  mr->dom->name, mr->len_bytes, mr->dom->max_mr_bytes, VERBS_MAX_CHUNKS);
	return rc;
}

int verbs_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		  struct kvx_mr **out_mr)
{
	struct kvx_mr *mr;
	struct ibv_pd *pd;
	int rc;

	if (!(dom->mem_kinds & (1u << mem->ops->kind)) || (mem->addr == NULL && mem->fd < 0))
		return -EOPNOTSUPP;
	pd = verbs_dom_pd(dom, tenant);
	if (pd == NULL)
		return -ENOMEM;
	mr = calloc(1, sizeof(*mr));
	if (mr == NULL)
		return -ENOMEM;
	mr->dom = dom;
	mr->tenant = tenant;
	mr->rights = rights;
	rc = mr_init(mr, mem);
	for (uint32_t i = 0; rc == 0 && i < mr->n_chunks; i++)
		rc = chunk_reg(mr, mem, pd, i);
	if (rc < 0) {
		chunks_dereg(mr);
		free(mr);
		return rc;
	}
	kvx_counter_add_shared(&dom->counters.regs, 1);
	kvx_counter_add_shared(&dom->counters.reg_bytes, mr->len_bytes);
	*out_mr = mr;
	return 0;
}

void verbs_mem_dereg(struct kvx_mr *mr)
{
	if (mr == NULL)
		return;
	chunks_dereg(mr);
	/* The counters wrap around to what is registered now. */
	kvx_counter_add_shared(&mr->dom->counters.regs, (uint64_t)-1);
	kvx_counter_add_shared(&mr->dom->counters.reg_bytes, (uint64_t)0 - mr->len_bytes);
	free(mr);
}

int verbs_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	size_t len = WIRE_HEAD_BYTES + mr->n_chunks * sizeof(uint32_t);
	struct wire_mkey wire = {
	    .version = MKEY_VERSION,
	    .rights = (uint8_t)mr->rights,
	    .chunk_shift = (uint8_t)mr->chunk_shift,
	    .n_chunks = (uint8_t)mr->n_chunks,
	    .base = htole32(mr->base),
	    .len_bytes = htole64(mr->len_bytes),
	};

	if (buf_bytes < len)
		return -ENOSPC;
	for (uint32_t i = 0; i < mr->n_chunks; i++)
		wire.rkeys[i] = htole32(mr->chunks[i]->rkey);
	memcpy(buf, &wire, len);
	return (int)len;
}

/* What a peer sent: nothing of it is taken on trust but the keys themselves, which its device
 * checks.
 */
static bool mkey_is_sound(const struct wire_mkey *wire, size_t len, uint64_t len_bytes,
			  uint32_t base)
{
	uint64_t n;

	if (wire->version != MKEY_VERSION || wire->n_chunks == 0 ||
	    wire->n_chunks > VERBS_MAX_CHUNKS ||
	    len != WIRE_HEAD_BYTES + wire->n_chunks * sizeof(uint32_t))
		return false;
	if (len_bytes == 0 || len_bytes > UINT64_MAX / 2 || base > PAGE_MASK ||
	    (wire->rights & ~(KVX_ACCESS_READ | KVX_ACCESS_WRITE)) != 0)
		return false;
	if (wire->chunk_shift == WHOLE_SHIFT)
		return wire->n_chunks == 1;
	if (wire->chunk_shift < MIN_CHUNK_SHIFT || wire->chunk_shift > WHOLE_SHIFT)
		return false;
	n = ((base + len_bytes - 1) >> wire->chunk_shift) + 1;
	return n == wire->n_chunks;
}

int verbs_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	struct wire_mkey wire;
	struct kvx_rkey *rkey;
	uint64_t len_bytes;
	uint32_t base;

	memset(&wire, 0, sizeof(wire));
	if (len < WIRE_HEAD_BYTES || len > sizeof(wire))
		return -EINVAL;
	memcpy(&wire, mkey, len);
	len_bytes = le64toh(wire.len_bytes);
	base = le32toh(wire.base);
	if (!mkey_is_sound(&wire, len, len_bytes, base))
		return -EINVAL;
	rkey = calloc(1, sizeof(*rkey));
	if (rkey == NULL)
		return -ENOMEM;
	rkey->ep = ep;
	rkey->len_bytes = len_bytes;
	rkey->rights = wire.rights;
	rkey->base = base;
	rkey->chunk_shift = wire.chunk_shift;
	rkey->n_chunks = wire.n_chunks;
	for (uint32_t i = 0; i < rkey->n_chunks; i++)
		rkey->rkeys[i] = le32toh(wire.rkeys[i]);
	*out_rkey = rkey;
	return 0;
}

void verbs_rkey_free(struct kvx_rkey *rkey)
{
	free(rkey);
}
