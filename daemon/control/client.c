/* A client: what one engine process has here, from HELLO to the fence at its end. Owns its regions,
 * imports and the records of its transfers. Lives on the loop; fronts bring its frames, handlers
 * act on them. It is never ended from inside a callback of the layers below: it is doomed, and
 * kvx_control_settle() does the rest. It never touches a socket. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/idmap.h"
#include "base/log.h"
#include "control/control_priv.h"

#define CLIENT_MAGIC   0x6b76636cu /* "kvcl" */
#define BIT(state)     (1u << KVX_CLIENT_##state)
#define MAX_FRAME_TYPE 32

static const struct kvx_sm_state client_states[] = {
    [KVX_CLIENT_NEW] = {"new", BIT(READY) | BIT(DOOMED)},
    [KVX_CLIENT_READY] = {"ready", BIT(DOOMED)},
    [KVX_CLIENT_DOOMED] = {"doomed", BIT(FENCING)},
    [KVX_CLIENT_FENCING] = {"fencing", BIT(CLOSED)},
    [KVX_CLIENT_CLOSED] = {"closed", 0},
};
static const struct kvx_sm_conf client_sm = {"client", client_states, 5};

/* What the daemon takes; n_fds: how many descriptors the frame must carry. */
static const struct frame_kind {
	const char *name;
	kvx_frame_handler handler;
} frame_kinds[MAX_FRAME_TYPE] = {
    [KVXP__FRAME_TYPE__FRAME_HELLO] = {"HELLO", kvx_handle_hello},
    [KVXP__FRAME_TYPE__FRAME_REGION_REGISTER] = {"REGION_REGISTER", kvx_handle_region_register},
    [KVXP__FRAME_TYPE__FRAME_REGION_UNREGISTER] = {"REGION_UNREGISTER",
						   kvx_handle_region_unregister},
    [KVXP__FRAME_TYPE__FRAME_REGION_EXPORT] = {"REGION_EXPORT", kvx_handle_region_export},
    [KVXP__FRAME_TYPE__FRAME_IMPORT] = {"IMPORT", kvx_handle_import},
    [KVXP__FRAME_TYPE__FRAME_IMPORT_FIND] = {"IMPORT_FIND", kvx_handle_import_find},
    [KVXP__FRAME_TYPE__FRAME_IMPORT_RELEASE] = {"IMPORT_RELEASE", kvx_handle_import_release},
    [KVXP__FRAME_TYPE__FRAME_XFER_SUBMIT] = {"XFER_SUBMIT", kvx_handle_xfer_submit},
    [KVXP__FRAME_TYPE__FRAME_XFER_APPEND] = {"XFER_APPEND", kvx_handle_xfer_append},
    [KVXP__FRAME_TYPE__FRAME_XFER_SEAL] = {"XFER_SEAL", kvx_handle_xfer_seal},
    [KVXP__FRAME_TYPE__FRAME_XFER_CANCEL] = {"XFER_CANCEL", kvx_handle_xfer_cancel},
    [KVXP__FRAME_TYPE__FRAME_MESSAGE_SEND] = {"MESSAGE_SEND", kvx_handle_message_send},
    [KVXP__FRAME_TYPE__FRAME_MESSAGE_POST] = {"MESSAGE_POST", kvx_handle_message_post},
    [KVXP__FRAME_TYPE__FRAME_QUERY] = {"QUERY", kvx_handle_query},
    [KVXP__FRAME_TYPE__FRAME_GOODBYE] = {"GOODBYE", kvx_handle_goodbye},
};

/* Said once, when a client does more than ask: kvxferctl connects for each of its commands. */
static void client_announce(struct kvx_client *client, uint16_t frame_type)
{
	const char *tenant = client->control->tenants[client->tenant].name;

	if (client->announced || frame_type == KVXP__FRAME_TYPE__FRAME_HELLO ||
	    frame_type == KVXP__FRAME_TYPE__FRAME_QUERY ||
	    frame_type == KVXP__FRAME_TYPE__FRAME_GOODBYE)
		return;
	client->announced = true;
	kvx_info("client %" PRIu64 " (%s, pid %d, uid %u): at work, tenant %s, library %s",
		 client->id, client->name, (int)client->pid, (unsigned)client->uid, tenant,
		 client->library);
}

static void client_unsettle(struct kvx_client *client)
{
	if (client->unsettled)
		return;
	client->unsettled = true;
	DL_APPEND2(client->control->unsettled, client, prev_unsettled, next_unsettled);
}

static void client_on_hello_timeout(struct kvx_timer *timer)
{
	struct kvx_client *client =
	    (struct kvx_client *)((char *)timer - offsetof(struct kvx_client, hello_timer));

	kvx_assert_on_loop();
	KVX_CHECK_MAGIC(client, CLIENT_MAGIC);
	kvx_client_fail(client, -EPROTO, "no HELLO within %llu s",
			(unsigned long long)(KVX_HELLO_TIMEOUT_NS / KVX_SEC));
}

int kvx_client_create(struct kvx_control *control, struct kvx_front *front,
		      const struct kvx_client_origin *origin, struct kvx_client **out_client)
{
	bool over = control->n_clients - control->n_over_limit >= control->conf.config->clients;
	struct kvx_client *client;
	int err;

	if (over && control->n_over_limit >= KVX_CLIENTS_OVER_LIMIT)
		return -EDQUOT;
	client = calloc(1, sizeof(*client));
	if (client == NULL)
		return -ENOMEM;
	err = kvx_idmap_add(control->clients, client, &client->id);
	if (err < 0)
		goto err_free;
	err = kvx_timer_start(control->conf.timers, &client->hello_timer, KVX_HELLO_TIMEOUT_NS,
			      client_on_hello_timeout);
	if (err < 0)
		goto err_id;
	client->magic = CLIENT_MAGIC;
	client->control = control;
	client->front = front;
	client->tenant = origin->tenant;
	client->uid = origin->uid;
	client->pid = origin->pid;
	client->over_limit = over;
	client->connected_ns = kvx_now_ns();
	kvx_sm_init(&client->sm, &client_sm, KVX_CLIENT_NEW);
	control->n_clients++;
	control->n_over_limit += over ? 1 : 0;
	control->stats.connects++;
	*out_client = client;
	return 0;

err_id:
	kvx_idmap_remove(control->clients, client->id);
err_free:
	free(client);
	return err;
}

void kvx_client_destroy(struct kvx_client *client)
{
	struct kvx_control *control = client->control;

	KVX_CHECK_MAGIC(client, CLIENT_MAGIC);
	kvx_assert(client->sm.state == KVX_CLIENT_CLOSED && client->n_pending == 0);
	kvx_assert(client->n_calls == 0 && client->posted_bytes == 0);
	kvx_assert(client->regions == NULL && client->calls == NULL);
	kvx_assert(client->imports == NULL || kvx_idmap_count(client->imports) == 0);
	if (client->unsettled)
		DL_DELETE2(control->unsettled, client, prev_unsettled, next_unsettled);
	kvx_idmap_remove(control->clients, client->id);
	kvx_idmap_destroy(client->imports);
	kvx_xtable_fini(&client->xfers);
	control->n_clients--;
	control->n_over_limit -= client->over_limit ? 1 : 0;
	control->stats.disconnects++;
	client->magic = 0;
	free(client);
}

bool kvx_client_takes_frames(const struct kvx_client *client)
{
	return client->sm.state == KVX_CLIENT_NEW || client->sm.state == KVX_CLIENT_READY;
}

void kvx_client_frame(struct kvx_client *client, struct kvx_msg *msg)
{
	const struct frame_kind *kind = NULL;
	bool hello = msg->type == KVXP__FRAME_TYPE__FRAME_HELLO;
	bool fd_wanted = msg->type == KVXP__FRAME_TYPE__FRAME_REGION_REGISTER;

	KVX_CHECK_MAGIC(client, CLIENT_MAGIC);
	client->control->stats.frames++;
	if (msg->type < MAX_FRAME_TYPE && frame_kinds[msg->type].handler != NULL)
		kind = &frame_kinds[msg->type];
	if (client->sm.state == KVX_CLIENT_NEW && !hello)
		kvx_client_fail(client, -EPROTO, "the first frame must be HELLO, this is type %u",
				msg->type);
	else if (kind == NULL)
		kvx_client_fail(client, -EOPNOTSUPP,
				"frame type %u is not known to this daemon (protocol %u)",
				msg->type, KVX_PROTOCOL_MAX);
	else if (client->sm.state == KVX_CLIENT_READY && hello)
		kvx_client_fail(client, -EPROTO, "a second HELLO");
	else if (msg->n_fds > 0 && !fd_wanted)
		kvx_client_fail(client, -EPROTO, "%s carries %u file descriptors, none is allowed",
				kind->name, msg->n_fds);
	else {
		client_announce(client, msg->type);
		kind->handler(client, msg);
	}
	if (!kvx_client_takes_frames(client) && client->end_status != 0)
		client->control->stats.bad_frames++;
}

/* ---- the end */

static void client_doom(struct kvx_client *client, int end_status, int xfer_status)
{
	client->end_status = end_status;
	client->xfer_status = xfer_status;
	kvx_timer_stop(client->control->conf.timers, &client->hello_timer);
	kvx_sm_move(&client->sm, KVX_CLIENT_DOOMED);
	client->front->ops->stop(client->front);
	client_unsettle(client);
}

void kvx_client_fail(struct kvx_client *client, int status, const char *fmt, ...)
{
	va_list ap;

	if (!kvx_client_takes_frames(client))
		return;
	va_start(ap, fmt);
	vsnprintf(client->end_text, sizeof(client->end_text), fmt, ap);
	va_end(ap);
	if (client->control->closing) {
		kvx_debug("client %" PRIu64 ": %s", client->id, client->end_text);
	} else {
		client->control->stats.kicked++;
		kvx_warn("client %" PRIu64 " (%s, pid %d): %s: %s, disconnecting", client->id,
			 client->name, (int)client->pid,
			 kvx_status_name(kvx_status_from_errno(status)), client->end_text);
	}
	client_doom(client, status, -EPIPE);
}

void kvx_client_lost(struct kvx_client *client, const char *text)
{
	if (!kvx_client_takes_frames(client))
		return;
	snprintf(client->end_text, sizeof(client->end_text), "the client is gone: %s", text);
	kvx_log_at(client->announced ? KVX_LOG_INFO : KVX_LOG_DEBUG,
		   "client %" PRIu64 " (%s, pid %d): %s", client->id, client->name,
		   (int)client->pid, client->end_text);
	client_doom(client, 0, -EPIPE);
}

void kvx_handle_goodbye(struct kvx_client *client, struct kvx_msg *msg)
{
	snprintf(client->end_text, sizeof(client->end_text), "the client has closed");
	kvx_log_at(client->announced ? KVX_LOG_INFO : KVX_LOG_DEBUG,
		   "client %" PRIu64 " (%s, pid %d): goodbye", client->id, client->name,
		   (int)client->pid);
	client_doom(client, 0, -ECANCELED);
}

static KVX_ON_LOOP void client_begin_fence(struct kvx_client *client)
{
	kvx_sm_move(&client->sm, KVX_CLIENT_FENCING);
	kvx_client_abandon_calls(client);
	kvx_xfers_cancel_client(kvx_node_xfers(client->control->conf.node), client->id,
				client->xfer_status, client->end_text);
	kvx_gates_forget(kvx_node_gates(client->control->conf.node), client->id);
	/* transfers of others to and from its regions: whatever ended it, for them it is gone */
	kvx_client_close_regions(client, -EPIPE, client->end_text);
	kvx_client_release_imports(client);
}

void kvx_client_settle(struct kvx_client *client)
{
	if (client->sm.state == KVX_CLIENT_DOOMED)
		client_begin_fence(client);
	if (client->sm.state != KVX_CLIENT_FENCING || client->n_pending > 0)
		return;
	kvx_sm_move(&client->sm, KVX_CLIENT_CLOSED);
	if (client->end_status != 0)
		kvx_client_send_error(client, client->end_status, client->end_text);
	kvx_debug("client %" PRIu64 ": fenced, closing", client->id);
	client->front->ops->close(client->front);
}

void kvx_client_unpend(struct kvx_client *client)
{
	kvx_assert(client->n_pending > 0);
	client->n_pending--;
	if (client->n_pending == 0 && client->sm.state == KVX_CLIENT_FENCING)
		client_unsettle(client);
}
