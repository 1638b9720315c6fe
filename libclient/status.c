/* Names and texts of statuses, and the version. Pure; any thread. The public constants are pinned
 * here to the error table and to the protocol, so that values can be passed on as they are. */
#include "libclient/client_priv.h"

#include <assert.h>

#include "proto/kvx_err.h"

#define STATUS_CHECK(name, value, err, scope, retry, text)                                         \
	static_assert((int)KVXFER_##name == (value), "client.h and kvx_err.h differ: " #name);
KVX_STATUS_MAP(STATUS_CHECK)
#undef STATUS_CHECK
static_assert((int)KVX_STATUS_N == KVXFER_BAD_FD + 1, "client.h lacks a status of kvx_err.h");

static_assert((int)KVXFER_SCOPE_OP == KVX_SCOPE_OP, "scope");
static_assert((int)KVXFER_SCOPE_TRANSFER == KVX_SCOPE_TRANSFER, "scope");
static_assert((int)KVXFER_SCOPE_PEER == KVX_SCOPE_PEER, "scope");
static_assert((int)KVXFER_SCOPE_DEVICE == KVX_SCOPE_DEVICE, "scope");
static_assert((int)KVXFER_SCOPE_DAEMON == KVX_SCOPE_DAEMON, "scope");

static_assert((int)KVXFER_READ == KVXP__OP__OP_READ, "op");
static_assert((int)KVXFER_WRITE == KVXP__OP__OP_WRITE, "op");

static_assert((int)KVXFER_EVENT_TERMINAL == KVXP__EVENT_TYPE__EVENT_TERMINAL, "event");
static_assert((int)KVXFER_EVENT_ARRIVAL == KVXP__EVENT_TYPE__EVENT_ARRIVAL, "event");
static_assert((int)KVXFER_EVENT_MESSAGE == KVXP__EVENT_TYPE__EVENT_MESSAGE, "event");
static_assert((int)KVXFER_EVENT_IMPORT_LOST == KVXP__EVENT_TYPE__EVENT_IMPORT_LOST, "event");
static_assert((int)KVXFER_EVENT_REGION_LOST == KVXP__EVENT_TYPE__EVENT_REGION_LOST, "event");
static_assert((int)KVXFER_EVENT_DRAINING == KVXP__EVENT_TYPE__EVENT_DRAINING, "event");
/* Made by the library itself; the protocol must not use its value. */
static_assert((int)KVXFER_EVENT_DAEMON_LOST > KVXP__EVENT_TYPE__EVENT_DRAINING, "event");

const char *kvxfer_status_name(int status)
{
	return kvx_status_name((uint32_t)status);
}

const char *kvxfer_status_text(int status)
{
	return kvx_status_text((uint32_t)status);
}

int kvxfer_status_errno(int status)
{
	return kvx_status_to_errno((uint32_t)status);
}

int kvxfer_status_retryable(int status)
{
	return kvx_status_retryable((uint32_t)status) ? 1 : 0;
}

const char *kvxfer_version(void)
{
	return KVX_VERSION;
}
