/* `rdma_engine serve`: flags, the loop, and the figures. */
#include "serve.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define STILL_MS 1000u

static volatile sig_atomic_t told_to_stop;

static void on_signal(int signo)
{
	(void)signo;
	told_to_stop = 1;
}

static uint32_t parse_access(const char *text)
{
	if (strcmp(text, "read") == 0)
		return KVXFER_ACCESS_READ;
	if (strcmp(text, "write") == 0)
		return KVXFER_ACCESS_WRITE;
	if (strcmp(text, "both") == 0)
		return KVXFER_ACCESS_READ | KVXFER_ACCESS_WRITE;
	drv_die("--access %s: read, write or both", text);
}

static void parse_flags(struct serve *s, struct drv_args *args)
{
	s->socket = drv_arg_str(args, "--socket", NULL);
	s->name = drv_arg_str(args, "--name", "serve");
	s->drives = (uint32_t)drv_arg_u64(args, "--drives", 1);
	s->zone_bytes = drv_arg_u64(args, "--zone", 64u << 20);
	s->source_bytes = drv_arg_u64(args, "--source", 16u << 20);
	s->access = parse_access(drv_arg_str(args, "--access", "both"));
	s->watch_ms = drv_arg_u64(args, "--watch-ms", 200);
	s->grace_ms = drv_arg_u64(args, "--grace-ms", 5000);
	s->orphan_ms = drv_arg_u64(args, "--orphan-ms", 5000);
	s->trial = drv_arg_str(args, "--trial", NULL);
	s->max_trials = drv_arg_u64(args, "--trials", UINT64_MAX);
	s->trial_every_ms = drv_arg_u64(args, "--trial-every-ms", 500);
	s->trial_watch_ms = drv_arg_u64(args, "--trial-watch-ms", 1000);
	s->exit_after = drv_arg_u64(args, "--exit-after", 0);
	s->desc_file = drv_arg_str(args, "--descriptor", NULL);
	drv_control_open(&s->control, drv_arg_str(args, "--control", NULL));
	s->listen = drv_arg_str(args, "--listen", "127.0.0.1:9900");
	s->keeper = drv_arg_u64(args, "--keeper", 0) != 0;
	drv_args_end(args);
	if (s->drives == 0 || s->drives > SERVE_MAX_CONNS)
		drv_die("--drives %u: 1 to %d", s->drives, SERVE_MAX_CONNS);
	/* A share is a whole number of large blocks, so that block numbers agree with cells. */
	s->share_cells = (uint32_t)(s->zone_bytes / s->drives / DRV_LARGE * (DRV_LARGE / DRV_CELL));
	if (s->share_cells == 0 || s->zone_bytes % DRV_LARGE != 0 ||
	    s->source_bytes % DRV_LARGE != 0)
		drv_die("--zone and --source: multiples of 64K, a share of at least 64K");
}

/* "kill NAME PID": every drive has noted the moment just before the process is killed, so what they
 * measure has no delay of the harness in it. */
static void kill_marked(struct serve *s, const char *words)
{
	char name[24];
	int pid;

	if (sscanf(words, "%23s %d", name, &pid) != 2 || pid <= 1) {
		drv_say("bad=command words=%s", words);
		return;
	}
	serve_mark(s, name);
	kill(pid, SIGKILL);
	drv_say("event=killed pid=%d", pid);
}

static void on_command(struct serve *s, const char *line)
{
	drv_say("command=%s", line);
	if (strncmp(line, "kill ", 5) == 0) {
		kill_marked(s, line + 5);
		return;
	}
	if (strcmp(line, "unregister") == 0)
		serve_unregister_trial(s);
	else if (strcmp(line, "close") == 0)
		serve_close_trial(s);
	else if (strcmp(line, "stop") == 0)
		s->stop = true;
	else
		drv_say("bad=command line=%s", line);
}

void serve_report(struct serve *s, struct drv_report *report)
{
	const struct serve_figures *fig = &s->fig;
	const struct {
		const char *key;
		uint64_t value;
	} rows[] = {
	    {"arrivals", fig->arrivals},
	    {"arrivals_ok", fig->arrivals_ok},
	    {"arrivals_failed", fig->arrivals_failed},
	    {"arrivals_read", fig->arrivals_read},
	    {"arrivals_unknown", fig->arrivals_unknown},
	    {"arrivals_missing", fig->arrivals_missing},
	    {"verdict_mismatch", fig->verdict_mismatch},
	    {"verified", fig->verified},
	    {"verified_bytes", fig->verified_bytes},
	    {"verified_before", fig->verified_before},
	    {"unverified", fig->unverified},
	    {"duplicated", fig->arrivals_dup},
	    {"missing", fig->missing},
	    {"misplaced", fig->misplaced},
	    {"corrupt", fig->corrupt},
	    {"payload_bad", fig->payload_bad},
	    {"edge_bytes", fig->edge_bytes},
	    {"zone_bytes", fig->zone_bytes},
	    {"guard_bytes", drv_mem_guard_bad(&s->mem)},
	    {"source_bad", drv_source_check(s->mem.data + s->zone_bytes, s->source_bytes, s->seed,
					    0) != DRV_GOOD},
	    {"late_transfers", fig->late_transfers},
	    {"late_bytes", fig->late_bytes},
	    {"trials", fig->trials},
	    {"trials_hit", fig->trials_hit},
	    {"trial_late", fig->trial_late},
	    {"trial_late_bytes", fig->trial_late_bytes},
	    {"unregister_timeouts", fig->unregister_timeouts},
	    {"orphans", fig->orphans},
	    {"orphan_silent", fig->orphan_silent},
	    {"daemon_losses", fig->daemon_losses},
	    {"reconnects", fig->reconnects},
	    {"region_losses", fig->region_losses},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		drv_report_u64(report, rows[i].key, rows[i].value);
	drv_report_samples(report, "fence", &s->fence_ms);
}

static bool figures_good(const struct serve *s)
{
	const struct serve_figures *fig = &s->fig;

	return fig->arrivals_dup == 0 && fig->missing == 0 && fig->misplaced == 0 &&
	       fig->corrupt == 0 && fig->payload_bad == 0 && fig->edge_bytes == 0 &&
	       fig->zone_bytes == 0 && fig->late_bytes == 0 && fig->trial_late_bytes == 0 &&
	       fig->arrivals_missing == 0 && drv_mem_guard_bad(&s->mem) == 0;
}

static void turn(struct serve *s)
{
	struct pollfd pfds[SERVE_MAX_CONNS + 3];
	struct serve_conn *conns[SERVE_MAX_CONNS];
	unsigned n = 0;
	const char *line;
	uint64_t now;

	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++) {
		struct serve_conn *conn = &s->conns[i];

		if (!conn->used || conn->chan.fd < 0)
			continue;
		conns[n] = conn;
		pfds[n++] = (struct pollfd){conn->chan.fd, drv_chan_events(&conn->chan), 0};
	}
	pfds[n] = (struct pollfd){serve_has_room(s) ? s->listen_fd : -1, POLLIN, 0};
	pfds[n + 1] = (struct pollfd){kvxfer_client_fd(s->client), POLLIN, 0};
	pfds[n + 2] = (struct pollfd){s->control.fd, POLLIN, 0};
	poll(pfds, n + 3, 10);
	/* Arrivals first: the drives' notes are then rarely earlier. */
	kvxfer_client_dispatch(s->client, serve_on_event, s);
	for (unsigned i = 0; i < n; i++)
		if (pfds[i].revents != 0 || conns[i]->chan.out_len > 0)
			serve_conn_pump(s, conns[i]);
	if (pfds[n].revents != 0)
		serve_accept(s);
	while ((line = drv_control_next(&s->control)) != NULL)
		on_command(s, line);
	now = drv_now_ns();
	/* A machine that stood still: what came meanwhile has its time from now on. */
	if (now - s->turn_ns > drv_ms(STILL_MS))
		s->awake_ns = now;
	s->turn_ns = now;
	serve_conns_tick(s, now);
	serve_region_tick(s, now);
}

static bool finished(const struct serve *s)
{
	if (s->exit_after == 0 || s->n_byes < s->exit_after)
		return false;
	for (unsigned i = 0; i < SERVE_MAX_CONNS; i++)
		if (s->conns[i].used)
			return false;
	return true;
}

int serve_main(struct drv_args *args)
{
	static struct serve s;
	static struct drv_report report;
	bool good;
	int code;

	parse_flags(&s, args);
	drv_mem_open(&s.mem, s.zone_bytes + s.source_bytes);
	if (s.keeper && !serve_keeper(&s, &code))
		return code;
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	s.listen_fd = drv_chan_listen(s.listen);
	serve_open(&s);
	drv_say("event=ready pid=%d", (int)getpid());
	while (!s.stop && !told_to_stop && !finished(&s))
		turn(&s);
	good = figures_good(&s);
	drv_report_str(&report, "program", "serve");
	drv_report_str(&report, "name", s.name);
	serve_report(&s, &report);
	drv_report_print(&report);
	kvxfer_client_close(s.client);
	return good ? 0 : DRV_FAILED;
}
