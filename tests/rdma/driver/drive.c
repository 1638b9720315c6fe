/* `rdma_engine drive`: flags and the loop. */
#include "drive.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SUMMARY_WAIT_MS 60000u
#define LOST_AFTER_MS   30000u /* past its deadline: a transfer that has not ended is lost */

static volatile sig_atomic_t told_to_stop;

static void on_signal(int signo)
{
	(void)signo;
	told_to_stop = 1;
}

static void parse_flags(struct drive *d, struct drv_args *args)
{
	d->socket = drv_arg_str(args, "--socket", NULL);
	d->name = drv_arg_str(args, "--name", "drive");
	d->peer = drv_arg_str(args, "--connect", "127.0.0.1:9900");
	d->require = drv_arg_str(args, "--require", NULL);
	d->count = drv_arg_u64(args, "--count", UINT64_MAX);
	d->seconds = drv_arg_u64(args, "--seconds", 0);
	d->window = drv_arg_u64(args, "--window", 16);
	d->op_bytes_min = 4096;
	d->op_bytes_max = 128u << 10;
	drv_arg_range(args, "--sizes", &d->op_bytes_min, &d->op_bytes_max);
	d->big_pct = (unsigned)drv_arg_u64(args, "--big-pct", 1);
	d->big_bytes = drv_arg_u64(args, "--big", 4u << 20);
	d->max_ops = drv_arg_u64(args, "--ops", 16);
	d->max_bytes = drv_arg_u64(args, "--max-bytes", 8u << 20);
	d->zone_bytes = drv_arg_u64(args, "--zone", 64u << 20);
	d->read_pct = (unsigned)drv_arg_u64(args, "--read-pct", 50);
	d->form_pct = (unsigned)drv_arg_u64(args, "--form-pct", 40);
	d->cancel_pct = (unsigned)drv_arg_u64(args, "--cancel-pct", 0);
	d->cancel_max_ms = drv_arg_u64(args, "--cancel-max-ms", 30);
	d->short_deadline_pct = (unsigned)drv_arg_u64(args, "--short-deadline-pct", 0);
	d->deadline_ms = drv_arg_u64(args, "--deadline-ms", 30000);
	d->watch_ms = drv_arg_u64(args, "--watch-ms", 200);
	d->gap_ms = drv_arg_u64(args, "--gap-ms", 0);
	d->fail_gap_ms = drv_arg_u64(args, "--fail-gap-ms", 50);
	d->limit_s = drv_arg_u64(args, "--limit-s", 0);
	d->reconnect = drv_arg_u64(args, "--reconnect", 0) != 0;
	d->expect_ok = drv_arg_u64(args, "--expect-ok", 0) != 0;
	d->random.state = drv_arg_u64(args, "--seed", drv_now_ns());
	drv_control_open(&d->control, drv_arg_str(args, "--control", NULL));
	drv_args_end(args);
	if (d->window == 0 || d->window > 4096 || d->max_ops == 0 || d->max_ops > DRV_MAX_EXTS)
		drv_die("--window: 1 to 4096, --ops: 1 to %u", DRV_MAX_EXTS);
	if (d->op_bytes_min < DRV_EXTENT_MIN || d->op_bytes_max > DRV_MAX_EXTENT)
		drv_die("--sizes: %u to %u", DRV_EXTENT_MIN, DRV_MAX_EXTENT);
	if (d->max_bytes < d->op_bytes_max || d->max_bytes < DRV_LARGE ||
	    d->big_bytes < DRV_EXTENT_MIN || d->big_bytes > DRV_MAX_EXTENT ||
	    d->max_bytes < d->big_bytes || d->zone_bytes % DRV_LARGE != 0)
		drv_die("--max-bytes: at least the largest op; --zone: a multiple of 64K");
}

static void on_command(struct drive *d, const char *line)
{
	drv_say("command=%s in_flight=%u", line, d->n_in_flight);
	if (strncmp(line, "mark ", 5) == 0)
		drive_mark(d, line + 5);
	else if (strcmp(line, "stop") == 0)
		d->stop = true;
	else if (strcmp(line, "pause") == 0)
		d->paused = true;
	else if (strcmp(line, "resume") == 0)
		d->paused = false;
	else if (strcmp(line, "reimport") == 0)
		drive_import_lost(d, "told to import again");
	else
		drv_say("bad=command line=%s", line);
}

static void submit_more(struct drive *d, uint64_t now)
{
	unsigned burst = 64; /* then events have their turn */

	while (burst-- > 0 && !d->paused && d->import_good && d->desc_valid && !d->daemon_gone &&
	       d->chan.fd >= 0 && d->n_in_flight < d->window && d->fig.accepted < d->count &&
	       now >= d->next_submit_ns) {
		if (!drive_submit(d, now))
			return;
		now = drv_now_ns();
		if (d->gap_ms != 0)
			d->next_submit_ns = now + drv_ms(d->gap_ms);
	}
}

static void turn(struct drive *d)
{
	struct pollfd pfds[] = {
	    {kvxfer_client_fd(d->client), POLLIN, 0},
	    {d->chan.fd, drv_chan_events(&d->chan), 0},
	    {d->control.fd, POLLIN, 0},
	};
	const char *line;
	uint64_t now;

	poll(pfds, 3, d->n_in_flight < d->window && d->import_good ? 1 : 5);
	kvxfer_client_dispatch(d->client, drive_on_event, d);
	drive_chan_pump(d);
	while ((line = drv_control_next(&d->control)) != NULL)
		on_command(d, line);
	now = drv_now_ns();
	drive_link_tick(d, now);
	drive_xfers_tick(d, now);
	if (d->fig.accepted >= d->count || told_to_stop ||
	    (d->seconds != 0 && now > d->start_ns + d->seconds * 1000000000ull))
		d->stop = true;
	if (!d->stop)
		submit_more(d, now);
}

/* Until all have ended, or one is lost. */
static void finish(struct drive *d)
{
	uint64_t end = drv_now_ns() + drv_ms(d->deadline_ms + LOST_AFTER_MS);

	while ((d->n_in_flight > 0 || d->n_watched > 0) && drv_now_ns() < end)
		turn(d);
	d->stop_ns = drv_now_ns();
	end = d->stop_ns + drv_ms(SUMMARY_WAIT_MS);
	drv_chan_send(&d->chan, DRV_MSG_BYE, NULL, 0);
	while (d->chan.fd >= 0 && !d->summary && drv_now_ns() < end)
		turn(d);
}

int drive_main(struct drv_args *args)
{
	static struct drive d;
	bool good;

	parse_flags(&d, args);
	signal(SIGTERM, on_signal);
	signal(SIGINT, on_signal);
	d.n_xfers = (unsigned)(4 * d.window < 64 ? 64 : 4 * d.window);
	drive_open(&d);
	d.xfers = calloc(d.n_xfers, sizeof(*d.xfers));
	if (d.xfers == NULL)
		drv_die("no memory for %u transfers", d.n_xfers);
	if (d.limit_s != 0)
		alarm((unsigned)d.limit_s); /* a program that hangs is found by its end */
	drv_say("event=ready pid=%d", (int)getpid());
	d.start_ns = drv_now_ns();
	while (!d.stop)
		turn(&d);
	finish(&d);
	drive_import_close(&d);
	good = drive_report(&d);
	kvxfer_client_close(d.client);
	return good ? 0 : DRV_FAILED;
}
