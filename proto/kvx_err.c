/* Conversions made from the one table in kvx_err.h. Pure functions, any thread. An errno or status
 * that the table does not know is never taken for success. */
#include "proto/kvx_err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>

struct status_row {
	const char *name;
	const char *text;
	int err;
	enum kvx_scope scope;
	bool retryable;
};

static const struct status_row status_rows[] = {
#define XX(name, value, err, scope, retry, text)                                                   \
	[value] = {#name, text, err, KVX_SCOPE_##scope, retry},
    KVX_STATUS_MAP(XX)
#undef XX
};
_Static_assert(sizeof(status_rows) / sizeof(status_rows[0]) == KVX_STATUS_N, "values have a gap");

static const struct status_row *status_row(uint32_t status)
{
	return status < KVX_STATUS_N ? &status_rows[status] : NULL;
}

enum kvx_status kvx_status_from_errno(int neg_errno)
{
	switch (neg_errno) { /* two rows with one errno would not compile */
#define XX(name, value, err, scope, retry, text)                                                   \
	case -err:                                                                                 \
		return KVX_STATUS_##name;
		KVX_STATUS_MAP(XX)
#undef XX
	default:
		return KVX_STATUS_INTERNAL;
	}
}

int kvx_status_to_errno(uint32_t status)
{
	const struct status_row *row = status_row(status);

	return row == NULL ? -ENOTRECOVERABLE : -row->err;
}

const char *kvx_status_name(uint32_t status)
{
	const struct status_row *row = status_row(status);

	return row == NULL ? "UNKNOWN" : row->name;
}

const char *kvx_status_text(uint32_t status)
{
	const struct status_row *row = status_row(status);

	return row == NULL ? "unknown status" : row->text;
}

enum kvx_scope kvx_status_scope(uint32_t status)
{
	const struct status_row *row = status_row(status);

	return row == NULL ? KVX_SCOPE_DAEMON : row->scope;
}

bool kvx_status_retryable(uint32_t status)
{
	const struct status_row *row = status_row(status);

	return row != NULL && row->retryable;
}

const char *kvx_scope_name(uint32_t scope)
{
	static const char *const names[] = {
	    [KVX_SCOPE_OP] = "op",         [KVX_SCOPE_TRANSFER] = "transfer",
	    [KVX_SCOPE_PEER] = "peer",     [KVX_SCOPE_DEVICE] = "device",
	    [KVX_SCOPE_DAEMON] = "daemon",
	};

	return scope < sizeof(names) / sizeof(names[0]) ? names[scope] : "unknown";
}

int kvx_why(struct kvx_why *why, int neg_errno, const char *fmt, ...)
{
	va_list ap;

	if (why == NULL)
		return neg_errno;
	va_start(ap, fmt);
	vsnprintf(why->text, sizeof(why->text), fmt, ap);
	va_end(ap);
	return neg_errno;
}
