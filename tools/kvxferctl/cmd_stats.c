/* kvxferctl stats: counters, latency histograms and workers; --watch prints what each interval
 * added. */
#include "ctl.h"

#include <json-c/json.h>
#include <string.h>

static bool watch;
static const char *interval_text;
static const char *rounds_text;

static const struct kvx_column counter_columns[] = {
    {"COUNTER", KVX_LEFT, KVX_CUT},
    {"VALUE", KVX_RIGHT, KVX_KEEP},
    {"PER SECOND", KVX_RIGHT, KVX_KEEP},
};
static const struct kvx_column histogram_columns[] = {
    {"HISTOGRAM", KVX_LEFT, KVX_CUT}, {"N", KVX_RIGHT, KVX_KEEP},     {"MIN", KVX_RIGHT, KVX_HIDE},
    {"MEAN", KVX_RIGHT, KVX_KEEP},    {"P50", KVX_RIGHT, KVX_KEEP},   {"P90", KVX_RIGHT, KVX_HIDE},
    {"P99", KVX_RIGHT, KVX_KEEP},     {"P99.9", KVX_RIGHT, KVX_KEEP}, {"MAX", KVX_RIGHT, KVX_KEEP},
};
static const struct kvx_column worker_columns[] = {
    {"WORKER", KVX_LEFT, KVX_CUT},    {"TRANSPORT", KVX_LEFT, KVX_KEEP},
    {"MOVED", KVX_RIGHT, KVX_KEEP},   {"OPS", KVX_RIGHT, KVX_KEEP},
    {"BATCHES", KVX_RIGHT, KVX_KEEP}, {"IN FLIGHT", KVX_RIGHT, KVX_KEEP},
    {"ERRORS", KVX_RIGHT, KVX_KEEP},  {"SHORT POSTS", KVX_RIGHT, KVX_HIDE},
    {"SLEEPS", KVX_RIGHT, KVX_HIDE},
};

unsigned kvx_cmd_stats_flags(struct kvx_ctl_flag *flags)
{
	flags[0] = (struct kvx_ctl_flag){"--watch", KVX_FLAG_OPTIONAL, &watch, &interval_text};
	flags[1] = (struct kvx_ctl_flag){"-n", KVX_FLAG_VALUE, NULL, &rounds_text};
	return 2;
}

/* Values named "..._bytes" or "..._ns" are shown as such. */
static void unit_cell(struct kvx_table *table, const char *name, uint64_t value)
{
	char buf[KVX_UNIT_BYTES];

	if (kvx_is_ns_key(name))
		kvx_table_cell(table, "%s", kvx_unit_ns(buf, value));
	else if (kvx_is_bytes_key(name))
		kvx_table_cell(table, "%s", kvx_unit_bytes(buf, value));
	else
		kvx_table_cell(table, "%s", kvx_unit_count(buf, value));
}

static void rate_cell(struct kvx_table *table, const char *name, double rate)
{
	char buf[KVX_UNIT_BYTES];

	if (rate <= 0)
		kvx_table_cell(table, "%s", rate < 0 ? "restarted" : "-");
	else if (kvx_is_bytes_key(name))
		kvx_table_cell(table, "%s", kvx_unit_rate(buf, rate));
	else
		kvx_table_cell(table, rate < 10 ? "%.2f" : "%.0f", rate);
}

static void print_counters(struct json_object *now, struct json_object *before, double seconds)
{
	struct json_object *counters = kvx_json_get(now, "counters");
	struct kvx_table *table = kvx_table_create(counter_columns, before ? 3 : 2);

	if (counters && json_object_is_type(counters, json_type_object)) {
		json_object_object_foreach(counters, name, value)
		{
			uint64_t n = json_object_get_uint64(value);

			kvx_table_cell(table, "%s", name);
			unit_cell(table, name, n);
			if (before)
				rate_cell(
				    table, name,
				    ((double)n -
				     (double)kvx_json_u64(kvx_json_get(before, "counters"), name)) /
					seconds);
		}
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void print_histograms(struct json_object *now)
{
	static const char *const keys[] = {"p50", "p90", "p99", "p999", "max"};
	struct json_object *all = kvx_json_get(now, "histograms");
	struct kvx_table *table = kvx_table_create(histogram_columns, 9);

	if (all && json_object_is_type(all, json_type_object)) {
		json_object_object_foreach(all, name, h)
		{
			char buf[KVX_UNIT_BYTES];
			uint64_t n = kvx_json_u64(h, "n");

			kvx_table_cell(table, "%s", name);
			kvx_table_cell(table, "%s", kvx_unit_count(buf, n));
			unit_cell(table, name, kvx_json_u64(h, "min"));
			unit_cell(table, name, n ? kvx_json_u64(h, "sum") / n : 0);
			for (unsigned i = 0; i < 5; i++)
				unit_cell(table, name, kvx_json_u64(h, keys[i]));
		}
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void print_workers(struct json_object *now)
{
	static const char *const keys[] = {"ops",    "batches",     "in_flight",
					   "errors", "short_posts", "sleeps"};
	struct json_object *workers = kvx_json_array(now, "workers");
	struct kvx_table *table = kvx_table_create(worker_columns, 9);
	char buf[KVX_UNIT_BYTES];

	for (size_t i = 0; i < kvx_json_length(workers); i++) {
		struct json_object *w = kvx_json_at(workers, i);

		kvx_table_cell(table, "%s", kvx_json_str(w, "name"));
		kvx_table_cell(table, "%s", kvx_json_str(w, "transport"));
		kvx_table_cell(table, "%s", kvx_unit_bytes(buf, kvx_json_u64(w, "bytes")));
		for (unsigned k = 0; k < 6; k++)
			kvx_table_cell(table, "%s", kvx_unit_count(buf, kvx_json_u64(w, keys[k])));
	}
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static const struct kvx_column device_columns[] = {
    {"DEVICE", KVX_LEFT, KVX_CUT},        {"REQUESTS", KVX_RIGHT, KVX_KEEP},
    {"DOORBELLS", KVX_RIGHT, KVX_KEEP},   {"SIGNALED", KVX_RIGHT, KVX_KEEP},
    {"COMPLETIONS", KVX_RIGHT, KVX_HIDE}, {"INLINE", KVX_RIGHT, KVX_HIDE},
    {"GATHERED", KVX_RIGHT, KVX_HIDE},    {"FLUSHES", KVX_RIGHT, KVX_HIDE},
    {"ERRORS", KVX_RIGHT, KVX_KEEP},      {"EVENTS", KVX_RIGHT, KVX_HIDE},
    {"EPS", KVX_RIGHT, KVX_HIDE},         {"LOST", KVX_RIGHT, KVX_KEEP},
    {"REGIONS", KVX_RIGHT, KVX_HIDE},     {"MEMORY", KVX_RIGHT, KVX_HIDE},
};

/* What the devices behind the workers count; nothing where none does. */
static void print_devices(struct json_object *now)
{
	static const char *const keys[] = {
	    "wrs",    "doorbells",    "signaled", "completions", "inlined", "gathered", "flushes",
	    "errors", "async_events", "eps_made", "eps_lost",    "regs",    "reg_bytes"};
	struct json_object *workers = kvx_json_array(now, "workers");
	struct kvx_table *table = kvx_table_create(device_columns, 14);

	for (size_t i = 0; i < kvx_json_length(workers); i++) {
		struct json_object *counters = kvx_json_get(kvx_json_at(workers, i), "counters");

		if (!counters)
			continue;
		kvx_table_cell(table, "%s", kvx_json_str(kvx_json_at(workers, i), "name"));
		for (unsigned k = 0; k < 13; k++)
			unit_cell(table, keys[k], kvx_json_u64(counters, keys[k]));
	}
	if (kvx_table_rows(table) > 0) {
		printf("\n");
		kvx_table_print(table, stdout);
	}
	kvx_table_destroy(table);
}

static void print_stats(struct kvx_ctl *ctl, struct json_object *now, struct json_object *before)
{
	double seconds = 0;

	if (kvx_ctl_pass_json(ctl, now))
		return;
	if (before)
		seconds =
		    (double)(kvx_json_u64(now, "now_ns") - kvx_json_u64(before, "now_ns")) / 1e9;
	print_counters(now, seconds > 0 ? before : NULL, seconds);
	printf("\n");
	print_histograms(now);
	printf("\n");
	print_workers(now);
	print_devices(now);
}

int kvx_cmd_stats(struct kvx_ctl *ctl)
{
	struct json_object *now = NULL, *before = NULL;
	uint64_t rounds = watch ? UINT64_MAX : 1;
	double interval = 1;
	int rc = KVX_CTL_OK;

	if (rounds_text && kvx_parse_u64(rounds_text, 1, 1000000000, &rounds) != 0) {
		kvx_tool_error("-n needs a number of rounds, 1 or more");
		return KVX_CTL_USAGE;
	}
	if (interval_text && kvx_ctl_seconds(interval_text, &interval) != KVX_CTL_OK)
		return KVX_CTL_USAGE;
	for (uint64_t i = 0; i < rounds; i++) {
		if (i > 0 && !kvx_ctl_sleep(interval, false))
			break;
		rc = kvx_ctl_query(ctl, "stats", NULL, &now);
		if (rc != KVX_CTL_OK)
			break;
		if (i > 0 && !ctl->json)
			printf("\n");
		print_stats(ctl, now, before);
		json_object_put(before);
		before = now;
	}
	json_object_put(before);
	return rc;
}
