/* The command line of kvxferctl: global options may stand before or after the command. Only reads
 * argv and prints help; runs nothing. */
#include "ctl.h"

#include <stdlib.h>
#include <string.h>

#define MAX_FLAGS 8u
#define END(code) ((code) + 256)

struct parse {
	int argc;
	char **argv;
	int at;
	struct kvx_ctl_flag flags[MAX_FLAGS];
	unsigned n_flags;
};

void kvx_ctl_help(const struct kvx_ctl_command *command, FILE *f)
{
	if (command) {
		fprintf(f, "usage: kvxferctl [OPTIONS] %s%s%s\n%s\n", command->name,
			command->synopsis[0] ? " " : "", command->synopsis, command->help);
	} else {
		fprintf(f, "usage: kvxferctl [OPTIONS] COMMAND [ARGUMENTS]\n\ncommands:\n");
		for (const struct kvx_ctl_command *c = kvx_ctl_commands; c->name; c++) {
			char *usage = kvx_tool_printf("%s %s", c->name, c->synopsis);

			fprintf(f, "  %-38s %s\n", usage, c->help);
			free(usage);
		}
	}
	fprintf(f,
		"\noptions:\n"
		"  --socket PATH   the daemon's socket (default $KVXFER_SOCKET, else the "
		"system's)\n"
		"  --json          print JSON\n"
		"  --timeout SEC   longest wait for the daemon (default 10)\n"
		"  -V, --version   the version of this program\n"
		"  -h, --help      this text\n"
		"\nexit codes: 0 ok, 1 failed or finding, 2 usage, 3 daemon not reachable, 4 not "
		"permitted\n");
}

static int usage_error(const struct kvx_ctl_command *command, const char *what, const char *word)
{
	kvx_tool_error("%s%s%s; see kvxferctl %s%s--help", what, word ? " " : "", word ? word : "",
		       command ? command->name : "", command ? " " : "");
	return END(KVX_CTL_USAGE);
}

/* The value of option `name` at argv[at]: "--name=value" or the next word. NULL: none there. */
static const char *parse_value(struct parse *parse, const char *name)
{
	const char *word = parse->argv[parse->at];
	size_t len = strlen(name);

	if (word[len] == '=')
		return word + len + 1;
	if (parse->at + 1 >= parse->argc)
		return NULL;
	return parse->argv[++parse->at];
}

static bool word_is(const char *word, const char *name, bool takes_value)
{
	size_t len = strlen(name);

	if (strncmp(word, name, len) != 0)
		return false;
	return word[len] == '\0' || (takes_value && word[len] == '=');
}

/* 1: it was a global option; 0: not; else an end code. */
static int parse_global(struct kvx_ctl *ctl, struct parse *parse,
			const struct kvx_ctl_command *command)
{
	const char *word = parse->argv[parse->at];
	const char *value;
	double seconds;

	if (strcmp(word, "-h") == 0 || strcmp(word, "--help") == 0) {
		kvx_ctl_help(command, stdout);
		return END(KVX_CTL_OK);
	}
	if (strcmp(word, "-V") == 0 || strcmp(word, "--version") == 0) {
		printf("kvxferctl %s\n", KVX_VERSION);
		return END(KVX_CTL_OK);
	}
	if (strcmp(word, "--json") == 0) {
		ctl->json = true;
		return 1;
	}
	if (word_is(word, "--socket", true)) {
		ctl->socket = parse_value(parse, "--socket");
		return ctl->socket ? 1 : usage_error(command, "--socket needs a path", NULL);
	}
	if (word_is(word, "--timeout", true)) {
		value = parse_value(parse, "--timeout");
		if (!value || kvx_parse_double(value, 0.001, 3600, &seconds) != 0)
			return usage_error(command, "--timeout needs seconds, 0.001 to 3600", NULL);
		ctl->timeout_ms = (int)(seconds * 1000);
		return 1;
	}
	return 0;
}

static int parse_flag(struct parse *parse, const struct kvx_ctl_command *command)
{
	const char *word = parse->argv[parse->at];

	for (unsigned i = 0; i < parse->n_flags; i++) {
		struct kvx_ctl_flag *flag = &parse->flags[i];

		if (!word_is(word, flag->name, flag->kind != KVX_FLAG_PLAIN))
			continue;
		if (flag->set)
			*flag->set = true;
		if (flag->kind == KVX_FLAG_PLAIN)
			return 1;
		const char *next = parse->at + 1 < parse->argc ? parse->argv[parse->at + 1] : "";

		if (flag->kind == KVX_FLAG_OPTIONAL && word[strlen(flag->name)] != '=' &&
		    !(next[0] >= '0' && next[0] <= '9'))
			return 1;
		*flag->value = parse_value(parse, flag->name);
		return *flag->value ? 1 : usage_error(command, "a value is missing for", word);
	}
	return usage_error(command, "unknown option", word);
}

static const struct kvx_ctl_command *command_find(const char *name)
{
	for (const struct kvx_ctl_command *c = kvx_ctl_commands; c->name; c++)
		if (strcmp(c->name, name) == 0)
			return c;
	return NULL;
}

static int parse_word(struct kvx_ctl *ctl, struct parse *parse,
		      const struct kvx_ctl_command **command)
{
	const char *word = parse->argv[parse->at];

	if (*command) {
		if (ctl->n_args >= (*command)->max_args)
			return usage_error(*command, "too many arguments:", word);
		ctl->args[ctl->n_args++] = word;
		return 1;
	}
	if (strcmp(word, "help") == 0) {
		kvx_ctl_help(NULL, stdout);
		return END(KVX_CTL_OK);
	}
	*command = command_find(word);
	if (!*command)
		return usage_error(NULL, "unknown command", word);
	if ((*command)->flags)
		parse->n_flags = (*command)->flags(parse->flags);
	return 1;
}

int kvx_ctl_parse(struct kvx_ctl *ctl, int argc, char **argv,
		  const struct kvx_ctl_command **out_command)
{
	struct parse parse = {.argc = argc, .argv = argv};
	const struct kvx_ctl_command *command = NULL;

	for (parse.at = 1; parse.at < argc; parse.at++) {
		const char *word = argv[parse.at];
		int rc = parse_global(ctl, &parse, command);

		if (rc == 0 && word[0] == '-' && word[1] != '\0')
			rc = parse_flag(&parse, command);
		else if (rc == 0)
			rc = parse_word(ctl, &parse, &command);
		if (rc != 1)
			return rc;
	}
	if (!command) {
		kvx_ctl_help(NULL, stderr);
		return END(KVX_CTL_USAGE);
	}
	if (ctl->n_args < command->min_args)
		return usage_error(command, "an argument is missing", NULL);
	*out_command = command;
	return KVX_CTL_OK;
}
