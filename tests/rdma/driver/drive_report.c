/* The figures of a drive, and whether they are as they must be. */
#include "drive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A number out of serve's summary; 0 when it is not there. */
static uint64_t remote_figure(const struct drive *d, const char *key)
{
	size_t len = strlen(key);
	const char *at = d->summary_text;

	while (at != NULL && *at != '\0') {
		if (strncmp(at, key, len) == 0 && at[len] == '=')
			return strtoull(at + len + 1, NULL, 10);
		at = strchr(at, '\n');
		at = at != NULL ? at + 1 : NULL;
	}
	return 0;
}

static void report_marks(const struct drive *d, struct drv_report *report)
{
	for (unsigned i = 0; i < d->n_marks; i++) {
		const struct drive_mark *mark = &d->marks[i];
		const struct {
			const char *what;
			uint64_t at_ns;
		} times[] = {
		    {"last", mark->last_ns},
		    {"last_fail", mark->last_fail_ns},
		    {"first_fail", mark->first_fail_ns},
		    {"first_ok", mark->first_ok_ns},
		};
		char key[56];

		snprintf(key, sizeof(key), "mark_%s_outstanding", mark->name);
		drv_report_u64(report, key, mark->outstanding);
		snprintf(key, sizeof(key), "mark_%s_ended", mark->name);
		drv_report_u64(report, key, mark->ended);
		snprintf(key, sizeof(key), "mark_%s_failed", mark->name);
		drv_report_u64(report, key, mark->failed);
		snprintf(key, sizeof(key), "mark_%s_fails", mark->name);
		drv_report_u64(report, key, mark->fails);
		snprintf(key, sizeof(key), "mark_%s_worst_fail_ms", mark->name);
		drv_report_ms(report, key, drv_as_ms(mark->worst_ns));
		for (size_t k = 0; k < sizeof(times) / sizeof(times[0]); k++) {
			snprintf(key, sizeof(key), "mark_%s_%s_ms", mark->name, times[k].what);
			if (times[k].at_ns != 0)
				drv_report_ms(report, key, drv_as_ms(times[k].at_ns - mark->at_ns));
		}
	}
}

static void report_statuses(const struct drive *d, struct drv_report *report)
{
	char key[56];

	for (unsigned i = 0; i < DRIVE_STATUSES; i++) {
		if (d->fig.by_status[i] == 0)
			continue;
		snprintf(key, sizeof(key), "status_%s", kvxfer_status_name((int)i));
		drv_report_u64(report, key, d->fig.by_status[i]);
	}
	for (unsigned i = 0; i < DRIVE_TRANSPORTS; i++) {
		if (d->fig.transports[i].n == 0)
			continue;
		snprintf(key, sizeof(key), "transport_%s", d->fig.transports[i].name);
		drv_report_u64(report, key, d->fig.transports[i].n);
	}
}

/* The five that every run prints, over both sides. */
struct totals {
	uint64_t lost, duplicated, missing, misplaced, late;
};

static struct totals sum_up(const struct drive *d)
{
	const struct drive_figures *fig = &d->fig;
	struct totals t = {
	    .lost = fig->accepted - fig->completed,
	    .duplicated = fig->duplicated + remote_figure(d, "duplicated"),
	    .missing = fig->missing + fig->corrupt + remote_figure(d, "missing") +
		       remote_figure(d, "corrupt") + remote_figure(d, "payload_bad"),
	    .misplaced = fig->misplaced + fig->edge_bytes + drv_mem_guard_bad(&d->mem) +
			 remote_figure(d, "misplaced") + remote_figure(d, "edge_bytes") +
			 remote_figure(d, "zone_bytes") + remote_figure(d, "guard_bytes"),
	    .late = fig->late_bytes + remote_figure(d, "late_bytes") +
		    remote_figure(d, "trial_late_bytes"),
	};
	return t;
}

static void report_counts(const struct drive *d, struct drv_report *report, const struct totals *t)
{
	const struct drive_figures *fig = &d->fig;
	uint64_t ok = fig->by_status[KVXFER_OK];
	const struct {
		const char *key;
		uint64_t value;
	} rows[] = {
	    {"accepted", fig->accepted},
	    {"completed", fig->completed},
	    {"ok", ok},
	    {"failed", fig->completed - ok},
	    {"lost", t->lost},
	    {"duplicated", t->duplicated},
	    {"wrong", t->missing},
	    {"misplaced", t->misplaced},
	    {"late", t->late},
	    {"overdue", fig->overdue},
	    {"wrong_bytes", fig->wrong_bytes},
	    {"refused", fig->refused},
	    {"reads_ok", fig->reads_ok},
	    {"writes_ok", fig->writes_ok},
	    {"block_lists", fig->blocks},
	    {"streams", fig->streams},
	    {"cancels_sent", fig->cancels_sent},
	    {"bytes_ok", fig->bytes_ok},
	    {"read_verified", fig->verified},
	    {"read_verified_bytes", fig->verified_bytes},
	    {"read_missing", fig->missing},
	    {"read_misplaced", fig->misplaced},
	    {"read_corrupt", fig->corrupt},
	    {"read_late_bytes", fig->late_bytes},
	    {"imports", fig->imports},
	    {"import_failures", fig->import_failures},
	    {"import_losses", fig->import_losses},
	    {"daemon_losses", fig->daemon_losses},
	    {"reconnects", fig->reconnects},
	    {"serve_losses", fig->chan_losses},
	    {"stalls", fig->stalls},
	    {"summary", d->summary},
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		drv_report_u64(report, rows[i].key, rows[i].value);
}

bool drive_report(struct drive *d)
{
	static struct drv_report report;
	uint64_t took = d->stop_ns - d->start_ns;
	struct totals t = sum_up(d);
	bool good = t.lost == 0 && t.duplicated == 0 && t.missing == 0 && t.misplaced == 0 &&
		    t.late == 0 && d->fig.overdue == 0 && d->fig.wrong_bytes == 0 &&
		    d->fig.accepted > 0;

	if (d->expect_ok)
		good = good && d->fig.by_status[KVXFER_OK] == d->fig.accepted &&
		       remote_figure(d, "arrivals_missing") == 0 && d->summary;
	drv_report_str(&report, "program", "drive");
	drv_report_str(&report, "name", d->name);
	report_counts(d, &report, &t);
	report_statuses(d, &report);
	drv_report_samples(&report, "ok", &d->ok_ms);
	drv_report_samples(&report, "failed", &d->failed_ms);
	drv_report_samples(&report, "cancel", &d->cancel_ms);
	report_marks(d, &report);
	drv_report_ms(&report, "seconds", drv_as_ms(took) / 1000);
	drv_report_ms(&report, "mb_per_s",
		      took != 0 ? (double)d->fig.bytes_ok * 1000 / (double)took : 0);
	drv_report_merge(&report, "serve_", d->summary_text);
	drv_report_str(&report, "import_error", d->import_error);
	drv_report_u64(&report, "good", good);
	drv_report_print(&report);
	return good;
}
