/* Prints the rows of the sweep: as a table, CSV or JSON. The ratio is throughput to the limit's
 * throughput (more is better, 1 is the limit), for single blocks time to the round trip's time
 * (less is better). */
#include <json-c/json.h>
#include <string.h>

#include "sweep.h"

static const char *const limit_names[KVX_SWEEP_N_LIMITS] = {"memcpy", "nt", "tcp", "tcp_sink",
							    "unix_socket"};

static double row_rate(const struct kvx_sweep_row *row, double seconds)
{
	return seconds > 0 ? (double)row->bytes / seconds / 1e9 : 0;
}

double kvx_sweep_value(struct kvx_sweep_row *row)
{
	double median = kvx_samples_median(&row->total);

	return kvx_shape_is_latency(&row->of.shape) ? median * 1e9 : row_rate(row, median);
}

double kvx_sweep_limit(struct kvx_sweep_row *row, const char **out_name)
{
	double best = 0;

	*out_name = "";
	if (kvx_shape_is_latency(&row->of.shape)) {
		*out_name = limit_names[KVX_SWEEP_PING];
		return kvx_samples_median(&row->limits[KVX_SWEEP_PING]) * 1e9;
	}
	/* The faster of the two kernels; of TCP the stream that does the same work: scatter too. */
	for (unsigned m = 0; m <= KVX_SWEEP_TCP; m++) {
		double rate = row_rate(row, kvx_samples_median(&row->limits[m]));

		if (rate > best) {
			best = rate;
			*out_name = limit_names[m];
		}
	}
	return best;
}

static double row_ratio(struct kvx_sweep_row *row)
{
	const char *name;
	double limit = kvx_sweep_limit(row, &name);

	return limit > 0 ? kvx_sweep_value(row) / limit : 0;
}

static const struct kvx_column columns[] = {
    {"", KVX_LEFT, KVX_KEEP},        {"BLOCKS", KVX_LEFT, KVX_KEEP},
    {"OP", KVX_LEFT, KVX_KEEP},      {"PATH", KVX_LEFT, KVX_KEEP},
    {"GB/S", KVX_RIGHT, KVX_KEEP},   {"SPREAD", KVX_LEFT, KVX_HIDE},
    {"P50", KVX_RIGHT, KVX_KEEP},    {"P99", KVX_RIGHT, KVX_KEEP},
    {"SUBMIT", KVX_RIGHT, KVX_HIDE}, {"CPU S/GIB", KVX_RIGHT, KVX_HIDE},
    {"LIMIT", KVX_RIGHT, KVX_KEEP},  {"OF", KVX_LEFT, KVX_KEEP},
    {"RATIO", KVX_RIGHT, KVX_KEEP},
};

static char *path_text(char *buf, size_t buf_bytes, const struct kvx_sweep_row *row)
{
	if (row->of.workers)
		snprintf(buf, buf_bytes, "%s x%u", row->transport, row->of.workers);
	else
		snprintf(buf, buf_bytes, "%s", row->transport);
	return buf;
}

static void row_print(struct kvx_table *table, struct kvx_sweep_row *row)
{
	bool latency = kvx_shape_is_latency(&row->of.shape);
	char text[KVX_SHAPE_TEXT], unit[KVX_UNIT_BYTES], path[48];
	const char *name;
	double limit = kvx_sweep_limit(row, &name);

	kvx_table_cell(table, "%s", row->of.shape.name);
	kvx_table_cell(table, "%s", kvx_shape_text(text, &row->of.shape));
	kvx_table_cell(table, "%s", row->of.op == KVXFER_READ ? "read" : "write");
	kvx_table_cell(table, "%s", path_text(path, sizeof(path), row));
	kvx_table_cell(table, "%.2f", row_rate(row, kvx_samples_median(&row->total)));
	kvx_table_cell(table, "%.2f-%.2f", row_rate(row, kvx_samples_at(&row->total, 1)),
		       row_rate(row, kvx_samples_at(&row->total, 0)));
	kvx_table_cell(table, "%s",
		       kvx_unit_ns(unit, (uint64_t)(kvx_samples_median(&row->total) * 1e9)));
	kvx_table_cell(table, "%s",
		       kvx_unit_ns(unit, (uint64_t)(kvx_samples_at(&row->total, 0.99) * 1e9)));
	kvx_table_cell(table, "%s",
		       kvx_unit_ns(unit, (uint64_t)(kvx_samples_median(&row->submit) * 1e9)));
	kvx_table_cell(table, "%.3f", row->cpu_per_gib);
	if (latency)
		kvx_table_cell(table, "%s", kvx_unit_ns(unit, (uint64_t)limit));
	else
		kvx_table_cell(table, "%.2f", limit);
	kvx_table_cell(table, "%s", name);
	kvx_table_cell(table, "%.2f", row_ratio(row));
}

void kvx_sweep_print(struct kvx_sweep_row *rows, unsigned n, FILE *f)
{
	struct kvx_table *table = kvx_table_create(columns, sizeof(columns) / sizeof(columns[0]));

	for (unsigned i = 0; i < n; i++)
		row_print(table, &rows[i]);
	kvx_table_print(table, f);
	kvx_table_destroy(table);
}

void kvx_sweep_print_csv(struct kvx_sweep_row *rows, unsigned n, FILE *f)
{
	fprintf(f,
		"shape,block_bytes,blocks,op,transport,workers,runs,gbps_median,gbps_min,gbps_max,"
		"p50_ns,p99_ns,submit_ns,submit_ns_per_op,engine_cpu_ns,cpu_s_per_gib,limit,"
		"limit_value,ratio\n");
	for (unsigned i = 0; i < n; i++) {
		struct kvx_sweep_row *row = &rows[i];
		double submit = kvx_samples_median(&row->submit) * 1e9;
		const char *name;
		double limit = kvx_sweep_limit(row, &name);

		fprintf(
		    f,
		    "%s,%llu,%u,%s,%s,%u,%u,%.4g,%.4g,%.4g,%.0f,%.0f,%.0f,%.3f,%.0f,%.4g,%s,%.4g,"
		    "%.4g\n",
		    row->of.shape.name, (unsigned long long)row->of.shape.block_bytes,
		    row->of.shape.n_blocks, row->of.op == KVXFER_READ ? "read" : "write",
		    row->transport, row->of.workers, row->total.n,
		    row_rate(row, kvx_samples_median(&row->total)),
		    row_rate(row, kvx_samples_at(&row->total, 1)),
		    row_rate(row, kvx_samples_at(&row->total, 0)),
		    kvx_samples_median(&row->total) * 1e9, kvx_samples_at(&row->total, 0.99) * 1e9,
		    submit, submit / row->of.shape.n_blocks,
		    kvx_samples_median(&row->engine_cpu) * 1e9, row->cpu_per_gib, name, limit,
		    row_ratio(row));
	}
}

static struct json_object *row_json(struct kvx_sweep_row *row)
{
	struct json_object *obj = json_object_new_object(), *limits = json_object_new_object();
	const char *name;
	double limit = kvx_sweep_limit(row, &name);

	kvx_json_set_str(obj, "shape", row->of.shape.name);
	kvx_json_set_u64(obj, "block_bytes", row->of.shape.block_bytes);
	kvx_json_set_u64(obj, "blocks", row->of.shape.n_blocks);
	kvx_json_set_str(obj, "op", row->of.op == KVXFER_READ ? "read" : "write");
	kvx_json_set_str(obj, "transport", row->transport);
	kvx_json_set_u64(obj, "copy_workers", row->of.workers);
	kvx_json_set_double(obj, "gbps", row_rate(row, kvx_samples_median(&row->total)));
	json_object_object_add(obj, "seconds", kvx_samples_json(&row->total));
	json_object_object_add(obj, "submit_seconds", kvx_samples_json(&row->submit));
	json_object_object_add(obj, "engine_cpu_seconds", kvx_samples_json(&row->engine_cpu));
	kvx_json_set_double(obj, "cpu_seconds_per_gib", row->cpu_per_gib);
	for (unsigned m = 0; m < KVX_SWEEP_N_LIMITS; m++)
		if (row->limits[m].n > 0)
			json_object_object_add(limits, limit_names[m],
					       kvx_samples_json(&row->limits[m]));
	json_object_object_add(obj, "limits_seconds", limits);
	kvx_json_set_str(obj, "limit", name);
	kvx_json_set_str(obj, "unit", kvx_shape_is_latency(&row->of.shape) ? "ns" : "GB/s");
	kvx_json_set_double(obj, "value", kvx_sweep_value(row));
	kvx_json_set_double(obj, "limit_value", limit);
	kvx_json_set_double(obj, "ratio", row_ratio(row));
	return obj;
}

void kvx_sweep_print_json(struct kvx_sweep_row *rows, unsigned n,
			  const struct kvx_sweep_options *options, FILE *f)
{
	struct json_object *obj = json_object_new_object(), *list = json_object_new_array();

	for (unsigned i = 0; i < n; i++)
		json_object_array_add(list, row_json(&rows[i]));
	json_object_object_add(obj, "machine", kvx_machine_json());
	kvx_json_set_u64(obj, "region_bytes", options->region_bytes);
	kvx_json_set_u64(obj, "runs", options->runs);
	kvx_json_set_bool(obj, "explicit_ops", options->explicit_ops);
	json_object_object_add(obj, "rows", list);
	kvx_json_print(obj, f);
	json_object_put(obj);
}
