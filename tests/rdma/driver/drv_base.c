/* Clock, random numbers, flags and the control FIFO of the guest-side programs. Main thread. */
#include "drv.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

uint64_t drv_now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

uint64_t drv_ms(uint64_t ms)
{
	return ms * 1000000ull;
}

double drv_as_ms(uint64_t ns)
{
	return (double)ns / 1e6;
}

void drv_sleep_ms(uint64_t ms)
{
	struct timespec left = {(time_t)(ms / 1000), (long)(ms % 1000) * 1000000};

	while (nanosleep(&left, &left) != 0 && errno == EINTR)
		;
}

void drv_die(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	fputs("error: ", stderr);
	vfprintf(stderr, format, list);
	fputc('\n', stderr);
	va_end(list);
	fflush(NULL);
	exit(DRV_UNUSABLE);
}

void drv_say(const char *format, ...)
{
	va_list list;

	va_start(list, format);
	printf("at_ms=%.1f ", drv_as_ms(drv_now_ns()));
	vprintf(format, list);
	putchar('\n');
	va_end(list);
	fflush(stdout);
}

uint64_t drv_mix(uint64_t z)
{
	z += 0x9e3779b97f4a7c15ull;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint64_t drv_random_next(struct drv_random *random)
{
	uint64_t value = drv_mix(random->state);

	random->state += 0x9e3779b97f4a7c15ull;
	return value;
}

uint64_t drv_random_below(struct drv_random *random, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)drv_random_next(random) * n) >> 64);
}

bool drv_random_pct(struct drv_random *random, unsigned pct)
{
	return drv_random_below(random, 100) < pct;
}

void drv_args_init(struct drv_args *args, int argc, char **argv)
{
	memset(args, 0, sizeof(*args));
	if (argc > DRV_MAX_FLAGS)
		drv_die("more than %d arguments", DRV_MAX_FLAGS);
	args->argc = argc;
	args->argv = argv;
}

int drv_main(const char *executable, const struct drv_program *programs, size_t n, int argc,
	     char **argv)
{
	struct drv_args args;

	for (size_t k = 0; argc > 1 && k < n; k++) {
		if (strcmp(argv[1], programs[k].name) != 0)
			continue;
		drv_args_init(&args, argc - 2, argv + 2);
		return programs[k].main(&args);
	}
	for (size_t k = 0; k < n; k++)
		fprintf(stderr, "%s %s: %s\n", executable, programs[k].name, programs[k].what);
	return DRV_UNUSABLE;
}

const char *drv_arg_str(struct drv_args *args, const char *flag, const char *fallback)
{
	const char *value = fallback;

	for (int i = 0; i + 1 < args->argc; i += 2) {
		if (strcmp(args->argv[i], flag) != 0)
			continue;
		args->used[i] = true;
		value = args->argv[i + 1];
	}
	return value;
}

uint64_t drv_parse_u64(const char *text, const char *what)
{
	char *end;
	uint64_t value = strtoull(text, &end, 0);
	unsigned shift = 0;

	if (end == text || text[0] == '-')
		drv_die("%s %s: not a number", what, text);
	if (*end == 'K')
		shift = 10;
	else if (*end == 'M')
		shift = 20;
	else if (*end == 'G')
		shift = 30;
	if (end[shift != 0] != '\0')
		drv_die("%s %s: not a number", what, text);
	return value << shift;
}

uint64_t drv_arg_u64(struct drv_args *args, const char *flag, uint64_t fallback)
{
	const char *text = drv_arg_str(args, flag, NULL);

	return text != NULL ? drv_parse_u64(text, flag) : fallback;
}

void drv_arg_range(struct drv_args *args, const char *flag, uint64_t *out_min, uint64_t *out_max)
{
	const char *text = drv_arg_str(args, flag, NULL);
	char first[32];
	const char *colon;

	if (text == NULL)
		return;
	colon = strchr(text, ':');
	snprintf(first, sizeof(first), "%.*s",
		 colon != NULL ? (int)(colon - text) : (int)strlen(text), text);
	*out_min = drv_parse_u64(first, flag);
	*out_max = colon != NULL ? drv_parse_u64(colon + 1, flag) : *out_min;
	if (*out_max < *out_min)
		drv_die("%s %s: the second is less than the first", flag, text);
}

void drv_args_end(const struct drv_args *args)
{
	for (int i = 0; i < args->argc; i += 2)
		if (!args->used[i])
			drv_die("unknown flag %s", args->argv[i]);
	if (args->argc % 2 != 0)
		drv_die("%s needs a value", args->argv[args->argc - 1]);
}

void drv_control_open(struct drv_control *control, const char *path)
{
	memset(control, 0, sizeof(*control));
	control->fd = -1;
	if (path == NULL)
		return;
	if (strcmp(path, "-") == 0) {
		control->fd = STDIN_FILENO;
		fcntl(control->fd, F_SETFL, O_NONBLOCK);
		return;
	}
	unlink(path);
	if (mkfifo(path, 0600) != 0)
		drv_die("mkfifo %s: %s", path, strerror(errno));
	/* Open for writing too: never at its end between two writers. */
	control->fd = open(path, O_RDWR | O_NONBLOCK | O_CLOEXEC);
	if (control->fd < 0)
		drv_die("open %s: %s", path, strerror(errno));
}

const char *drv_control_next(struct drv_control *control)
{
	static char out[sizeof(control->line)];
	char *end;
	ssize_t n;
	size_t used;

	if (control->fd < 0)
		return NULL;
	n = read(control->fd, control->line + control->len,
		 sizeof(control->line) - 1 - control->len);
	if (n > 0)
		control->len += (size_t)n;
	if (n == 0 && control->len == 0) { /* nobody will ever say more */
		control->fd = -1;
		return "stop";
	}
	control->line[control->len] = '\0';
	end = strchr(control->line, '\n');
	if (end == NULL) {
		if (control->len == sizeof(control->line) - 1)
			control->len = 0; /* no line is that long */
		return NULL;
	}
	used = (size_t)(end - control->line) + 1;
	*end = '\0';
	memcpy(out, control->line, used);
	control->len -= used;
	memmove(control->line, control->line + used, control->len);
	return out;
}
