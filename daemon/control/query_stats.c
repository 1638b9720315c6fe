/* The stats query: counters, latency histograms and what the workers count. Loop thread; reads
 * only. Names are stable: programs and dashboards hold on to them. */
#include "base/clock.h"
#include "control/query.h"

static KVX_ON_LOOP void counters_fill(const struct kvx_control *control, struct json_object *out)
{
	const struct kvx_xfers_stats *x = kvx_xfers_stats(kvx_node_xfers(control->conf.node));
	const struct kvx_control_stats *c = &control->stats;
	const struct {
		const char *name;
		uint64_t value;
	} counters[] = {
	    {"xfers_accepted", x->accepted},
	    {"xfers_refused", c->refused_xfers},
	    {"xfers_ok", x->ok},
	    {"xfers_failed", x->failed},
	    {"xfers_cancelled", x->cancelled},
	    {"xfers_deadline", x->deadline},
	    {"xfers_retries", x->retries},
	    {"waits", x->waits},
	    {"bytes_ok", x->bytes_ok},
	    {"pieces", x->pieces},
	    {"ops", x->ops},
	    {"clients_connected", c->connects},
	    {"clients_refused", c->refused_connects},
	    {"clients_disconnected", c->disconnects},
	    {"clients_kicked", c->kicked},
	    {"slow_readers", c->slow_readers},
	    {"frames", c->frames},
	    {"bad_frames", c->bad_frames},
	    {"stale_requests", c->stale_requests},
	    {"events", c->events},
	    {"arrivals_undelivered", c->arrivals_undelivered},
	    {"messages", c->messages},
	};
	struct json_object *obj = kvx_json_object(out, "counters");
	size_t i;

	for (i = 0; i < sizeof(counters) / sizeof(counters[0]); i++)
		kvx_json_u64(obj, counters[i].name, counters[i].value);
}

static void hist_fill(struct json_object *out, const char *name, const struct kvx_hist *hist)
{
	struct json_object *obj = kvx_json_object(out, name);

	kvx_json_u64(obj, "n", hist->n);
	kvx_json_u64(obj, "sum", hist->sum);
	kvx_json_u64(obj, "min", hist->n > 0 ? hist->min : 0);
	kvx_json_u64(obj, "max", hist->max);
	kvx_json_u64(obj, "p50", kvx_hist_quantile(hist, 0.5));
	kvx_json_u64(obj, "p90", kvx_hist_quantile(hist, 0.9));
	kvx_json_u64(obj, "p99", kvx_hist_quantile(hist, 0.99));
	kvx_json_u64(obj, "p999", kvx_hist_quantile(hist, 0.999));
}

static KVX_ON_LOOP void worker_fill(const struct kvx_worker *worker, const char *name,
				    struct json_object *row)
{
	const struct kvx_worker_stats *stats = kvx_worker_stats(worker);

	kvx_json_text(row, "name", name);
	kvx_json_text(row, "transport", kvx_worker_ops(worker)->name);
	kvx_json_u64(row, "ops", kvx_counter_get(&stats->ops));
	kvx_json_u64(row, "bytes", kvx_counter_get(&stats->bytes));
	kvx_json_u64(row, "batches", kvx_counter_get(&stats->batches));
	kvx_json_u64(row, "errors", kvx_counter_get(&stats->errors));
	kvx_json_u64(row, "sleeps", kvx_counter_get(&stats->sleeps));
	kvx_json_u64(row, "short_posts", kvx_counter_get(&stats->short_posts));
	kvx_json_u64(row, "in_flight", kvx_worker_in_flight(worker));
	kvx_query_dom_counters(worker, row);
}

void kvx_query_stats(const struct kvx_query *query, struct json_object *out)
{
	struct kvx_control *control = query->control;
	const struct kvx_xfers_stats *x = kvx_xfers_stats(kvx_node_xfers(control->conf.node));
	struct json_object *hists;
	struct json_object *workers;
	struct kvx_worker *worker;
	const char *name = "";
	uint64_t omitted = 0;
	unsigned i;

	kvx_json_u64(out, "now_ns", kvx_now_ns());
	counters_fill(control, out);
	hists = kvx_json_object(out, "histograms");
	hist_fill(hists, "latency_ns", &x->latency_ns);
	hist_fill(hists, "queue_ns", &x->queue_ns);
	hist_fill(hists, "wait_ns", &x->wait_ns);
	workers = kvx_json_list(out, "workers");
	for (i = 0; (worker = kvx_node_worker(control->conf.node, i, &name)) != NULL; i++) {
		struct json_object *row = kvx_json_row(workers, &omitted);

		if (row != NULL)
			worker_fill(worker, name, row);
	}
}
