/* kvxfer-bench: shows and measures transfers through real daemons. Chooses the subcommand. */
#include "bench.h"

#include <signal.h>
#include <string.h>

#include "kvxfer/client.h"

struct command {
	const char *name;
	int (*run)(int argc, char **argv);
	const char *help;
};
static const struct command commands[] = {
    {"demo", kvx_bench_demo, "prefill and decode engines move KV caches, every byte verified"},
    {"sweep", kvx_bench_sweep,
     "block size x batch x op x path, as ratios to this machine's limits"},
    {"limits", kvx_bench_limits, "what this machine can do at all: copy, sockets, TCP"},
    {"submit", kvx_bench_submit, "what a submission costs the engine's thread"},
    {"latency", kvx_bench_latency, "one small block: submit to event"},
    {"idle", kvx_bench_idle, "CPU, wake-ups and memory of a daemon with idle clients"},
    {"replay", kvx_bench_replay, "a request trace between a prefill and a decode engine"},
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void help(FILE *f)
{
	fprintf(f, "usage: kvxfer-bench COMMAND [OPTIONS]\n\ncommands:\n");
	for (unsigned i = 0; i < N_COMMANDS; i++)
		fprintf(f, "  %-9s %s\n", commands[i].name, commands[i].help);
	fprintf(f, "\nkvxfer-bench COMMAND --help shows the options of a command.\n"
		   "exit codes: 0 ok, 1 a wrong byte or a failed transfer, 2 usage, 3 no daemon\n");
}

int main(int argc, char **argv)
{
	const char *name = argc > 1 ? argv[1] : "";

	kvx_tool_program = "kvxfer-bench";
	signal(SIGPIPE, SIG_IGN);
	if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
		help(stdout);
		return KVX_BENCH_OK;
	}
	if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
		printf("kvxfer-bench %s, library %s\n", KVX_VERSION, kvxfer_version());
		return KVX_BENCH_OK;
	}
	for (unsigned i = 0; i < N_COMMANDS; i++)
		if (strcmp(commands[i].name, name) == 0)
			return commands[i].run(argc - 1, argv + 1);
	if (*name)
		kvx_tool_error("unknown command %s", name);
	help(stderr);
	return KVX_BENCH_USAGE;
}
