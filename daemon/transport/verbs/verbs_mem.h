/* Memory of a verbs domain, and what names the other side's: regions, the pieces that they are made
 * of, keys; and how bytes that landed in GPU memory become visible.
 *
 *   piece   a run of a region's bytes in one registration: offset + delta is the device's address
 *   mr      a region of this node; one piece as a rule, several where the device takes no more at
 *           once, and for GPU memory of several allocations
 *   rkey    a region of the other side, by the pieces that its key tells
 *   pair    two queue pairs of this domain, connected to each other on its own port (loopback)
 *   flush   memory of one GPU that is read to make visible what RDMA wrote into that GPU
 *   loop    the pair of a tenant by which [data] reads it
 *
 * Threads as verbs_priv.h names them; [mem] are helpers, of which some register and others
 * deregister at the same time: two for host memory, and two for each GPU. Each call of a region is
 * made by one of them. */
#ifndef KVX_VERBS_MEM_H
#define KVX_VERBS_MEM_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <infiniband/verbs.h>

#include "mem/gpu.h"
#include "mem/region.h"
#include "transport/transport.h"

#define VERBS_MAX_CHUNKS 28u   /* of a region of host memory: their keys fit into a short mkey */
#define VERBS_MAX_PIECES 1024u /* of any region */
#define VERBS_PAGE_MASK  4095u

struct verbs_flush;

struct verbs_piece {
	uint64_t start; /* in the region */
	uint64_t len_bytes;
	uint64_t delta;
	uint32_t key; /* the local key of own memory, the remote key of the other side's */
	uint32_t mr;  /* own memory: which of its mrs */
};

struct kvx_mr {
	struct verbs_piece hit; /* where the last op was; [data], once there are ops */
	struct kvx_dom *dom;
	/* GPU memory: by which reads into it become visible; NULL: host memory. */
	struct verbs_flush *flush;
	uintptr_t host; /* host memory: plus the device's address it is the CPU's; else 0 */
	uint64_t len_bytes;
	uint32_t tenant;
	uint32_t rights;
	/* Not GPU memory: chunks of 1 << chunk_shift bytes by the device's addresses, the first of
	 * which is base (the device wants an address and what it stands for to be alike below the
	 * page size). chunk_shift 63: in one piece. */
	uint32_t base;
	uint32_t chunk_shift;
	uint32_t n_pieces;
	uint32_t n_mrs;
	struct verbs_piece *pieces;
	struct ibv_mr **mrs;
};

/* What a chain of writes into a region ends with: a read of ... */
enum verbs_flush_by {
	VERBS_FLUSH_EP,     /* the other ep's own page: host memory */
	VERBS_FLUSH_MEMORY, /* memory of the same GPU, named in the region's key */
	VERBS_FLUSH_SELF,   /* the last bytes that were written */
};

/* [data] */
struct kvx_rkey {
	struct verbs_piece hit;
	struct kvx_ep *ep;
	uint64_t len_bytes;
	uint32_t rights;
	enum verbs_flush_by flush_by;
	uint64_t flush_addr; /* FLUSH_MEMORY */
	uint32_t flush_rkey;
	uint32_t n_pieces;
	struct verbs_piece *pieces;
};

/* verbs_piece.c: pure */

/* Is all of that in one piece? */
static inline bool verbs_piece_has(const struct verbs_piece *piece, uint64_t offset, uint64_t len)
{
	uint64_t at = offset - piece->start; /* before it: more than any length */

	return at < piece->len_bytes && len <= piece->len_bytes - at;
}
/* The piece with this byte, which is in the region: put into *hit, which was one of them before. */
void verbs_piece_find(struct verbs_piece *hit, const struct verbs_piece *pieces, uint32_t n,
		      uint64_t offset);

/* How host memory is cut: fills chunk_shift and returns the number of chunks;
 * -EMSGSIZE: more than VERBS_MAX_CHUNKS. */
int verbs_chunks_plan(uint64_t max_mr_bytes, uint64_t span, uint32_t *out_shift);
/* The pieces of that, n of them, without keys. */
void verbs_chunks_fill(struct verbs_piece *pieces, uint32_t n, uint64_t len_bytes, uint32_t base,
		       uint32_t shift);

/* One registration of GPU memory: a part of one allocation of the region, by offsets in it. */
struct verbs_gpu_span {
	uint32_t base;
	uint64_t begin, end;
	uint64_t
	    delta; /* of who registers: plus an offset in the allocation, the device's address */
};
/* What of each allocation the segments use, from the first to the last byte, cut where the device
 * takes no more at once. Returns how many spans; -EMSGSIZE: more than max. */
int verbs_spans_plan(const struct kvx_gpu_mem *gpu, uint64_t max_mr_bytes,
		     struct verbs_gpu_span *spans, uint32_t max);
/* The segments as pieces, cut at the spans' ends; neighbours in one span are one piece. delta is
 * relative to the span's allocation, to be completed by its registration. Returns how many;
 * -EMSGSIZE: more than max. */
int verbs_pieces_plan(const struct kvx_gpu_mem *gpu, const struct verbs_gpu_span *spans,
		      uint32_t n_spans, struct verbs_piece *pieces, uint32_t max);
/* The shortest op that could run over more than `most` (at least 1) of them; UINT64_MAX: none. */
uint64_t verbs_pieces_shortest_op(const struct verbs_piece *pieces, uint32_t n, uint32_t most);

/* verbs_mr.c [mem] */

int verbs_mem_reg(struct kvx_dom *dom, uint32_t tenant, const struct kvx_mem *mem, uint32_t rights,
		  struct kvx_mr **out_mr);
void verbs_mem_dereg(struct kvx_mr *mr);
int verbs_reg_access(uint32_t rights); /* IBV_ACCESS_* */
/* Deregisters one; when it is through, nobody reaches the memory through it. Tries for long, and
 * ends the daemon when it cannot be. NULL is fine. */
void verbs_mr_end(struct kvx_dom *dom, struct ibv_mr *ibmr);

/* verbs_key.c: keys to be sent, [mem], and keys of peers, [data] */

int verbs_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes);
int verbs_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey);
void verbs_rkey_free(struct kvx_rkey *rkey);

/* verbs_gpu.c [mem] */

/* Fills an mr that is empty but for dom, tenant and rights. On error the caller ends what is there.
 */
int verbs_gpu_reg(struct kvx_mr *mr, const struct kvx_mem *mem, struct ibv_pd *pd);
struct verbs_gpu_ask {
	const struct kvx_gpu_base *base;
	uint64_t offset, len_bytes; /* in it */
	int access;                 /* IBV_ACCESS_* */
	/* Out, where it is refused: errno of its dma-buf and of its address; 0: it has none. */
	int fd_error, addr_error;
};
/* A part of an allocation, by its dma-buf or by its address; out_addr: the device's address of its
 * first byte. NULL: the ask says why. */
struct ibv_mr *verbs_gpu_mr(struct kvx_dom *dom, struct ibv_pd *pd, struct verbs_gpu_ask *ask,
			    uint64_t *out_addr);
/* To the log, once for each region and domain: what others can do without is no error. */
void verbs_gpu_complain(const struct kvx_dom *dom, uint64_t len_bytes, const char *what);

/* verbs_pair.c: any helper; a pair is its caller's */

#define VERBS_PAIR_BYTES 4096u
struct verbs_pair {
	struct ibv_cq *cq;
	struct ibv_qp *qps[2]; /* [0] posts, [1] answers */
	uint8_t *page;         /* VERBS_PAIR_BYTES, for what its reads bring */
	struct ibv_mr *page_mr;
};
/* depth: work requests on the way at most. channel: where completions wake somebody; NULL: nobody.
 * access: IBV_ACCESS_* of its page. 0; -ENETDOWN, -EHOSTUNREACH: the port has no address now;
 * others. */
int verbs_pair_make(struct kvx_dom *dom, struct ibv_pd *pd, struct ibv_comp_channel *channel,
		    uint32_t depth, int access, struct verbs_pair *out_pair);
/* Empties it. What the device does not let go of is left behind with its page. */
void verbs_pair_end(struct kvx_dom *dom, struct verbs_pair *pair);
void verbs_pairs_close(struct kvx_dom *dom); /* [data], at the end: tries those once more */

/* Whether a call of struct kvx_gpu_access is to be made again: -EBUSY, the GPU was at calls of
 * others, and the time is not over. Waits a little then. */
#define VERBS_GPU_BUSY_NS (5 * KVX_SEC)
bool verbs_gpu_again(int err, uint64_t until_ns);

/* verbs_see.c [mem] */

#define VERBS_PLACE_BYTES  KVX_GPU_WITNESS_BYTES
#define VERBS_PLACES       KVX_GPU_MAX_WITNESSES /* looked at together */
#define VERBS_PLACES_BYTES (VERBS_PLACES * VERBS_PLACE_BYTES)
struct verbs_place {
	uint64_t offset;
	uint32_t len_bytes; /* PLACE_BYTES at most */
};
struct verbs_see {
	struct kvx_dom *dom;
	struct ibv_pd *pd;
	const struct verbs_piece *pieces;
	uint32_t n_pieces;
	uint32_t news; /* of the port, when it began */
	struct verbs_pair pair;
};
/* Of a struct that has dom, pd and pieces. 0, or -EOPNOTSUPP with the reason: there is no loopback;
 * no end then. */
int verbs_see_begin(struct verbs_see *see, struct kvx_why *why);
void verbs_see_end(struct verbs_see *see);
/* What is at n places, PLACES at most, to verbs_see_bytes(): PLACE_BYTES for each. 0, or
 * -EOPNOTSUPP with the reason: no further calls but end then. */
int verbs_see_places(struct verbs_see *see, const struct verbs_place *places, uint32_t n,
		     struct kvx_why *why);
const uint8_t *verbs_see_bytes(const struct verbs_see *see);
void verbs_see_pause(void);

/* verbs_look.c [mem] */

/* Has the device read some places of the region, the witnesses and at least one of each
 * registration, and compares: with what the owner saw or, where the owner's engine is at work, with
 * what the GPU shows its home now. 0; -EFAULT: it sees other memory; others: it cannot be told. */
int verbs_gpu_verify(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
		     struct kvx_why *why);
/* The same for memory to flush by, in one piece: does it begin with its mark? */
int verbs_flush_verify(struct kvx_dom *dom, struct ibv_pd *pd, const struct verbs_piece *piece,
		       const uint8_t mark[KVX_GPU_FLUSH_MARK_BYTES], struct kvx_why *why);

/* verbs_flush.c */

/* Where the reads of all flushes of a tenant go. Never freed before the domain is closed. */
struct verbs_loop {
	_Atomic bool ready;     /* helpers set it, [data] clears it when it has failed */
	struct verbs_pair pair; /* [data] while ready, else of who is in verbs_flush.c */
	/* [data]; made 0 before it is ready */
	uint32_t n_flying;
	uint64_t due_ns; /* when the oldest read has taken too long */
};

struct verbs_flush {
	struct kvx_dom *dom;
	struct verbs_loop *loop;
	uint64_t addr; /* what is read: FLUSH_READ_BYTES at least */
	uint32_t rkey;
	uint64_t id; /* wr_id of its reads */
	/* Guarded by who is in verbs_flush.c. */
	struct verbs_flush *next; /* of dom->flushes */
	void *device;             /* of struct kvx_gpu_access; NULL: a region's own memory */
	uint32_t tenant;
	uint32_t n_users;
	struct ibv_mr *mr; /* NULL: a region's own memory */
	/* [data]; helpers wait for busy to become false before they free it. */
	_Atomic bool busy; /* in dom->busy */
	struct verbs_flush *next_busy;
	bool wanted;           /* a chain waits for a read that is not posted yet */
	uint64_t posted, done; /* reads; at most one is on the way */
};

/* One helper at a time: what dom guards by it. Nothing that goes into a GPU's driver is called
 * inside. */
void verbs_flush_enter(struct kvx_dom *dom);
void verbs_flush_leave(struct kvx_dom *dom);

/* One flush for each device and tenant, shared by its regions; where the device gives no memory for
 * that, one for the region, in its own memory. Helpers. */

/* Of an mr that has its pieces. 0; -EOPNOTSUPP with the reason. */
int verbs_flush_get(struct kvx_mr *mr, const struct kvx_gpu_mem *gpu, struct ibv_pd *pd,
		    struct kvx_why *why);
void verbs_flush_put(struct verbs_flush *flush); /* NULL is fine */
/* Is it memory of its own, that peers may read? Then where. */
bool verbs_flush_place(const struct verbs_flush *flush, uint64_t *out_addr, uint32_t *out_rkey);
/* [setup], before an ep is made: a loop that has failed and is needed is made anew. Where that
 * fails reads into GPU memory end the lane that they are on; all else works. */
void verbs_loop_mend(struct kvx_dom *dom, uint32_t tenant);
void verbs_loops_close(struct kvx_dom *dom); /* [data], at the end */

#endif
