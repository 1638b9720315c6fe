/* XFER_SUBMIT, _APPEND, _SEAL and _CANCEL, and the terminal events that answer them. A submit has
 * no reply: what is refused here is told by a terminal event too, so that there is exactly one for
 * every number. Loop thread; this is the hot path of control: no malloc per transfer beyond what
 * the transfer itself needs. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/log.h"
#include "control/control_priv.h"
#include "control/decode.h"

static struct kvx_xfers *client_xfers(const struct kvx_client *client)
{
	return kvx_node_xfers(client->control->conf.node);
}

static KVX_ON_LOOP void xfer_event(struct kvx_client *client, const struct kvx_xfer_end *end)
{
	Kvxp__Event event = KVXP__EVENT__INIT;

	event.type = KVXP__EVENT_TYPE__EVENT_TERMINAL;
	event.xfer = end->xfer;
	event.tag = end->tag;
	event.status = kvx_status_from_errno(end->status);
	event.scope = end->scope;
	event.vendor_code = end->vendor_code;
	event.text = (char *)(uintptr_t)end->text;
	event.bytes = end->bytes;
	event.transport = (char *)(uintptr_t)end->transport;
	event.op = (Kvxp__Op)end->op;
	event.t_submit_ns = end->submit_ns;
	event.t_first_ns = end->first_ns;
	event.t_last_ns = end->last_ns;
	event.t_end_ns = end->end_ns;
	kvx_client_event(client, &event);
}

/* The daemon refuses a submit: no transfer was made, but it is told and remembered like one. */
static KVX_ON_LOOP void xfer_refuse(struct kvx_client *client, const Kvxp__XferSubmit *req,
				    int status, const char *text)
{
	enum kvx_status wire = kvx_status_from_errno(status);
	const struct kvx_import *imp = kvx_client_import(client, req->import);
	uint64_t now = kvx_now_ns();
	struct kvx_xfer_end end = {
	    .xfer = req->xfer,
	    .client = client->id,
	    .tag = req->tag,
	    .op = (int)req->op,
	    .status = status,
	    .scope = kvx_status_scope(wire),
	    .text = text[0] != '\0' ? text : kvx_status_text(wire),
	    .transport = "",
	    .submit_ns = now,
	    .end_ns = now,
	};
	struct kvx_xfer_row row = {
	    .end = end,
	    .tenant = client->tenant,
	    .label = req->label,
	    .region = req->region,
	    .remote_region = imp != NULL ? imp->target->region_id : 0,
	    .peer = imp != NULL && imp->target->peer_name != NULL ? imp->target->peer_name : "",
	};

	client->control->stats.refused_xfers++;
	kvx_debug("client %" PRIu64 ": transfer %" PRIu64 " refused: %s: %s", client->id, req->xfer,
		  kvx_status_name(wire), end.text);
	kvx_xfers_refused(client_xfers(client), &row);
	xfer_event(client, &end);
}

/* Lists wait in the daemon's memory until their ops can be posted, which on a stream to a slow peer
 * can take long. */
static KVX_ON_LOOP int lists_check_room(const struct kvx_client *client,
					const struct kvx_decoded_lists *lists, struct kvx_why *why)
{
	uint64_t queued = kvx_xfers_list_bytes(client_xfers(client), client->id);
	uint64_t limit = client->control->conf.config->queued_bytes_per_client;
	uint64_t more = kvx_decoded_bytes(lists);

	if (queued + more <= limit)
		return 0;
	return kvx_why(why, -EDQUOT,
		       "lists of %" PRIu64 " bytes wait already, %" PRIu64 " more are over %" PRIu64
		       " ([limits] queued_bytes_per_client): wait for transfers to end",
		       queued, more, limit);
}

/* local: the region of the transfer. *out_wait is of kind NONE when there is none. */
static KVX_ON_LOOP int wait_fill(struct kvx_client *client, const Kvxp__Wait *pb,
				 struct kvx_region *local, struct kvx_wait *out_wait,
				 struct kvx_why *why)
{
	const struct kvx_gates *gates = kvx_node_gates(client->control->conf.node);
	uint32_t limit = client->control->conf.config->waits_per_client;
	uint64_t id;
	int err = kvx_decode_wait(pb, out_wait, &id, why);

	if (err < 0 || out_wait->kind == KVX_WAIT_NONE)
		return err;
	out_wait->region = id != 0 ? kvx_client_region(client, id) : local;
	if (out_wait->region == NULL)
		return kvx_why(why, -ENOENT, "the region of the wait is not one of this client");
	if (kvx_gates_count_client(gates, client->id) >= limit)
		return kvx_why(why, -EDQUOT,
			       "%" PRIu32 " lists wait already ([limits] waits_per_client): wait "
			       "for transfers to end",
			       limit);
	return 0;
}

static const struct kvx_wait *wait_or_none(const struct kvx_wait *wait)
{
	return wait->kind != KVX_WAIT_NONE ? wait : NULL;
}

static KVX_ON_LOOP int submit_check(struct kvx_client *client, const Kvxp__XferSubmit *req,
				    struct kvx_why *why)
{
	const struct kvx_config *config = client->control->conf.config;
	uint32_t limit = config->transfers_per_client;

	if (client->control->draining)
		return kvx_why(why, -ESHUTDOWN,
			       "the daemon is draining: it takes no new transfers");
	if (client->xfers.n >= limit)
		return kvx_why(why, -EDQUOT,
			       "transfer limit %" PRIu32 " reached ([limits] "
			       "transfers_per_client)",
			       limit);
	if (kvx_xfers_count(client_xfers(client)) >= config->transfers)
		return kvx_why(why, -EDQUOT,
			       "transfer limit %" PRIu32 " of the daemon reached ([limits] "
			       "transfers)",
			       config->transfers);
	if (req->op != KVXP__OP__OP_READ && req->op != KVXP__OP__OP_WRITE)
		return kvx_why(why, -EINVAL, "op %d: must be 1 (READ) or 2 (WRITE)", (int)req->op);
	if (req->deadline_ms > INT32_MAX)
		return kvx_why(why, -EINVAL, "deadline_ms %" PRIu32 ": at most %d are allowed",
			       req->deadline_ms, INT32_MAX);
	if (strlen(req->require) > 32)
		return kvx_why(why, -ENETUNREACH, "the required transport is not known");
	return kvx_decode_payload(&req->payload, why);
}

/* In place: what people are shown has no control characters. One that is too long is cut off, for
 * the refusal of the transfer. */
static int submit_clean_label(Kvxp__XferSubmit *req, struct kvx_why *why)
{
	char label[KVX_LABEL_BYTES];
	int err;

	if (req->label[0] == '\0')
		return 0;
	err = kvx_decode_text(req->label, "label", label, sizeof(label), why);
	if (err < 0)
		label[0] = '\0';
	memcpy(req->label, label, strlen(label) + 1);
	return err;
}

/* What a request borrows from while it is made into a transfer. */
struct submit_parts {
	struct kvx_decoded_lists lists;
	struct kvx_wait wait;
};

static KVX_ON_LOOP int submit_fill(struct kvx_client *client, const Kvxp__XferSubmit *req,
				   struct kvx_import *imp, struct submit_parts *parts,
				   struct kvx_xfer_req *out, struct kvx_why *why)
{
	struct kvx_decoded_lists *lists = &parts->lists;
	const struct kvx_config *config = client->control->conf.config;
	struct kvx_region *region = kvx_client_region(client, req->region);
	int err;

	if (region == NULL)
		return kvx_why(why, -ENOENT, "the local region is not one of this client");
	if (imp == NULL)
		return kvx_why(why, -ENOENT, "the import is not one of this client");
	if (imp->loss_status != 0 && !imp->target->lost)
		return kvx_why(why, imp->loss_status,
			       "the import has ended, as a message posted through it was not "
			       "delivered: close it");
	err = kvx_decode_lists(config, req->blocks, req->ops, req->streaming, lists, why);
	if (err == 0)
		err = lists_check_room(client, lists, why);
	if (err == 0)
		err = wait_fill(client, req->wait, region, &parts->wait, why);
	if (err < 0)
		return err;
	*out = (struct kvx_xfer_req){
	    .client = client->id,
	    .number = req->xfer,
	    .op = (int)req->op,
	    .region = region,
	    .target = imp->target,
	    .tag = req->tag,
	    .deadline_ns =
		(req->deadline_ms != 0 ? req->deadline_ms : config->deadline_ms) * KVX_MS,
	    .require = req->require,
	    .label = req->label,
	    .payload = req->payload.data,
	    .payload_bytes = (uint32_t)req->payload.len,
	    .streaming = req->streaming,
	    .blocks = lists->blocks,
	    .ops = lists->ops,
	    .wait = wait_or_none(&parts->wait),
	};
	return 0;
}

/* The record is there before the transfer, because the transfer may end as soon as it is looked at
 * again. */
static KVX_ON_LOOP int submit_start(struct kvx_client *client, const struct kvx_xfer_req *xreq,
				    struct kvx_import *imp, struct kvx_why *why)
{
	struct kvx_xrec *rec = kvx_control_rec_get(client->control);
	int err;

	if (rec == NULL)
		return -ENOMEM;
	*rec = (struct kvx_xrec){.number = xreq->number, .import = imp};
	err = kvx_xtable_put(&client->xfers, rec);
	if (err < 0)
		goto err_rec;
	err = kvx_xfer_submit(client_xfers(client), xreq, &rec->xfer, why);
	if (err < 0)
		goto err_table;
	imp->n_xfers++;
	client->n_xfers_total++;
	kvx_client_pend(client);
	return 0;

err_table:
	kvx_xtable_take(&client->xfers, xreq->number);
err_rec:
	kvx_control_rec_put(client->control, rec);
	return err;
}

void kvx_handle_xfer_submit(struct kvx_client *client, struct kvx_msg *msg)
{
	struct submit_parts parts;
	struct kvx_xfer_req xreq;
	struct kvx_why why = {""};
	struct kvx_import *imp;
	Kvxp__XferSubmit *req;
	int err;

	req = kvx_client_decode(client, &kvxp__xfer_submit__descriptor, msg);
	if (req == NULL)
		return;
	if (req->xfer <= client->last_number) {
		kvx_client_fail(client, -EPROTO,
				"XFER_SUBMIT number %" PRIu64 " after %" PRIu64
				": numbers must grow",
				req->xfer, client->last_number);
		return;
	}
	client->last_number = req->xfer;
	imp = kvx_client_import(client, req->import);
	err = submit_clean_label(req, &why);
	if (err == 0)
		err = submit_check(client, req, &why);
	if (err == 0)
		err = submit_fill(client, req, imp, &parts, &xreq, &why);
	if (err == 0)
		err = submit_start(client, &xreq, imp, &why);
	if (err < 0)
		xfer_refuse(client, req, err, why.text);
}

/* The record of an unfinished transfer. NULL when it has ended, which a client cannot know yet; a
 * number that it never gave fails the client. */
static KVX_ON_LOOP struct kvx_xrec *client_xrec(struct kvx_client *client, uint64_t number,
						const char *frame)
{
	struct kvx_xrec *rec = kvx_xtable_find(&client->xfers, number);

	if (rec != NULL)
		return rec;
	if (number == 0 || number > client->last_number)
		kvx_client_fail(client, -EPROTO, "%s of transfer %" PRIu64 ", which never was",
				frame, number);
	else
		client->control->stats.stale_requests++;
	return NULL;
}

void kvx_handle_xfer_append(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_decoded_lists lists;
	struct kvx_wait wait;
	struct kvx_why why = {""};
	Kvxp__XferAppend *req;
	struct kvx_xrec *rec;
	int err;

	req = kvx_client_decode(client, &kvxp__xfer_append__descriptor, msg);
	if (req == NULL)
		return;
	rec = client_xrec(client, req->xfer, "XFER_APPEND");
	if (rec == NULL)
		return;
	err = kvx_decode_lists(client->control->conf.config, req->blocks, req->ops, false, &lists,
			       &why);
	if (err == 0)
		err = lists_check_room(client, &lists, &why);
	if (err == 0)
		err = wait_fill(client, req->wait, kvx_xfer_region(rec->xfer), &wait, &why);
	if (err < 0)
		kvx_xfer_cancel(rec->xfer, err, why.text);
	else
		kvx_xfer_append(rec->xfer, lists.blocks, lists.ops, wait_or_none(&wait), &why);
}

void kvx_handle_xfer_seal(struct kvx_client *client, struct kvx_msg *msg)
{
	struct kvx_why why = {""};
	Kvxp__XferSeal *req;
	struct kvx_xrec *rec;
	int err;

	req = kvx_client_decode(client, &kvxp__xfer_seal__descriptor, msg);
	if (req == NULL)
		return;
	rec = client_xrec(client, req->xfer, "XFER_SEAL");
	if (rec == NULL)
		return;
	err = kvx_decode_payload(&req->payload, &why);
	if (err < 0)
		kvx_xfer_cancel(rec->xfer, err, why.text);
	else
		kvx_xfer_seal(rec->xfer, req->payload.data, (uint32_t)req->payload.len, &why);
}

void kvx_handle_xfer_cancel(struct kvx_client *client, struct kvx_msg *msg)
{
	Kvxp__XferCancel *req;
	struct kvx_xrec *rec;

	req = kvx_client_decode(client, &kvxp__xfer_cancel__descriptor, msg);
	if (req == NULL)
		return;
	rec = client_xrec(client, req->xfer, "XFER_CANCEL");
	if (rec != NULL)
		kvx_xfer_cancel(rec->xfer, -ECANCELED, "cancelled by the submitter");
}

void kvx_client_on_terminal(struct kvx_client *client, const struct kvx_xfer_end *end)
{
	struct kvx_xrec *rec = kvx_xtable_take(&client->xfers, end->xfer);
	struct kvx_import *imp;

	kvx_assert(rec != NULL);
	imp = rec->import;
	kvx_control_rec_put(client->control, rec);
	client->bytes_total += end->bytes;
	xfer_event(client, end);
	kvx_import_xfer_ended(imp); /* may answer a release: after the event */
	kvx_client_unpend(client);
}

/* Cancelling may end a transfer at once, which frees its record, but never the record of another.
 * The hold keeps the import until all have been looked at. */
void kvx_client_cancel_import(struct kvx_client *client, struct kvx_import *imp, int status,
			      const char *text)
{
	uint32_t i;

	imp->n_xfers++;
	for (i = 0; i < client->xfers.n_buckets; i++) {
		struct kvx_xrec *rec = client->xfers.buckets[i];

		while (rec != NULL) {
			struct kvx_xrec *next = rec->next;

			if (rec->import == imp)
				kvx_xfer_cancel(rec->xfer, status, text);
			rec = next;
		}
	}
	kvx_import_xfer_ended(imp);
}
