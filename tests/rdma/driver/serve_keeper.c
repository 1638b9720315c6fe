/* The keeper: a second process that shares the serving engine's memory. When the engine is killed,
 * nobody but the daemon knows when its memory is safe: the keeper asks the daemon until the region
 * is gone, fills the zone with the canary at once, and looks again later. */
#include "serve.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define GONE_WAIT_MS 30000u

static bool region_listed(struct kvxfer_client *client, const char *name)
{
	char quoted[80];
	char *text = NULL;
	bool listed;

	if (kvxfer_client_query(client, "regions", NULL, &text) != 0)
		drv_die("query: %s", kvxfer_client_error(client));
	snprintf(quoted, sizeof(quoted), "\"%s\"", name);
	listed = strstr(text, quoted) != NULL;
	free(text);
	return listed;
}

/* Time until the region of the killed engine is gone. */
static uint64_t wait_until_gone(struct serve *s)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options), .socket_path = s->socket, .name = "keeper"};
	uint64_t start = drv_now_ns();
	struct kvxfer_client *client;

	if (kvxfer_client_open(&options, &client) != 0)
		drv_die("open: %s", kvxfer_open_error());
	while (region_listed(client, s->name)) {
		if (drv_now_ns() > start + drv_ms(GONE_WAIT_MS))
			drv_die("the region of the killed engine stays");
		drv_sleep_ms(2);
	}
	kvxfer_client_close(client);
	return drv_now_ns() - start;
}

static int keep_watch(struct serve *s)
{
	static struct drv_report report;
	uint64_t took = wait_until_gone(s);
	uint64_t touched = drv_canary_bad(s->mem.data, s->zone_bytes);
	uint64_t late;

	drv_canary_fill(s->mem.data, s->zone_bytes);
	drv_sleep_ms(s->trial_watch_ms);
	late = drv_canary_bad(s->mem.data, s->zone_bytes);
	drv_report_str(&report, "program", "keeper");
	drv_report_ms(&report, "gone_ms", drv_as_ms(took));
	drv_report_u64(&report, "touched_bytes", touched);
	drv_report_u64(&report, "late_bytes", late);
	drv_report_u64(&report, "guard_bytes", drv_mem_guard_bad(&s->mem));
	drv_report_print(&report);
	return late == 0 && drv_mem_guard_bad(&s->mem) == 0 ? 0 : DRV_FAILED;
}

bool serve_keeper(struct serve *s, int *out_code)
{
	pid_t child;
	int status = 0;

	fflush(NULL);
	child = fork();
	if (child < 0)
		drv_die("fork: %s", strerror(errno));
	if (child == 0)
		return true;
	while (waitpid(child, &status, 0) != child)
		if (errno != EINTR)
			drv_die("waitpid: %s", strerror(errno));
	*out_code = WIFEXITED(status) ? WEXITSTATUS(status) : keep_watch(s);
	return false;
}
