/* The drive's links: to its daemon, to serve beside kvxfer, and the import of serve's region, each
 * made anew when it is lost. */
#include "drive.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS      200u
#define FIRST_WAIT_MS 60000u

static void region_open(struct drive *d)
{
	const struct kvxfer_region_options options = {
	    .struct_bytes = sizeof(options),
	    .name = d->name,
	    .layout = &drv_layout,
	};

	drv_mem_open(&d->mem, d->zone_bytes);
	if (kvxfer_region_register(d->client, d->mem.fd, DRV_GUARD_BYTES, d->mem.bytes, &options,
				   &d->region) != 0)
		drv_die("register: %s", kvxfer_client_error(d->client));
	drv_cells_init(&d->local, (uint32_t)(d->zone_bytes / DRV_CELL));
}

static void wait_for_descriptor(struct drive *d)
{
	uint64_t end = drv_now_ns() + drv_ms(FIRST_WAIT_MS);

	while (!d->desc_valid) {
		drive_link_tick(d, drv_now_ns());
		drive_chan_pump(d);
		if (drv_now_ns() > end)
			drv_die("no descriptor from %s", d->peer);
		drv_sleep_ms(5);
	}
}

void drive_open(struct drive *d)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = d->socket,
	    .name = d->name,
	};

	if (kvxfer_client_open(&options, &d->client) != 0)
		drv_die("open: %s", kvxfer_open_error());
	region_open(d);
	d->chan.fd = -1;
	wait_for_descriptor(d);
	drv_cells_init(&d->remote, d->desc.zone_cells);
}

static void on_desc(struct drive *d, const void *body, size_t len)
{
	if (len < sizeof(d->desc))
		drv_die("a descriptor message that is too short");
	memcpy(&d->desc, body, sizeof(d->desc));
	if (d->desc.len > sizeof(d->desc_bytes) || len != sizeof(d->desc) + d->desc.len)
		drv_die("a descriptor message of a wrong length");
	memcpy(d->desc_bytes, (const uint8_t *)body + sizeof(d->desc), d->desc.len);
	d->desc_valid = true;
	d->zone_empty = true;
	d->import_good = false;
	d->import_retry_ns = 0;
}

/* Serve has a zone without anything of ours. An import that is made anew is no reason to think so:
 * serve may not even have been told of the transfers that have ended here, and will fill their
 * cells with the canary when it is. */
static void zone_reset(struct drive *d)
{
	drive_forget_held(d);
	drv_cells_fini(&d->remote);
	drv_cells_init(&d->remote, d->desc.zone_cells);
	d->zone_empty = false;
}

static void on_message(struct drive *d, enum drv_msg type, const void *body, size_t len)
{
	char name[sizeof(d->marks[0].name)];
	uint64_t tag;

	switch (type) {
	case DRV_MSG_DESC:
		on_desc(d, body, len);
		break;
	case DRV_MSG_GONE:
		d->desc_valid = false;
		d->import_good = false;
		break;
	case DRV_MSG_FREE:
		if (len != sizeof(tag))
			drv_die("a message of a wrong length");
		memcpy(&tag, body, sizeof(tag));
		drive_on_free(d, tag);
		break;
	case DRV_MSG_SUMMARY:
		snprintf(d->summary_text, sizeof(d->summary_text), "%.*s", (int)len,
			 (const char *)body);
		d->summary = true;
		break;
	case DRV_MSG_MARK:
		snprintf(name, sizeof(name), "%.*s", (int)len, (const char *)body);
		drive_mark(d, name);
		drv_chan_send(&d->chan, DRV_MSG_MARKED, NULL, 0);
		drv_chan_pump_out(&d->chan);
		break;
	default:
		drv_die("a message of type %d", type);
	}
}

void drive_chan_pump(struct drive *d)
{
	enum drv_msg type;
	const void *body;
	size_t len;
	bool alive;

	if (d->chan.fd < 0)
		return;
	alive = drv_chan_pump(&d->chan);
	while ((body = drv_chan_next(&d->chan, &type, &len)) != NULL)
		on_message(d, type, body, len);
	if (alive)
		return;
	drv_say("event=serve_gone");
	drv_chan_close(&d->chan);
	d->fig.chan_losses++;
	d->desc_valid = false;
	d->import_good = false;
	if (!d->reconnect)
		d->stop = true;
}

static void try_chan(struct drive *d, uint64_t now)
{
	d->chan_retry_ns = now + drv_ms(RETRY_MS);
	if (drv_chan_connect(&d->chan, d->peer, 1000) != 0) {
		d->chan.fd = -1;
		return;
	}
	drv_chan_send(&d->chan, DRV_MSG_HELLO, d->name, strlen(d->name));
}

/* Blocks: only when nothing is in flight, so that no terminal event waits for it. */
static void try_import(struct drive *d, uint64_t now)
{
	int rc;

	d->import_retry_ns = now + drv_ms(RETRY_MS);
	drive_import_close(d);
	rc = kvxfer_import_open(d->client, d->desc_bytes, d->desc.len, NULL, &d->import_);
	if (rc != 0) {
		d->import_ = NULL;
		d->fig.import_failures++;
		snprintf(d->import_error, sizeof(d->import_error), "%s",
			 kvxfer_client_error(d->client));
		drv_say("import_failed rc=%d text=%s", rc, d->import_error);
		return;
	}
	d->fig.imports++;
	if (d->zone_empty)
		zone_reset(d);
	d->import_good = true;
	d->next_submit_ns = 0;
	drv_say("event=imported generation=%llu transport=%s after_ms=%.1f",
		(unsigned long long)d->desc.generation, kvxfer_import_transport(d->import_),
		drv_as_ms(drv_now_ns() - now));
}

void drive_import_close(struct drive *d)
{
	int rc;

	if (d->import_ == NULL)
		return;
	while ((rc = kvxfer_import_close(d->import_)) == -ETIMEDOUT)
		drv_say("import_close_timeout");
	d->import_ = NULL;
}

void drive_import_lost(struct drive *d, const char *text)
{
	drv_say("event=import_lost text=%s", text);
	d->fig.import_losses++;
	d->import_good = false;
	d->import_retry_ns = 0;
}

static void try_daemon(struct drive *d, uint64_t now)
{
	d->daemon_retry_ns = now + drv_ms(RETRY_MS);
	if (kvxfer_client_reconnect(d->client) != 0)
		return;
	drv_say("event=reconnected");
	d->daemon_gone = false;
	d->fig.reconnects++;
	/* Whether the import has survived is told by an event. */
	d->import_good = d->import_ != NULL && d->desc_valid;
}

void drive_link_tick(struct drive *d, uint64_t now)
{
	if (d->daemon_gone) {
		if (now >= d->daemon_retry_ns)
			try_daemon(d, now);
		return;
	}
	if (d->stop)
		return;
	if (d->chan.fd < 0 && now >= d->chan_retry_ns)
		try_chan(d, now);
	if (d->local.bits != NULL && d->desc_valid && !d->import_good && d->n_in_flight == 0 &&
	    d->xfers != NULL && now >= d->import_retry_ns)
		try_import(d, now);
}
