/* The serving engine's client and region: registration, export, and the fences (unregister, close,
 * loss of the daemon). After each of them nothing may land any more: the zone is filled with the
 * canary at once and looked at again later. */
#include "serve.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS 200u

uint8_t *serve_share(struct serve *s, const struct serve_conn *conn)
{
	return s->mem.data + (uint64_t)conn->share * s->share_cells * DRV_CELL;
}

static void client_open(struct serve *s)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = s->socket,
	    .name = s->name,
	};
	int rc = kvxfer_client_open(&options, &s->client);

	if (rc != 0)
		drv_die("open: %s", kvxfer_open_error());
}

static int region_register(struct serve *s)
{
	const struct kvxfer_region_options options = {
	    .struct_bytes = sizeof(options),
	    .name = s->name,
	    .access = s->access,
	    .layout = &drv_layout,
	};

	return kvxfer_region_register(s->client, s->mem.fd, DRV_GUARD_BYTES, s->mem.bytes, &options,
				      &s->region);
}

static void write_descriptor(const struct serve *s)
{
	FILE *file;

	if (s->desc_file == NULL)
		return;
	file = fopen(s->desc_file, "we");
	if (file == NULL)
		drv_die("%s: %s", s->desc_file, strerror(errno));
	for (size_t i = 0; i < s->desc_len; i++)
		fprintf(file, "%02x", s->desc[i]);
	fputc('\n', file);
	fclose(file);
}

static void region_export(struct serve *s)
{
	int len = kvxfer_region_export(s->region, s->desc, sizeof(s->desc));

	if (len < 0)
		drv_die("export: %s", kvxfer_client_error(s->client));
	s->desc_len = (size_t)len;
	s->up = true;
	s->up_since_ns = drv_now_ns();
	write_descriptor(s);
	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++)
		if (s->conns[i].used && !s->conns[i].orphan)
			serve_announce(s, &s->conns[i]);
}

void serve_open(struct serve *s)
{
	s->seed = drv_mix(drv_now_ns());
	drv_source_fill(s->mem.data + s->zone_bytes, s->source_bytes, s->seed, 0);
	s->generation = 1;
	client_open(s);
	if (region_register(s) != 0)
		drv_die("register: %s", kvxfer_client_error(s->client));
	region_export(s);
}

void serve_announce(struct serve *s, struct serve_conn *conn)
{
	uint8_t body[sizeof(struct drv_desc) + KVXFER_DESCRIPTOR_MAX];
	const struct drv_desc desc = {
	    .generation = s->generation,
	    .zone_offset = (uint64_t)conn->share * s->share_cells * DRV_CELL,
	    .source_offset = s->zone_bytes,
	    .source_bytes = s->source_bytes,
	    .source_seed = s->seed,
	    .drive = conn->id,
	    .zone_cells = s->share_cells,
	    .len = (uint32_t)s->desc_len,
	};

	if (!s->up)
		return;
	memcpy(body, &desc, sizeof(desc));
	memcpy(body + sizeof(desc), s->desc, s->desc_len);
	drv_chan_send(&conn->chan, DRV_MSG_DESC, body, sizeof(desc) + s->desc_len);
}

/* The region is void: says so, wipes the zone, and starts a new generation. */
static void region_over(struct serve *s)
{
	drv_canary_fill(s->mem.data, s->zone_bytes);
	s->up = false;
	s->generation++;
	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++)
		if (s->conns[i].used)
			drv_chan_send(&s->conns[i].chan, DRV_MSG_GONE, NULL, 0);
}

static void trial_watch(struct serve *s, const char *what, unsigned n_open, uint64_t took_ns)
{
	uint64_t late;

	drv_sleep_ms(s->trial_watch_ms);
	late = drv_canary_bad(s->mem.data, s->zone_bytes);
	if (late != 0)
		drv_canary_fill(s->mem.data, s->zone_bytes);
	s->fig.trials++;
	s->fig.trials_hit += n_open > 0;
	s->fig.trial_late += late != 0;
	s->fig.trial_late_bytes += late;
	drv_samples_add(&s->fence_ms, drv_as_ms(took_ns));
	drv_say("%s=%s in_flight=%u took_ms=%.1f late_bytes=%llu", late != 0 ? "bad" : "trial",
		what, n_open, drv_as_ms(took_ns), (unsigned long long)late);
}

void serve_unregister_trial(struct serve *s)
{
	unsigned n_open = serve_recs_open(s);
	uint64_t start = drv_now_ns();
	uint64_t end;
	int rc;

	if (!s->up)
		return;
	while ((rc = kvxfer_region_unregister(s->region)) == -ETIMEDOUT) {
		s->fig.unregister_timeouts++;
		drv_say("unregister_timeout text=%s", kvxfer_client_error(s->client));
	}
	end = drv_now_ns();
	region_over(s);
	if (rc != 0)
		drv_die("unregister: %s", kvxfer_client_error(s->client));
	trial_watch(s, "unregister", n_open, end - start);
	if (region_register(s) != 0)
		drv_die("register again: %s", kvxfer_client_error(s->client));
	region_export(s);
}

void serve_close_trial(struct serve *s)
{
	unsigned n_open = serve_recs_open(s);
	uint64_t start = drv_now_ns();
	uint64_t end;

	if (!s->up)
		return;
	kvxfer_client_close(s->client);
	end = drv_now_ns();
	region_over(s);
	trial_watch(s, "close", n_open, end - start);
	client_open(s);
	if (region_register(s) != 0)
		drv_die("register again: %s", kvxfer_client_error(s->client));
	region_export(s);
}

/* Inside of an event: no call on the client here. */
void serve_daemon_lost(struct serve *s)
{
	unsigned n_open = serve_recs_open(s);

	s->fig.daemon_losses++;
	serve_recs_keep(s);
	region_over(s);
	trial_watch(s, "daemon_lost", n_open, 0);
	s->retry_ns = drv_now_ns();
}

static void try_reconnect(struct serve *s, uint64_t now)
{
	int rc = kvxfer_client_reconnect(s->client);

	s->retry_ns = now + drv_ms(RETRY_MS);
	if (rc != 0)
		return;
	s->fig.reconnects++;
	s->retry_ns = 0;
	drv_say("event=reconnected");
	region_export(s);
}

void serve_region_tick(struct serve *s, uint64_t now)
{
	bool unregister;

	if (!s->up && s->retry_ns != 0 && now >= s->retry_ns)
		try_reconnect(s, now);
	if (s->trial == NULL || !s->up || s->fig.trials >= s->max_trials ||
	    now < s->up_since_ns + drv_ms(s->trial_every_ms) || serve_recs_open(s) == 0)
		return;
	unregister = strcmp(s->trial, "unregister") == 0 ||
		     (strcmp(s->trial, "both") == 0 && s->fig.trials % 2 == 0);
	if (unregister)
		serve_unregister_trial(s);
	else
		serve_close_trial(s);
}
