/* "host:port" texts and socket addresses of the peer channel: splitting, printing, and telling
 * loopback from the rest. Pure; called by peer_dial.c. Never resolves a name. */
#include "xfer/peer_priv.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool port_is_valid(const char *port)
{
	size_t n = strspn(port, "0123456789");

	return n > 0 && n <= 5 && port[n] == '\0' && strtoul(port, NULL, 10) <= 65535;
}

/* "host:port" or "[v6]:port". 0 or -EINVAL. */
int addr_split(const char *text, char *host, size_t host_bytes, char *port, size_t port_bytes)
{
	const char *colon = strrchr(text, ':');
	const char *begin = text;
	size_t len;

	if (colon == NULL || !port_is_valid(colon + 1))
		return -EINVAL;
	len = (size_t)(colon - text);
	if (text[0] == '[') {
		if (len < 3 || text[len - 1] != ']')
			return -EINVAL;
		begin = text + 1;
		len -= 2;
	} else if (memchr(text, ':', len) != NULL) {
		return -EINVAL; /* a bare IPv6 address: where does the port begin? */
	}
	if (len == 0 || len >= host_bytes || strlen(colon + 1) >= port_bytes)
		return -EINVAL;
	memcpy(host, begin, len);
	host[len] = '\0';
	memcpy(port, colon + 1, strlen(colon + 1) + 1);
	return 0;
}

int addr_complete(const char *text, char out[KVX_PEER_ADDR_BYTES])
{
	char host[KVX_PEER_ADDR_BYTES], port[8];
	int n = snprintf(out, KVX_PEER_ADDR_BYTES, "%s", text);

	if (n >= KVX_PEER_ADDR_BYTES)
		return -EINVAL;
	if (addr_split(out, host, sizeof(host), port, sizeof(port)) == 0)
		return 0;
	n = snprintf(out, KVX_PEER_ADDR_BYTES, "%s:%s", text, KVX_PEER_PORT);
	if (n >= KVX_PEER_ADDR_BYTES)
		return -EINVAL;
	return addr_split(out, host, sizeof(host), port, sizeof(port));
}

bool addr_is_loopback(const struct sockaddr *addr)
{
	const struct in6_addr *v6;

	if (addr->sa_family == AF_INET)
		return ntohl(((const struct sockaddr_in *)(const void *)addr)->sin_addr.s_addr) >>
			   24 ==
		       127;
	if (addr->sa_family != AF_INET6)
		return false;
	v6 = &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr;
	return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
}

bool addr_is_any(const struct sockaddr *addr)
{
	if (addr->sa_family == AF_INET)
		return ((const struct sockaddr_in *)(const void *)addr)->sin_addr.s_addr == 0;
	return addr->sa_family == AF_INET6 &&
	       IN6_IS_ADDR_UNSPECIFIED(
		   &((const struct sockaddr_in6 *)(const void *)addr)->sin6_addr);
}

void addr_format(const struct sockaddr *addr, char *out, size_t size)
{
	char host[INET6_ADDRSTRLEN] = "?";

	if (addr->sa_family == AF_INET) {
		const struct sockaddr_in *in = (const void *)addr;

		inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
		snprintf(out, size, "%s:%u", host, ntohs(in->sin_port));
	} else if (addr->sa_family == AF_INET6) {
		const struct sockaddr_in6 *in6 = (const void *)addr;

		inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
		snprintf(out, size, "[%s]:%u", host, ntohs(in6->sin6_port));
	} else {
		snprintf(out, size, "?");
	}
}
