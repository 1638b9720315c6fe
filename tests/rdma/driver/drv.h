/* What the guest-side programs of the RDMA tests share: clock, random numbers, flags, figures, and
 * the few words that a program prints. Single-threaded programs; every fatal error of set-up ends
 * the program with exit status 2 and one line that says why. */
#ifndef KVX_RDMA_DRV_H
#define KVX_RDMA_DRV_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Exit statuses: 0 all figures are as they must be, 1 one is not, 2 the program could not run. */
#define DRV_FAILED   1
#define DRV_UNUSABLE 2

_Noreturn void drv_die(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* One line "at_ms=... what" on stdout, at once: for people who read along, and for the harness. */
void drv_say(const char *format, ...) __attribute__((format(printf, 1, 2)));

uint64_t drv_now_ns(void); /* CLOCK_MONOTONIC */
uint64_t drv_ms(uint64_t ms);
double drv_as_ms(uint64_t ns);
void drv_sleep_ms(uint64_t ms);

/* splitmix64 */
struct drv_random {
	uint64_t state;
};
uint64_t drv_mix(uint64_t value);
uint64_t drv_random_next(struct drv_random *random);
uint64_t drv_random_below(struct drv_random *random, uint64_t n);
bool drv_random_pct(struct drv_random *random, unsigned pct);

/* Flags "--name value"; every flag given must be asked for before drv_args_end(). */
#define DRV_MAX_FLAGS 96
struct drv_args {
	int argc;
	char **argv;
	bool used[DRV_MAX_FLAGS];
};
void drv_args_init(struct drv_args *args, int argc, char **argv);
const char *drv_arg_str(struct drv_args *args, const char *flag, const char *fallback);
/* Decimal, with K, M or G for powers of 1024. */
uint64_t drv_arg_u64(struct drv_args *args, const char *flag, uint64_t fallback);
/* "A:B", or "A" for both. */
void drv_arg_range(struct drv_args *args, const char *flag, uint64_t *out_min, uint64_t *out_max);
void drv_args_end(const struct drv_args *args);
/* A program of an executable, and the main() of one that has several: the first word says which. */
struct drv_program {
	const char *name;
	int (*main)(struct drv_args *args);
	const char *what;
};
int drv_main(const char *executable, const struct drv_program *programs, size_t n, int argc,
	     char **argv);
uint64_t drv_parse_u64(const char *text, const char *what);

/* Samples in ms. */
struct drv_samples {
	double *values;
	size_t n, max;
};
void drv_samples_add(struct drv_samples *samples, double value);
double drv_samples_at(struct drv_samples *samples, double q); /* sorts; 0 when there are none */
void drv_samples_fini(struct drv_samples *samples);

/* The figures of a run: printed as key=value lines and once more as one line of JSON, the last one.
 */
#define DRV_MAX_FIGURES 512
struct drv_report {
	unsigned n;
	struct drv_figure {
		char key[56];
		char text[96];
		bool quoted;
	} figures[DRV_MAX_FIGURES];
};
void drv_report_u64(struct drv_report *report, const char *key, uint64_t value);
void drv_report_ms(struct drv_report *report, const char *key, double value);
void drv_report_str(struct drv_report *report, const char *key, const char *value);
/* p50, p99 and max of the samples, as KEY_p50_ms ... */
void drv_report_samples(struct drv_report *report, const char *key, struct drv_samples *samples);
/* Takes over "key=value" lines, numbers only, each key with the prefix. */
void drv_report_merge(struct drv_report *report, const char *prefix, const char *lines);
/* The same lines as text; length, at most max - 1. */
size_t drv_report_text(const struct drv_report *report, char *buf, size_t max);
void drv_report_print(const struct drv_report *report);

/* Lines of commands from standard input ("-"), whose end says "stop", or from a FIFO that the
 * program makes. */
struct drv_control {
	int fd; /* -1: none */
	char line[256];
	size_t len;
};
void drv_control_open(struct drv_control *control, const char *path);
/* Next whole line, without its end; NULL when there is none now. Valid until the next call. */
const char *drv_control_next(struct drv_control *control);

#endif
