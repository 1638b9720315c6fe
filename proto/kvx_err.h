/* The one table of errors: wire status <-> -errno <-> text <-> {scope, retryable}. */
#ifndef KVX_ERR_H
#define KVX_ERR_H

#include <stdbool.h>
#include <stdint.h>

/* What a failure damaged, smallest first: it says what must be torn down or made anew. */
enum kvx_scope {
	KVX_SCOPE_OP = 0,
	KVX_SCOPE_TRANSFER = 1,
	KVX_SCOPE_PEER = 2,
	KVX_SCOPE_DEVICE = 3,
	KVX_SCOPE_DAEMON = 4,
};

/* XX(NAME, value, errno, scope, retryable, text). Values are wire format: never reused, never
 * renumbered. Each errno stands for exactly one status, so that the two convert into each other
 * without loss. */
#define KVX_STATUS_MAP(XX)                                                                         \
	XX(OK, 0, 0, OP, false, "success")                                                         \
	XX(CANCELLED, 1, ECANCELED, TRANSFER, false, "cancelled by the submitter")                 \
	XX(DEADLINE, 2, ETIMEDOUT, TRANSFER, true, "deadline passed")                              \
	XX(INVALID, 3, EINVAL, TRANSFER, false, "invalid argument")                                \
	XX(QUOTA, 4, EDQUOT, TRANSFER, true, "a configured limit is reached")                      \
	XX(TOO_BIG, 5, EMSGSIZE, TRANSFER, false, "request larger than a configured limit")        \
	XX(NOT_FOUND, 6, ENOENT, TRANSFER, false, "no such region, import or transfer")            \
	XX(ACCESS, 7, EACCES, TRANSFER, false, "not allowed")                                      \
	XX(RANGE, 8, ERANGE, TRANSFER, false, "outside of the region")                             \
	XX(LAYOUT, 9, EMEDIUMTYPE, TRANSFER, false, "layouts do not match")                        \
	XX(UNSUPPORTED, 10, EOPNOTSUPP, TRANSFER, false, "not supported")                          \
	XX(NO_PATH, 11, ENETUNREACH, TRANSFER, false,                                              \
	   "no allowed transport between the two sides")                                           \
	XX(REGION_LOST, 12, EOWNERDEAD, TRANSFER, false, "the region is gone")                     \
	XX(PEER_LOST, 13, EHOSTDOWN, PEER, true, "the peer node is lost")                          \
	XX(PEER_UNREACHABLE, 14, EHOSTUNREACH, PEER, true, "the peer node cannot be reached")      \
	XX(TRANSPORT, 15, EIO, PEER, true, "transport error")                                      \
	XX(CLIENT_LOST, 16, EPIPE, TRANSFER, false, "the other engine is gone")                    \
	XX(DAEMON_LOST, 17, ECONNRESET, DAEMON, true, "the daemon is gone")                        \
	XX(DRAINING, 18, ESHUTDOWN, DAEMON, true, "the daemon is draining")                        \
	XX(PROTOCOL, 19, EPROTO, DAEMON, false, "protocol error")                                  \
	XX(NO_MEMORY, 20, ENOMEM, DAEMON, true, "out of memory")                                   \
	XX(BUSY, 21, EBUSY, TRANSFER, true, "busy")                                                \
	XX(MEMORY_FAULT, 22, EFAULT, TRANSFER, false, "region memory is not accessible")           \
	XX(DEVICE_LOST, 23, ENODEV, DEVICE, true, "device lost")                                   \
	XX(EXISTS, 24, EEXIST, TRANSFER, false, "exists already")                                  \
	XX(VERSION, 25, EPROTONOSUPPORT, DAEMON, false, "no protocol version in common")           \
	XX(INTERNAL, 26, ENOTRECOVERABLE, DAEMON, false, "internal error")                         \
	XX(STALE, 27, ESTALE, TRANSFER, false, "descriptor of an earlier daemon start")            \
	XX(BAD_FD, 28, EBADF, TRANSFER, false, "unsuitable file descriptor")

enum kvx_status {
#define XX(name, value, err, scope, retry, text) KVX_STATUS_##name = value,
	KVX_STATUS_MAP(XX)
#undef XX
	    KVX_STATUS_N
};

/* The status of a 0 or -errno result; an errno that the table does not know becomes INTERNAL. */
enum kvx_status kvx_status_from_errno(int neg_errno);
/* 0 or -errno; a status that this version does not know becomes -ENOTRECOVERABLE (fail closed). */
int kvx_status_to_errno(uint32_t status);
/* Upper-case name ("PEER_LOST") and sentence; never NULL: "UNKNOWN" / "unknown status". */
const char *kvx_status_name(uint32_t status);
const char *kvx_status_text(uint32_t status);
enum kvx_scope kvx_status_scope(uint32_t status);
bool kvx_status_retryable(uint32_t status);
const char *kvx_scope_name(uint32_t scope);

/* A reason in words that travels beside an error code: filled by who decides the error, read by who
 * reports it. */
#define KVX_WHY_BYTES 240
struct kvx_why {
	char text[KVX_WHY_BYTES];
};
/* Writes the reason (printf) and returns neg_errno, so that `return kvx_why(why, -EINVAL, "...")`
 * reads well. why may be NULL. */
int kvx_why(struct kvx_why *why, int neg_errno, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#endif
