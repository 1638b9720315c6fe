/* Transfers whose lane is torn down under them. One that had nothing in flight waits for the next
 * generation. One that had is begun anew where that is safe: everything in flight comes back after
 * the lane's fence, so no byte of the first try can land later than one of the second, and the
 * pieces that did not succeed are asked for once more. Until its terminal event the source belongs
 * to the transfer, so that the second try reads the same bytes. What the other side has refused, or
 * has failed too often, fails. Loop thread. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/log.h"
#include "xfer/xfer_priv.h"

/* The same again would end the same way, or hide a defect. */
static bool status_is_final(int status)
{
	return status == -EACCES || status == -ERANGE || status == -EFAULT ||
	       status == -EOWNERDEAD || status == -ENOTRECOVERABLE || status == -EINVAL;
}

static bool retry_is_allowed(const struct kvx_xfer *xfer, const struct xfer_failure *failure)
{
	return xfer->n_retries < xfer->all->conf.lane_retries && !status_is_final(failure->status);
}

unsigned kvx_xfers_fail_lane(struct kvx_xfers *all, const struct kvx_lane *lane, int status,
			     int vendor_code, const char *text)
{
	struct xfer_failure failure = {.status = status, .vendor_code = vendor_code};
	struct kvx_xfer *xfer;
	unsigned n = 0;
	failure.scope = kvx_status_scope(kvx_status_from_errno(status));
	DL_FOREACH (all->live, xfer) {
		if (xfer->lane != lane || xfer->item.n_in_flight == 0 || xfer->retrying ||
		    xfer->sm.state == XFER_ENDING)
			continue;
		if (!retry_is_allowed(xfer, &failure)) {
			xfer_fail(xfer, &failure, text);
			n++;
			continue;
		}
		xfer->retrying = true;
		xfer->n_retries++;
		all->stats.retries++;
		kvx_sched_remove(&xfer->item);
		kvx_info("xfer: transfer %" PRIu64 " of client %" PRIu64 " goes on with the next "
			 "generation of its lane: %s",
			 xfer->number, xfer->client, text);
	}
	return n;
}

bool xfer_retry_keep(struct kvx_xfer *xfer, const struct kvx_batch *batch)
{
	struct xfer_retry *retry = &xfer->retry;
	if (!xfer->retrying || status_is_final(batch->status))
		return false;
	if (retry->n + batch->n_ops > retry->room) {
		unsigned room = 2 * (retry->n + batch->n_ops);
		struct kvx_span *spans = realloc(retry->spans, room * sizeof(*spans));
		if (spans == NULL)
			return false;
		retry->spans = spans;
		retry->room = room;
	}
	for (uint32_t i = 0; i < batch->n_ops; i++)
		retry->spans[retry->n++] = (struct kvx_span){
		    .local_offset = batch->ops[i].local_offset,
		    .remote_offset = batch->ops[i].remote_offset,
		    .len_bytes = batch->ops[i].len_bytes,
		};
	retry->bytes += batch->bytes;
	return true;
}

void xfer_retry_back(struct kvx_xfer *xfer)
{
	if (xfer->item.n_in_flight == 0)
		xfer->retrying = false;
}

unsigned xfer_retry_next(struct kvx_xfer *xfer, uint64_t max_span, uint64_t max_bytes,
			 struct kvx_span *spans, unsigned max)
{
	struct xfer_retry *retry = &xfer->retry;
	uint64_t bytes = 0;
	unsigned n = 0;
	while (n < max && retry->at < retry->n && bytes < max_bytes) {
		struct kvx_span *span = &retry->spans[retry->at];
		uint64_t len = span->len_bytes < max_span ? span->len_bytes : max_span;
		if (len > max_bytes - bytes)
			len = max_bytes - bytes;
		spans[n] = *span;
		spans[n++].len_bytes = len;
		bytes += len;
		span->local_offset += len;
		span->remote_offset += len;
		span->len_bytes -= len;
		if (span->len_bytes == 0)
			retry->at++;
	}
	retry->bytes -= bytes;
	if (retry->at == retry->n)
		retry->at = retry->n = 0;
	return n;
}
