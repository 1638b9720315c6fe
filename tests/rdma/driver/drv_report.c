/* Samples and figures, and how they are printed. Main thread. */
#include "drv.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void drv_samples_add(struct drv_samples *samples, double value)
{
	if (samples->n == samples->max) {
		samples->max = samples->max != 0 ? 2 * samples->max : 256;
		samples->values = realloc(samples->values, samples->max * sizeof(double));
		if (samples->values == NULL)
			drv_die("no memory for samples");
	}
	samples->values[samples->n++] = value;
}

static int double_compare(const void *a, const void *b)
{
	double x = *(const double *)a;
	double y = *(const double *)b;

	return x < y ? -1 : x > y;
}

double drv_samples_at(struct drv_samples *samples, double q)
{
	double rank = ceil(q * (double)samples->n);

	if (samples->n == 0)
		return 0;
	qsort(samples->values, samples->n, sizeof(double), double_compare);
	return samples->values[rank < 1 ? 0 : (size_t)rank - 1];
}

void drv_samples_fini(struct drv_samples *samples)
{
	free(samples->values);
	memset(samples, 0, sizeof(*samples));
}

static struct drv_figure *figure_add(struct drv_report *report, const char *key)
{
	struct drv_figure *figure;

	if (report->n == DRV_MAX_FIGURES)
		drv_die("more than %d figures", DRV_MAX_FIGURES);
	figure = &report->figures[report->n++];
	memset(figure, 0, sizeof(*figure));
	snprintf(figure->key, sizeof(figure->key), "%s", key);
	return figure;
}

void drv_report_u64(struct drv_report *report, const char *key, uint64_t value)
{
	struct drv_figure *figure = figure_add(report, key);

	snprintf(figure->text, sizeof(figure->text), "%llu", (unsigned long long)value);
}

void drv_report_ms(struct drv_report *report, const char *key, double value)
{
	struct drv_figure *figure = figure_add(report, key);

	snprintf(figure->text, sizeof(figure->text), "%.3f", value);
}

void drv_report_str(struct drv_report *report, const char *key, const char *value)
{
	struct drv_figure *figure = figure_add(report, key);
	size_t n = 0;

	figure->quoted = true;
	for (; *value != '\0' && n + 1 < sizeof(figure->text); value++)
		figure->text[n++] = *value >= ' ' && *value != '"' && *value != '\\' ? *value : ' ';
}

void drv_report_samples(struct drv_report *report, const char *key, struct drv_samples *samples)
{
	static const struct {
		const char *name;
		double q;
	} points[] = {{"p50", 0.5}, {"p99", 0.99}, {"max", 1}};
	char name[sizeof(report->figures[0].key)];

	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++) {
		snprintf(name, sizeof(name), "%s_%s_ms", key, points[i].name);
		drv_report_ms(report, name, drv_samples_at(samples, points[i].q));
	}
}

void drv_report_merge(struct drv_report *report, const char *prefix, const char *lines)
{
	char key[40];
	char value[40];
	char name[sizeof(report->figures[0].key)];
	int used;

	while (sscanf(lines, " %39[^=\n]=%39[0-9.]%n", key, value, &used) == 2) {
		snprintf(name, sizeof(name), "%s%s", prefix, key);
		snprintf(figure_add(report, name)->text, sizeof(report->figures[0].text), "%s",
			 value);
		lines += used;
	}
}

size_t drv_report_text(const struct drv_report *report, char *buf, size_t max)
{
	size_t len = 0;

	for (unsigned i = 0; i < report->n && len + 1 < max; i++)
		len += (size_t)snprintf(buf + len, max - len, "%s=%s\n", report->figures[i].key,
					report->figures[i].text);
	return len < max ? len : max - 1;
}

void drv_report_print(const struct drv_report *report)
{
	for (unsigned i = 0; i < report->n; i++)
		printf("%s=%s\n", report->figures[i].key, report->figures[i].text);
	for (unsigned i = 0; i < report->n; i++) {
		const struct drv_figure *figure = &report->figures[i];
		const char *quote = figure->quoted ? "\"" : "";

		printf("%s\"%s\": %s%s%s", i == 0 ? "{" : ", ", figure->key, quote, figure->text,
		       quote);
	}
	puts("}");
	fflush(stdout);
}
