/* `rdma_raw forge`: RoCE v2 packets made by hand. Whoever can send packets from a peer's address
 * needs the number of a queue pair, its next packet number and a key to write through it; this
 * program sends RDMA WRITEs of one packet with what it is given, or with random values for what it
 * is not. It sees no answer: what has landed is for others to look at. */
#include "raw.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/udp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROCE_PORT      4791
#define OP_WRITE_ONLY  0x0a /* RC */
#define FORGED_BYTE    0xf0
#define MAX_DATA       1024u
#define BTH_ACK        0x80000000u
#define PACKET_HEADERS (sizeof(struct iphdr) + sizeof(struct udphdr))

struct bth {
	uint8_t opcode, flags;
	uint16_t pkey;
	uint32_t qpn; /* with the reserved byte on top */
	uint32_t psn; /* with the request for an acknowledgement on top */
} __attribute__((packed));
struct reth {
	uint64_t address;
	uint32_t rkey, len;
} __attribute__((packed));

struct packet {
	struct iphdr ip;
	struct udphdr udp;
	struct bth bth;
	struct reth reth;
	uint8_t data[MAX_DATA + 4];
} __attribute__((packed));

struct forge {
	struct in_addr from, to;
	uint64_t qpn, psn, rkey, address, len; /* UINT64_MAX: random */
	uint64_t qpn_max;
	struct drv_random random;
};

static uint32_t crc32_add(uint32_t crc, const void *data, size_t len)
{
	const uint8_t *p = data;

	while (len-- > 0) {
		crc ^= *p++;
		for (int bit = 0; bit < 8; bit++)
			crc = (crc >> 1) ^ (0xedb88320u & (0u - (crc & 1)));
	}
	return crc;
}

/* Over a header of eight bytes of ones, and the packet with the fields that change on the way set
 * to ones. */
static uint32_t icrc(const struct packet *packet, size_t len)
{
	static const uint8_t ones[8] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	struct packet masked = *packet;
	uint32_t crc = crc32_add(UINT32_MAX, ones, sizeof(ones));

	masked.ip.tos = 0xff;
	masked.ip.ttl = 0xff;
	masked.ip.check = 0xffff;
	masked.udp.check = 0xffff;
	masked.bth.qpn |= htonl(0xff000000u);
	return ~crc32_add(crc, &masked, len);
}

static uint64_t or_random(struct forge *f, uint64_t value, uint64_t below)
{
	return value != UINT64_MAX ? value : drv_random_below(&f->random, below);
}

static size_t make_packet(struct forge *f, struct packet *packet)
{
	size_t len = PACKET_HEADERS + sizeof(struct bth) + sizeof(struct reth) + f->len;
	uint64_t qpn =
	    f->qpn != UINT64_MAX ? f->qpn : 2 + drv_random_below(&f->random, f->qpn_max - 1);
	uint32_t crc;

	memset(packet, 0, sizeof(*packet));
	packet->ip.version = 4;
	packet->ip.ihl = 5;
	packet->ip.tot_len = htons((uint16_t)(len + sizeof(crc)));
	packet->ip.id = htons((uint16_t)(1 + drv_random_below(&f->random, 60000)));
	packet->ip.frag_off = htons(IP_DF);
	packet->ip.ttl = 64;
	packet->ip.protocol = IPPROTO_UDP;
	packet->ip.saddr = f->from.s_addr;
	packet->ip.daddr = f->to.s_addr;
	packet->udp.source = htons(49152);
	packet->udp.dest = htons(ROCE_PORT);
	packet->udp.len = htons((uint16_t)(len + sizeof(crc) - sizeof(struct iphdr)));
	packet->bth.opcode = OP_WRITE_ONLY;
	packet->bth.flags = 0x40; /* migration state, as a connection has that never migrates */
	packet->bth.pkey = 0xffff;
	packet->bth.qpn = htonl((uint32_t)qpn);
	packet->bth.psn = htonl((uint32_t)or_random(f, f->psn, 1u << 24) | BTH_ACK);
	packet->reth.address = htobe64(f->address);
	packet->reth.rkey = htonl((uint32_t)or_random(f, f->rkey, 1ull << 32));
	packet->reth.len = htonl((uint32_t)f->len);
	memset(packet->data, FORGED_BYTE, f->len);
	crc = icrc(packet, len);
	memcpy((uint8_t *)packet + len, &crc, sizeof(crc));
	return len + sizeof(crc);
}

static struct in_addr parse_address(struct drv_args *args, const char *flag)
{
	const char *text = drv_arg_str(args, flag, "");
	struct in_addr address;

	if (inet_pton(AF_INET, text, &address) != 1)
		drv_die("%s %s: not an IPv4 address", flag, text);
	return address;
}

int raw_forge_main(struct drv_args *args)
{
	uint64_t count = drv_arg_u64(args, "--count", 1);
	struct forge f = {.random = {drv_arg_u64(args, "--seed", drv_now_ns())}};
	struct sockaddr_in to = {.sin_family = AF_INET};
	struct packet packet;
	uint64_t sent = 0;
	int fd;

	f.from = parse_address(args, "--from");
	f.to = parse_address(args, "--to");
	f.qpn = drv_arg_u64(args, "--qpn", UINT64_MAX);
	f.qpn_max = drv_arg_u64(args, "--qpn-max", 4096);
	f.psn = drv_arg_u64(args, "--psn", UINT64_MAX);
	f.rkey = drv_arg_u64(args, "--rkey", UINT64_MAX);
	f.address = drv_arg_u64(args, "--at", 0);
	f.len = drv_arg_u64(args, "--bytes", 64);
	drv_args_end(args);
	if (f.len == 0 || f.len > MAX_DATA || f.len % 4 != 0)
		drv_die("--bytes: a multiple of 4, at most %u", MAX_DATA);
	fd = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, IPPROTO_RAW);
	if (fd < 0)
		drv_die("raw socket: %s", strerror(errno));
	to.sin_addr = f.to;
	for (uint64_t i = 0; i < count; i++) {
		size_t len = make_packet(&f, &packet);

		if (sendto(fd, &packet, len, 0, (struct sockaddr *)&to, sizeof(to)) == (ssize_t)len)
			sent++;
		if (f.psn != UINT64_MAX)
			f.psn = (f.psn + 1) & 0xffffff;
	}
	close(fd);
	printf("{\"program\": \"forge\", \"sent\": %llu}\n", (unsigned long long)sent);
	return sent == count ? 0 : DRV_UNUSABLE;
}
