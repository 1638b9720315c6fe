/* kvxferctl top: the node's rates, its workers and its running transfers, refreshed until 'q'.
 * Takes the terminal out of line mode while it runs and gives it back on every way out. */
#include "ctl.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

static const char *delay_text;
static const char *rounds_text;

static const struct kvx_column worker_columns[] = {
    {"WORKER", KVX_LEFT, KVX_CUT},      {"TRANSPORT", KVX_LEFT, KVX_KEEP},
    {"RATE", KVX_RIGHT, KVX_KEEP},      {"OPS/S", KVX_RIGHT, KVX_KEEP},
    {"IN FLIGHT", KVX_RIGHT, KVX_KEEP}, {"ERRORS", KVX_RIGHT, KVX_KEEP},
};

struct top {
	struct json_object *before; /* stats of the round before */
	bool tty;
	bool raw;
	struct termios saved;
};

unsigned kvx_cmd_top_flags(struct kvx_ctl_flag *flags)
{
	flags[0] = (struct kvx_ctl_flag){"-d", KVX_FLAG_VALUE, NULL, &delay_text};
	flags[1] = (struct kvx_ctl_flag){"-n", KVX_FLAG_VALUE, NULL, &rounds_text};
	return 2;
}

static struct json_object *worker_before(const struct top *top, const char *name)
{
	struct json_object *workers = kvx_json_array(top->before, "workers");

	for (size_t i = 0; i < kvx_json_length(workers); i++)
		if (strcmp(kvx_json_str(kvx_json_at(workers, i), "name"), name) == 0)
			return kvx_json_at(workers, i);
	return NULL;
}

/* Difference of a counter of one worker to the round before, never below 0. */
static double worker_delta(const struct top *top, struct json_object *worker, const char *key)
{
	struct json_object *before = worker_before(top, kvx_json_str(worker, "name"));
	uint64_t now = kvx_json_u64(worker, key), was = kvx_json_u64(before, key);

	return before && now > was ? (double)(now - was) : 0;
}

static void print_workers(const struct top *top, struct json_object *stats, double seconds)
{
	struct json_object *workers = kvx_json_array(stats, "workers");
	struct kvx_table *table = kvx_table_create(worker_columns, 6);
	double bytes = 0, ops = 0;
	char buf[KVX_UNIT_BYTES];

	for (size_t i = 0; i < kvx_json_length(workers); i++) {
		struct json_object *w = kvx_json_at(workers, i);
		double b = worker_delta(top, w, "bytes"), o = worker_delta(top, w, "ops");

		bytes += b;
		ops += o;
		kvx_table_cell(table, "%s", kvx_json_str(w, "name"));
		kvx_table_cell(table, "%s", kvx_json_str(w, "transport"));
		kvx_table_cell(table, "%s", kvx_unit_rate(buf, seconds > 0 ? b / seconds : 0));
		kvx_table_cell(table, "%.0f", seconds > 0 ? o / seconds : 0);
		kvx_table_cell(table, "%s", kvx_json_str(w, "in_flight"));
		kvx_table_cell(table, "%s", kvx_json_str(w, "errors"));
	}
	printf("all workers: %s, %.0f ops/s\n\n",
	       kvx_unit_rate(buf, seconds > 0 ? bytes / seconds : 0),
	       seconds > 0 ? ops / seconds : 0);
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static void print_transfers(struct json_object *obj, unsigned max)
{
	struct json_object *live = kvx_json_array(obj, "live"),
			   *ended = kvx_json_array(obj, "ended");
	struct kvx_table *table = kvx_transfers_table();
	size_t n_live = kvx_json_length(live), n = 0;

	for (size_t i = 0; i < n_live && n < max; i++, n++)
		kvx_transfers_row(table, kvx_json_at(live, i));
	for (size_t i = 0; i < kvx_json_length(ended) && n < max; i++, n++)
		kvx_transfers_row(table, kvx_json_at(ended, i));
	printf("\ntransfers: %zu running, then the last that ended\n", n_live);
	kvx_table_print(table, stdout);
	kvx_table_destroy(table);
}

static int round_json(struct kvx_ctl *ctl, struct json_object *status, struct json_object *stats,
		      struct json_object *transfers)
{
	struct json_object *all;

	if (!ctl->json)
		return 0;
	all = json_object_new_object();
	json_object_object_add(all, "status", json_object_get(status));
	json_object_object_add(all, "stats", json_object_get(stats));
	json_object_object_add(all, "transfers", json_object_get(transfers));
	kvx_json_print(all, stdout);
	json_object_put(all);
	return 1;
}

static void round_print(const struct top *top, struct json_object *status,
			struct json_object *stats, struct json_object *transfers)
{
	char age[KVX_UNIT_BYTES], bytes[KVX_UNIT_BYTES];
	double seconds = 0;

	if (top->before)
		seconds =
		    (double)(kvx_json_u64(stats, "now_ns") - kvx_json_u64(top->before, "now_ns")) /
		    1e9;
	if (top->tty)
		printf("\033[H\033[J");
	printf("kvxferd %s, up %s, %s clients, %s regions (%s), %s of %s peers up%s\n",
	       kvx_json_str(status, "state"), kvx_unit_age(age, kvx_json_u64(status, "uptime_ns")),
	       kvx_json_str(status, "clients"), kvx_json_str(status, "regions"),
	       kvx_unit_bytes(bytes, kvx_json_u64(status, "region_bytes")),
	       kvx_json_str(status, "peers_up"), kvx_json_str(status, "peers"),
	       top->raw ? "; q ends" : "");
	print_workers(top, stats, seconds);
	print_transfers(transfers, 16);
}

static int top_round(struct kvx_ctl *ctl, struct top *top)
{
	struct json_object *status = NULL, *stats = NULL, *transfers = NULL;
	int rc = kvx_ctl_query(ctl, "status", NULL, &status);

	if (rc == KVX_CTL_OK)
		rc = kvx_ctl_query(ctl, "stats", NULL, &stats);
	if (rc == KVX_CTL_OK)
		rc = kvx_ctl_query(ctl, "transfers", NULL, &transfers);
	if (rc == KVX_CTL_OK) {
		if (!round_json(ctl, status, stats, transfers))
			round_print(top, status, stats, transfers);
		json_object_put(top->before);
		top->before = json_object_get(stats);
	}
	json_object_put(status);
	json_object_put(stats);
	json_object_put(transfers);
	return rc;
}

static void top_start(struct top *top, bool json)
{
	struct termios raw;

	top->tty = !json && isatty(STDOUT_FILENO);
	if (!top->tty || !isatty(STDIN_FILENO) || tcgetattr(STDIN_FILENO, &top->saved) != 0)
		return;
	raw = top->saved;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	top->raw = tcsetattr(STDIN_FILENO, TCSANOW, &raw) == 0;
}

int kvx_cmd_top(struct kvx_ctl *ctl)
{
	struct top top = {0};
	uint64_t rounds = UINT64_MAX;
	double delay = 1;
	int rc = KVX_CTL_OK;

	if (rounds_text && kvx_parse_u64(rounds_text, 1, 1000000000, &rounds) != 0) {
		kvx_tool_error("-n needs a number of rounds, 1 or more");
		return KVX_CTL_USAGE;
	}
	if (delay_text && kvx_ctl_seconds(delay_text, &delay) != KVX_CTL_OK)
		return KVX_CTL_USAGE;
	top_start(&top, ctl->json);
	for (uint64_t i = 0; i < rounds && rc == KVX_CTL_OK; i++) {
		if (i > 0 && !kvx_ctl_sleep(delay, top.raw))
			break;
		rc = top_round(ctl, &top);
	}
	if (top.raw)
		tcsetattr(STDIN_FILENO, TCSANOW, &top.saved);
	json_object_put(top.before);
	return rc;
}
