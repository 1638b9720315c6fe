/* Control as a whole: opens bottom-up, closes top-down, and brings what node and peers report to
 * the client it is for. Owned by the daemon, on the loop. Ends of clients happen only in
 * kvx_control_settle(), never inside a report. */
#include "control/control.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utlist.h>

#include "base/assert.h"
#include "base/clock.h"
#include "base/idmap.h"
#include "base/log.h"
#include "control/control_priv.h"

#define CONTROL_MAGIC    0x6b766374u /* "kvct" */
#define MAX_CLIENTS_EVER (1u << 24)
#define ARENA_BASE_BYTES (64u * 1024)
#define SLAB_RECS        256

/* Records of transfers are made by the slab and kept until the end. */
struct kvx_xrec_slab {
	struct kvx_xrec_slab *next;
	struct kvx_xrec recs[SLAB_RECS];
};

struct kvx_xrec *kvx_control_rec_get(struct kvx_control *control)
{
	struct kvx_xrec *rec = control->free_recs;
	struct kvx_xrec_slab *slab;
	unsigned i;

	if (rec == NULL) {
		slab = calloc(1, sizeof(*slab));
		if (slab == NULL)
			return NULL;
		slab->next = control->slabs;
		control->slabs = slab;
		for (i = 0; i < SLAB_RECS; i++)
			kvx_control_rec_put(control, &slab->recs[i]);
		rec = control->free_recs;
	}
	control->free_recs = rec->next;
	return rec;
}

void kvx_control_rec_put(struct kvx_control *control, struct kvx_xrec *rec)
{
	rec->next = control->free_recs;
	control->free_recs = rec;
}

struct kvx_client *kvx_control_client(const struct kvx_control *control, uint64_t id)
{
	return kvx_idmap_find(control->clients, id);
}

static void control_free(struct kvx_control *control)
{
	struct kvx_xrec_slab *slab;

	kvx_assert_on_loop();
	while ((slab = control->slabs) != NULL) {
		control->slabs = slab->next;
		free(slab);
	}
	kvx_idmap_destroy(control->clients);
	kvx_arena_destroy(control->arena);
	kvx_closer_close(control->closer);
	if (control->pidfd >= 0)
		close(control->pidfd);
	control->magic = 0;
	free(control);
}

int kvx_control_open(const struct kvx_control_conf *conf, struct kvx_control **out_control,
		     struct kvx_why *why)
{
	struct kvx_control *control = calloc(1, sizeof(*control));
	int err;

	if (control == NULL)
		return -ENOMEM;
	control->magic = CONTROL_MAGIC;
	control->conf = *conf;
	control->start_ns = kvx_now_ns();
	control->n_tenants = kvx_config_tenants(conf->config, control->tenants);
	control->pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
	if (control->pidfd < 0)
		kvx_warn("control: no pidfd (%s): clients learn of this daemon's end by the socket "
			 "only",
			 strerror(errno));
	err = kvx_arena_create(ARENA_BASE_BYTES, &control->arena);
	if (err < 0)
		goto err_fds;
	err = kvx_idmap_create(MAX_CLIENTS_EVER, &control->clients);
	if (err < 0)
		goto err_fds;
	err = kvx_closer_open(&control->closer);
	if (err < 0)
		goto err_fds;
	err = kvx_listener_open(control, &control->listener, why);
	if (err < 0)
		goto err_free;
	*out_control = control;
	return 0;

err_fds:
	for (unsigned i = 0; i < conf->n_listen_fds; i++)
		close(conf->listen_fds[i].fd);
err_free:
	control_free(control);
	return err;
}

void kvx_control_settle(struct kvx_control *control)
{
	struct kvx_client *client;

	KVX_CHECK_MAGIC(control, CONTROL_MAGIC);
	while (control->unsettled != NULL || control->dirty != NULL) {
		while ((client = control->unsettled) != NULL) {
			DL_DELETE2(control->unsettled, client, prev_unsettled, next_unsettled);
			client->unsettled = false;
			kvx_client_settle(client);
			if (control->unsettled == NULL)
				kvx_node_drain(control->conf.node); /* what was cancelled ends */
		}
		kvx_conn_flush_all(control);
	}
}

void kvx_control_close(struct kvx_control *control, void (*closed)(void *arg), void *arg)
{
	struct kvx_client *client;
	uint32_t cursor = 0;

	KVX_CHECK_MAGIC(control, CONTROL_MAGIC);
	kvx_assert(!control->closing);
	control->closing = true;
	control->closed = closed;
	control->closed_arg = arg;
	control->n_fronts++; /* the listener */
	kvx_listener_close(control->listener);
	while ((client = kvx_idmap_next(control->clients, &cursor)) != NULL)
		kvx_client_fail(client, -ECONNRESET, "the daemon stops");
}

void kvx_control_front_gone(struct kvx_control *control)
{
	kvx_assert(control->n_fronts > 0);
	control->n_fronts--;
	if (control->n_fronts > 0 || !control->closing)
		return;
	control->closed(control->closed_arg);
	control_free(control);
}

static KVX_ON_LOOP void client_tell_draining(struct kvx_client *client)
{
	Kvxp__Event event = KVXP__EVENT__INIT;

	if (client->sm.state != KVX_CLIENT_READY)
		return;
	event.type = KVXP__EVENT_TYPE__EVENT_DRAINING;
	event.status = KVX_STATUS_DRAINING;
	event.scope = KVX_SCOPE_DAEMON;
	event.text = (char *)(uintptr_t) "the daemon is draining: it takes no new transfers";
	kvx_client_event(client, &event);
}

void kvx_control_set_draining(struct kvx_control *control, bool draining)
{
	struct kvx_client *client;
	uint32_t cursor = 0;

	if (control->draining == draining)
		return;
	control->draining = draining;
	kvx_info("control: %s", draining ? "draining, no new transfers" : "taking transfers again");
	while (draining && (client = kvx_idmap_next(control->clients, &cursor)) != NULL)
		client_tell_draining(client);
	if (control->conf.on_draining != NULL)
		control->conf.on_draining(control->conf.arg, draining);
}

bool kvx_control_is_draining(const struct kvx_control *control)
{
	return control->draining;
}

unsigned kvx_control_clients(const struct kvx_control *control)
{
	return control->n_clients;
}

const char *kvx_control_socket(const struct kvx_control *control)
{
	return kvx_listener_path(control->listener, 0);
}

/* ---- news */

void kvx_control_on_terminal(struct kvx_control *control, const struct kvx_xfer_end *end)
{
	struct kvx_client *client = kvx_control_client(control, end->client);

	KVX_CHECK_MAGIC(control, CONTROL_MAGIC);
	kvx_assert(client != NULL); /* its unfinished transfers hold it */
	kvx_client_on_terminal(client, end);
}

void kvx_control_on_arrival(struct kvx_control *control, const struct kvx_arrival *arrival)
{
	struct kvx_client *client = kvx_control_client(control, arrival->owner);
	Kvxp__Event event = KVXP__EVENT__INIT;

	if (client == NULL || client->sm.state != KVX_CLIENT_READY) {
		control->stats.arrivals_undelivered++;
		return;
	}
	event.type = KVXP__EVENT_TYPE__EVENT_ARRIVAL;
	event.region = arrival->region;
	event.tag = arrival->tag;
	event.op = (Kvxp__Op)arrival->op;
	event.status = kvx_status_from_errno(arrival->status);
	event.scope = kvx_status_scope(event.status);
	event.text = (char *)(uintptr_t)(arrival->text != NULL ? arrival->text : "");
	event.bytes = arrival->bytes;
	event.transport = (char *)(uintptr_t)(arrival->transport != NULL ? arrival->transport : "");
	event.payload =
	    (ProtobufCBinaryData){arrival->payload_bytes, (uint8_t *)(uintptr_t)arrival->payload};
	kvx_client_event(client, &event);
}

void kvx_control_on_region_lost(struct kvx_control *control, const struct kvx_region *region,
				int status, const char *text)
{
	struct kvx_client *client = kvx_control_client(control, region->owner);
	Kvxp__Event event = KVXP__EVENT__INIT;

	if (client == NULL || client->sm.state != KVX_CLIENT_READY)
		return;
	event.type = KVXP__EVENT_TYPE__EVENT_REGION_LOST;
	event.region = region->id;
	event.status = kvx_status_from_errno(status);
	event.scope = kvx_status_scope(event.status);
	event.text = (char *)(uintptr_t)text;
	kvx_client_event(client, &event);
}

int kvx_control_on_message(struct kvx_control *control, struct kvx_region *region, const void *data,
			   uint32_t len)
{
	return kvx_client_deliver_message(kvx_control_client(control, region->owner), region, data,
					  len);
}
