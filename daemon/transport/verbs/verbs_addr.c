/* The address of an ep as it travels in the peer protocol: little-endian, of a fixed order, checked
 * field by field, as whatever comes from another node. Pure; called by listen() and connect().
 *
 *   0 version  1 flags (1: Ethernet)  2 MTU code  3 reads served at once  4 queue pairs  5 zero
 *   6 LID (2)  8 GID (16)  24 flush address (8)  32 flush key (4)  36 queue pairs, each: number
 *   (4), first packet's number (4) */
#include <endian.h>
#include <errno.h>
#include <string.h>

#include "transport/verbs/verbs_priv.h"

#define ADDR_VERSION    1u
#define ADDR_ETHERNET   1u
#define ADDR_HEAD_BYTES 36u
#define ADDR_QP_BYTES   8u
#define ADDR_NUMBER_MAX 0xffffffu /* queue pair and packet numbers have 24 bits */

_Static_assert(ADDR_HEAD_BYTES + VERBS_MAX_QPS * ADDR_QP_BYTES <= KVX_TRANSPORT_ADDR_MAX,
	       "an address must fit");

static void put16(uint8_t *at, uint16_t v)
{
	v = htole16(v);
	memcpy(at, &v, sizeof(v));
}

static void put32(uint8_t *at, uint32_t v)
{
	v = htole32(v);
	memcpy(at, &v, sizeof(v));
}

static uint16_t get16(const uint8_t *at)
{
	uint16_t v;

	memcpy(&v, at, sizeof(v));
	return le16toh(v);
}

static uint32_t get32(const uint8_t *at)
{
	uint32_t v;

	memcpy(&v, at, sizeof(v));
	return le32toh(v);
}

size_t verbs_addr_encode(const struct verbs_addr *addr, uint8_t buf[KVX_TRANSPORT_ADDR_MAX])
{
	uint8_t *at = buf + ADDR_HEAD_BYTES;

	kvx_assert(addr->n_qps >= 1 && addr->n_qps <= VERBS_MAX_QPS);
	buf[0] = ADDR_VERSION;
	buf[1] = addr->ethernet ? ADDR_ETHERNET : 0;
	buf[2] = (uint8_t)addr->mtu;
	buf[3] = addr->max_reads;
	buf[4] = (uint8_t)addr->n_qps;
	buf[5] = 0;
	put16(buf + 6, addr->lid);
	memcpy(buf + 8, addr->gid, sizeof(addr->gid));
	put32(buf + 24, (uint32_t)addr->flush_addr);
	put32(buf + 28, (uint32_t)(addr->flush_addr >> 32));
	put32(buf + 32, addr->flush_rkey);
	for (uint32_t i = 0; i < addr->n_qps; i++, at += ADDR_QP_BYTES) {
		put32(at, addr->qps[i].qpn);
		put32(at + 4, addr->qps[i].psn);
	}
	return (size_t)(at - buf);
}

static int addr_check(const struct verbs_addr *addr)
{
	if (addr->mtu < IBV_MTU_256 || addr->mtu > IBV_MTU_4096)
		return -EINVAL;
	for (uint32_t i = 0; i < addr->n_qps; i++)
		if (addr->qps[i].qpn > ADDR_NUMBER_MAX || addr->qps[i].psn > ADDR_NUMBER_MAX)
			return -EINVAL;
	return 0;
}

int verbs_addr_decode(const void *buf, size_t len, struct verbs_addr *out_addr)
{
	const uint8_t *at = buf;
	struct verbs_addr addr = {0};
	int err;

	if (len < 1)
		return -EINVAL;
	if (at[0] != ADDR_VERSION)
		return -EPROTONOSUPPORT;
	if (len < ADDR_HEAD_BYTES || (at[1] & ~ADDR_ETHERNET) != 0 || at[5] != 0)
		return -EINVAL;
	addr.ethernet = (at[1] & ADDR_ETHERNET) != 0;
	addr.mtu = (enum ibv_mtu)at[2];
	addr.max_reads = at[3];
	addr.n_qps = at[4];
	if (addr.n_qps < 1 || addr.n_qps > VERBS_MAX_QPS ||
	    len != ADDR_HEAD_BYTES + addr.n_qps * ADDR_QP_BYTES)
		return -EINVAL;
	addr.lid = get16(at + 6);
	memcpy(addr.gid, at + 8, sizeof(addr.gid));
	addr.flush_addr = get32(at + 24) | (uint64_t)get32(at + 28) << 32;
	addr.flush_rkey = get32(at + 32);
	at += ADDR_HEAD_BYTES;
	for (uint32_t i = 0; i < addr.n_qps; i++, at += ADDR_QP_BYTES) {
		addr.qps[i].qpn = get32(at);
		addr.qps[i].psn = get32(at + 4);
	}
	err = addr_check(&addr);
	if (err == 0)
		*out_addr = addr;
	return err;
}
