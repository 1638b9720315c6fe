/* A configuration file into a struct kvx_config. inih splits lines; what inih would accept in
 * silence is refused here before it sees it: it cuts long lines, takes indented lines for
 * continued values, ignores what follows ']', and stops at a NUL. So it is given one clean line at
 * a time, which is also how each error knows its line. Main thread, at start and at SIGHUP. */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "config_keys.h"

#define MAX_KEYS 128u

struct file_state {
	FILE *f;
	const char *path;
	struct kvx_config config;
	struct kvx_why *why;
	char *line; /* getline(3) */
	size_t line_size;
	unsigned lineno;
	unsigned first_line[MAX_KEYS]; /* where each key was given; 0: not yet */
	int err;
};

static int file_refuse(struct file_state *state, const char *reason)
{
	state->err = kvx_why(state->why, -EINVAL, "%s:%u: %s", state->path, state->lineno, reason);
	return state->err;
}

static int file_on_section(struct file_state *state, const char *line)
{
	const char *end = strchr(line, ']');
	char name[64], reason[160];
	const char *guess;

	if (end == NULL)
		return file_refuse(state, "']' is missing after the section's name");
	if (end[1] != '\0')
		return file_refuse(state, "only a section's name may stand on its line");
	snprintf(name, sizeof(name), "%.*s", (int)(end - line - 1), line + 1);
	if (kvx_config_section_exists(name))
		return 0;
	guess = kvx_config_section_guess(name);
	snprintf(reason, sizeof(reason), "unknown section [%s]%s%s%s", name,
		 guess != NULL ? "; did you mean [" : "", guess != NULL ? guess : "",
		 guess != NULL ? "]?" : "");
	return file_refuse(state, reason);
}

static int file_on_pair(struct file_state *state, const char *line)
{
	const char *equals = strchr(line, '=');

	if (equals == NULL || equals == line || memchr(line, ':', (size_t)(equals - line)) != NULL)
		return file_refuse(state, "expected 'key = value', '[section]' or a comment with "
					  "'#' at its beginning");
	return 0;
}

/* The line without blanks around it; "" for a comment. NULL: refused. */
static char *file_clean_line(struct file_state *state, size_t len)
{
	char *line = state->line;

	if (strlen(line) != len) {
		file_refuse(state, "NUL byte in the line");
		return NULL;
	}
	if (state->lineno == 1 && strncmp(line, "\xef\xbb\xbf", 3) == 0)
		line += 3;
	len = strlen(line);
	while (len > 0 && isspace((unsigned char)line[len - 1]))
		line[--len] = '\0';
	while (isspace((unsigned char)*line))
		line++;
	if (*line == '#' || *line == ';')
		return line + strlen(line);
	return line;
}

/* What inih reads lines with. */
static char *file_read_line(char *str, int num, void *stream)
{
	struct file_state *state = stream;
	ssize_t len;
	char *line;

	if (state->err < 0)
		return NULL;
	errno = 0;
	len = getline(&state->line, &state->line_size, state->f);
	if (len < 0) {
		if (errno != 0)
			state->err =
			    kvx_why(state->why, -errno, "%s: %s", state->path, strerror(errno));
		return NULL;
	}
	state->lineno++;
	line = file_clean_line(state, (size_t)len);
	if (line == NULL)
		return NULL;
	if (strlen(line) + 2 > (size_t)num) {
		file_refuse(state, "the line is too long");
		return NULL;
	}
	if (*line == '[')
		file_on_section(state, line);
	else if (*line != '\0')
		file_on_pair(state, line);
	if (state->err < 0)
		return NULL;
	snprintf(str, (size_t)num, "%s\n", line);
	return str;
}

static int file_refuse_key(struct file_state *state, const char *section, const char *name)
{
	const struct kvx_config_key *guess = kvx_config_key_guess(section, name);
	char reason[240];

	if (section[0] == '\0')
		snprintf(reason, sizeof(reason), "key %s stands before the first [section]", name);
	else if (guess == NULL)
		snprintf(reason, sizeof(reason), "unknown key %s in [%s]", name, section);
	else
		snprintf(reason, sizeof(reason), "unknown key %s in [%s]; did you mean %s%s%s%s?",
			 name, section, guess->name,
			 strcmp(guess->section, section) != 0 ? " in [" : "",
			 strcmp(guess->section, section) != 0 ? guess->section : "",
			 strcmp(guess->section, section) != 0 ? "]" : "");
	return file_refuse(state, reason);
}

/* inih's handler: nonzero is success. */
static int file_on_value(void *user, const char *section, const char *name, const char *value)
{
	struct file_state *state = user;
	const struct kvx_config_key *key = kvx_config_key_find(section, name);
	struct kvx_why reason;
	char twice[96];
	unsigned i;

	if (key == NULL)
		return file_refuse_key(state, section, name) == 0;
	i = (unsigned)(key - kvx_config_keys);
	if (state->first_line[i] != 0) {
		snprintf(twice, sizeof(twice), "%s.%s is given twice, first in line %u", section,
			 name, state->first_line[i]);
		return file_refuse(state, twice) == 0;
	}
	state->first_line[i] = state->lineno;
	if (kvx_config_value_set(key, value, &state->config, &reason) < 0)
		return file_refuse(state, reason.text) == 0;
	return 1;
}

int kvx_config_load(const char *path, struct kvx_config *config, struct kvx_why *why)
{
	struct file_state state = {.path = path, .why = why, .config = *config};
	int bad_line;

	kvx_assert(kvx_config_n_keys <= MAX_KEYS);
	state.f = fopen(path, "re");
	if (state.f == NULL)
		return kvx_why(why, -errno, "%s: %s", path, strerror(errno));
	bad_line = ini_parse_stream(file_read_line, &state, file_on_value, &state);
	if (state.err == 0 && bad_line != 0) {
		state.lineno = (unsigned)bad_line;
		file_refuse(&state, "not a line of a configuration file");
	}
	free(state.line);
	fclose(state.f);
	if (state.err == 0)
		*config = state.config;
	return state.err;
}
