/* Keys: how a region is named to peers, and what a peer's key says. Two forms. Memory of the host:
 * one key for each chunk of equal size (version 1). Memory of a GPU: a list of pieces, and what to
 * read so that writes become visible (version 2). Nothing of a peer's key is taken on trust but the
 * keys themselves, which its device checks. Little-endian. [mem] packs them, [data] does the
 * rest. */
#include <endian.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "transport/verbs/verbs_priv.h"

#define VERSION_CHUNKS  1u
#define VERSION_PIECES  2u
#define MIN_CHUNK_SHIFT 12u
#define ALL_RIGHTS      (KVX_ACCESS_READ | KVX_ACCESS_WRITE)

/* Of the keys only those in use. */
struct wire_chunks {
	uint8_t version;
	uint8_t rights;
	uint8_t chunk_shift;
	uint8_t n_chunks;
	uint32_t base;
	uint64_t len_bytes;
	uint32_t rkeys[VERBS_MAX_CHUNKS];
};
#define CHUNKS_HEAD_BYTES offsetof(struct wire_chunks, rkeys)

/* Followed by n_pieces of them. */
struct wire_pieces {
	uint8_t version;
	uint8_t rights;
	uint8_t flush_by; /* enum verbs_flush_by, not FLUSH_EP */
	uint8_t zero;
	uint32_t n_pieces;
	uint64_t len_bytes;
	uint64_t flush_addr; /* 0, but for FLUSH_MEMORY */
	uint32_t flush_rkey;
	uint32_t zero2;
};
struct wire_piece {
	uint64_t len_bytes;
	uint64_t addr;
	uint32_t rkey;
} __attribute__((packed));
_Static_assert(sizeof(struct wire_chunks) <= KVX_TRANSPORT_MKEY_MAX, "a key of chunks fits");
_Static_assert(sizeof(struct wire_pieces) + VERBS_MAX_PIECES * sizeof(struct wire_piece) <=
		   KVX_TRANSPORT_MKEY_MAX,
	       "a key of pieces fits");

static int pack_chunks(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	size_t len = CHUNKS_HEAD_BYTES + mr->n_pieces * sizeof(uint32_t);
	struct wire_chunks wire = {
	    .version = VERSION_CHUNKS,
	    .rights = (uint8_t)mr->rights,
	    .chunk_shift = (uint8_t)mr->chunk_shift,
	    .n_chunks = (uint8_t)mr->n_pieces,
	    .base = htole32(mr->base),
	    .len_bytes = htole64(mr->len_bytes),
	};

	if (buf_bytes < len)
		return -ENOSPC;
	for (uint32_t i = 0; i < mr->n_pieces; i++)
		wire.rkeys[i] = htole32(mr->mrs[i]->rkey);
	memcpy(buf, &wire, len);
	return (int)len;
}

static int pack_pieces(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	size_t len = sizeof(struct wire_pieces) + mr->n_pieces * sizeof(struct wire_piece);
	struct wire_pieces head = {
	    .version = VERSION_PIECES,
	    .rights = (uint8_t)mr->rights,
	    .flush_by = VERBS_FLUSH_SELF,
	    .n_pieces = htole32(mr->n_pieces),
	    .len_bytes = htole64(mr->len_bytes),
	};
	uint8_t *at = (uint8_t *)buf + sizeof(head);
	uint64_t flush_addr;
	uint32_t flush_rkey;

	if (buf_bytes < len)
		return -ENOSPC;
	if (verbs_flush_place(mr->flush, &flush_addr, &flush_rkey)) {
		head.flush_by = VERBS_FLUSH_MEMORY;
		head.flush_addr = htole64(flush_addr);
		head.flush_rkey = htole32(flush_rkey);
	}
	memcpy(buf, &head, sizeof(head));
	for (uint32_t i = 0; i < mr->n_pieces; i++, at += sizeof(struct wire_piece)) {
		const struct verbs_piece *piece = &mr->pieces[i];
		struct wire_piece wire = {
		    .len_bytes = htole64(piece->len_bytes),
		    .addr = htole64(piece->start + piece->delta),
		    .rkey = htole32(mr->mrs[piece->mr]->rkey),
		};

		memcpy(at, &wire, sizeof(wire));
	}
	return (int)len;
}

int verbs_mkey_pack(const struct kvx_mr *mr, void *buf, size_t buf_bytes)
{
	return mr->flush != NULL ? pack_pieces(mr, buf, buf_bytes)
				 : pack_chunks(mr, buf, buf_bytes);
}

/* --- what comes from a peer --- */

/* In one piece with its pieces. */
static struct kvx_rkey *rkey_create(struct kvx_ep *ep, uint64_t len_bytes, uint32_t rights,
				    uint32_t n_pieces)
{
	struct kvx_rkey *rkey = calloc(1, sizeof(*rkey) + n_pieces * sizeof(struct verbs_piece));

	if (rkey == NULL)
		return NULL;
	rkey->ep = ep;
	rkey->len_bytes = len_bytes;
	rkey->rights = rights;
	rkey->n_pieces = n_pieces;
	rkey->pieces = (struct verbs_piece *)(rkey + 1);
	return rkey;
}

static bool chunks_are_sound(const struct wire_chunks *wire, size_t len, uint64_t len_bytes,
			     uint32_t base)
{
	uint64_t n;

	if (wire->n_chunks == 0 || wire->n_chunks > VERBS_MAX_CHUNKS ||
	    len != CHUNKS_HEAD_BYTES + wire->n_chunks * sizeof(uint32_t))
		return false;
	if (len_bytes == 0 || len_bytes > UINT64_MAX / 2 || base > VERBS_PAGE_MASK ||
	    (wire->rights & ~ALL_RIGHTS) != 0)
		return false;
	if (wire->chunk_shift == VERBS_WHOLE_SHIFT)
		return wire->n_chunks == 1;
	if (wire->chunk_shift < MIN_CHUNK_SHIFT || wire->chunk_shift > VERBS_WHOLE_SHIFT)
		return false;
	n = ((base + len_bytes - 1) >> wire->chunk_shift) + 1;
	return n == wire->n_chunks;
}

static int unpack_chunks(struct kvx_ep *ep, const void *mkey, size_t len,
			 struct kvx_rkey **out_rkey)
{
	struct wire_chunks wire;
	struct kvx_rkey *rkey;
	uint64_t len_bytes;
	uint32_t base;

	memset(&wire, 0, sizeof(wire));
	if (len < CHUNKS_HEAD_BYTES || len > sizeof(wire))
		return -EINVAL;
	memcpy(&wire, mkey, len);
	len_bytes = le64toh(wire.len_bytes);
	base = le32toh(wire.base);
	if (!chunks_are_sound(&wire, len, len_bytes, base))
		return -EINVAL;
	rkey = rkey_create(ep, len_bytes, wire.rights, wire.n_chunks);
	if (rkey == NULL)
		return -ENOMEM;
	verbs_chunks_fill(rkey->pieces, rkey->n_pieces, len_bytes, base, wire.chunk_shift);
	for (uint32_t i = 0; i < rkey->n_pieces; i++)
		rkey->pieces[i].key = le32toh(wire.rkeys[i]);
	rkey->hit = rkey->pieces[0];
	*out_rkey = rkey;
	return 0;
}

/* The count has been checked against the length before anything is made of it. */
static bool pieces_head_is_sound(const struct wire_pieces *head, size_t len, uint32_t n_pieces,
				 uint64_t len_bytes)
{
	if (n_pieces == 0 || n_pieces > VERBS_MAX_PIECES ||
	    len != sizeof(*head) + n_pieces * sizeof(struct wire_piece))
		return false;
	if (len_bytes == 0 || len_bytes > UINT64_MAX / 2 || (head->rights & ~ALL_RIGHTS) != 0 ||
	    head->zero != 0 || head->zero2 != 0)
		return false;
	if (head->flush_by == VERBS_FLUSH_MEMORY)
		return le64toh(head->flush_addr) <= UINT64_MAX - VERBS_FLUSH_BYTES;
	/* What was written can be read only where that is allowed. */
	return head->flush_by == VERBS_FLUSH_SELF && head->flush_addr == 0 &&
	       head->flush_rkey == 0 && (head->rights & KVX_ACCESS_READ) != 0;
}

/* 0, or -EINVAL: they are not the region from its first to its last byte. */
static int pieces_fill(struct kvx_rkey *rkey, const uint8_t *at)
{
	uint64_t start = 0;

	for (uint32_t i = 0; i < rkey->n_pieces; i++, at += sizeof(struct wire_piece)) {
		struct wire_piece wire;
		uint64_t len_bytes, addr;

		memcpy(&wire, at, sizeof(wire));
		len_bytes = le64toh(wire.len_bytes);
		addr = le64toh(wire.addr);
		if (len_bytes == 0 || len_bytes > rkey->len_bytes - start ||
		    addr > UINT64_MAX - len_bytes)
			return -EINVAL;
		rkey->pieces[i] = (struct verbs_piece){.start = start,
						       .len_bytes = len_bytes,
						       .delta = addr - start,
						       .key = le32toh(wire.rkey)};
		start += len_bytes;
	}
	return start == rkey->len_bytes ? 0 : -EINVAL;
}

static int unpack_pieces(struct kvx_ep *ep, const void *mkey, size_t len,
			 struct kvx_rkey **out_rkey)
{
	struct wire_pieces head;
	struct kvx_rkey *rkey;
	uint64_t len_bytes;
	uint32_t n_pieces;

	if (len < sizeof(head))
		return -EINVAL;
	memcpy(&head, mkey, sizeof(head));
	len_bytes = le64toh(head.len_bytes);
	n_pieces = le32toh(head.n_pieces);
	if (!pieces_head_is_sound(&head, len, n_pieces, len_bytes))
		return -EINVAL;
	rkey = rkey_create(ep, len_bytes, head.rights, n_pieces);
	if (rkey == NULL)
		return -ENOMEM;
	rkey->flush_by = (enum verbs_flush_by)head.flush_by;
	rkey->flush_addr = le64toh(head.flush_addr);
	rkey->flush_rkey = le32toh(head.flush_rkey);
	if (pieces_fill(rkey, (const uint8_t *)mkey + sizeof(head)) < 0) {
		free(rkey);
		return -EINVAL;
	}
	rkey->hit = rkey->pieces[0];
	*out_rkey = rkey;
	return 0;
}

int verbs_rkey_unpack(struct kvx_ep *ep, const void *mkey, size_t len, struct kvx_rkey **out_rkey)
{
	uint8_t version;

	if (len < 1)
		return -EINVAL;
	memcpy(&version, mkey, 1);
	if (version == VERSION_CHUNKS)
		return unpack_chunks(ep, mkey, len, out_rkey);
	return version == VERSION_PIECES ? unpack_pieces(ep, mkey, len, out_rkey) : -EINVAL;
}

void verbs_rkey_free(struct kvx_rkey *rkey)
{
	free(rkey);
}
