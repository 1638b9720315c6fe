/* kvxferd: the command line, the signals and the loop. Everything else is the daemon's. Exit codes
 * are those of kvxferd(8). */
#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include <uv.h>

#include "base/log.h"
#include "base/roles.h"
#include "daemon.h"
#include "mem/guard.h"
#include "node_id.h"
#include "service.h"
#include "transport/gpu_try.h"

#define MAX_SETS 256

enum exit_code { EXIT_OK = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_CONFIG = 3, EXIT_IN_USE = 4 };

struct options {
	const char *config;         /* NULL: no file */
	const char *sets[MAX_SETS]; /* section.key=value, in order */
	unsigned n_sets;
	char own_sets[MAX_SETS][KVX_CONFIG_STR]; /* made of other options */
	bool print_config, check_config;
	bool has_node_id;
	uint8_t node_id[KVX_NODE_ID_BYTES];
};

struct run {
	struct options options;
	struct kvx_daemon *daemon;
	uv_loop_t loop;
	uv_signal_t signals[3];
	bool any_peer_port;
	bool make_socket_dir;
};

static void print_help(FILE *f)
{
	fputs(
	    "Usage: kvxferd [OPTION]...\n"
	    "Moves KV-cache blocks between the serving engines of this node, and to other nodes.\n"
	    "\n"
	    "  -c, --config FILE            configuration file (default: none, all defaults)\n"
	    "  -s, --set SECTION.KEY=VALUE  overrides one key; can be given many times\n"
	    "      --socket PATH            as --set daemon.socket=PATH; @NAME is abstract\n"
	    "      --listen HOST:PORT       as --set peer.listen=HOST:PORT; port 0: any\n"
	    "      --node-id ID             32 hex digits or a UUID, instead of the kept one\n"
	    "      --log-level LEVEL        error, warn, info, debug or trace\n"
	    "      --insecure-peers         allows a listen address other than loopback although\n"
	    "                               peers are not authenticated\n"
	    "      --print-config           prints the configuration, with all keys, and exits\n"
	    "      --check-config           checks the configuration and exits\n"
	    "  -V, --version                prints the version and exits\n"
	    "  -h, --help                   prints this and exits\n"
	    "\n"
	    "See kvxferd(8) and kvxferd.conf(5).\n",
	    f);
}

/* ---- the command line */

enum long_option {
	OPT_SOCKET = 256,
	OPT_LISTEN,
	OPT_NODE_ID,
	OPT_LOG,
	OPT_INSECURE,
	OPT_PRINT,
	OPT_CHECK
};

static int options_add_set(struct options *options, const char *set)
{
	if (options->n_sets == MAX_SETS) {
		fprintf(stderr, "kvxferd: more than %d settings on the command line\n", MAX_SETS);
		return -E2BIG;
	}
	options->sets[options->n_sets++] = set;
	return 0;
}

static int options_add_own(struct options *options, const char *key, const char *value)
{
	char *set;

	if (options->n_sets == MAX_SETS)
		return options_add_set(options, key);
	set = options->own_sets[options->n_sets];
	if (snprintf(set, KVX_CONFIG_STR, "%s=%s", key, value) >= KVX_CONFIG_STR) {
		fprintf(stderr, "kvxferd: %s: the value is too long\n", key);
		return -EINVAL;
	}
	return options_add_set(options, set);
}

static int options_set_node_id(struct options *options, const char *text)
{
	if (kvx_node_id_parse(text, options->node_id) < 0) {
		fprintf(stderr, "kvxferd: --node-id %s: must be 32 hex digits or a UUID\n", text);
		return -EINVAL;
	}
	options->has_node_id = true;
	return 0;
}

/* 0; 1: done, exit well; or -errno, told. */
static int options_take(struct options *options, int opt)
{
	switch (opt) {
	case 'c':
		options->config = optarg;
		return 0;
	case 's':
		return options_add_set(options, optarg);
	case OPT_SOCKET:
		return options_add_own(options, "daemon.socket", optarg);
	case OPT_LISTEN:
		return options_add_own(options, "peer.listen", optarg);
	case OPT_NODE_ID:
		return options_set_node_id(options, optarg);
	case OPT_LOG:
		return options_add_own(options, "daemon.log_level", optarg);
	case OPT_INSECURE:
		return options_add_set(options, "peer.insecure_peers=true");
	case OPT_PRINT:
		options->print_config = true;
		return 0;
	case OPT_CHECK:
		options->check_config = true;
		return 0;
	case 'V':
		printf("kvxferd %s\n", KVX_VERSION);
		return 1;
	case 'h':
		print_help(stdout);
		return 1;
	default:
		fprintf(stderr, "Try 'kvxferd --help'.\n");
		return -EINVAL;
	}
}

static int options_parse(struct options *options, int argc, char **argv)
{
	static const struct option long_options[] = {
	    {"config", required_argument, NULL, 'c'},
	    {"set", required_argument, NULL, 's'},
	    {"socket", required_argument, NULL, OPT_SOCKET},
	    {"listen", required_argument, NULL, OPT_LISTEN},
	    {"node-id", required_argument, NULL, OPT_NODE_ID},
	    {"log-level", required_argument, NULL, OPT_LOG},
	    {"insecure-peers", no_argument, NULL, OPT_INSECURE},
	    {"print-config", no_argument, NULL, OPT_PRINT},
	    {"check-config", no_argument, NULL, OPT_CHECK},
	    {"version", no_argument, NULL, 'V'},
	    {"help", no_argument, NULL, 'h'},
	    {NULL, 0, NULL, 0},
	};
	int opt, rc;

	while ((opt = getopt_long(argc, argv, "c:s:Vh", long_options, NULL)) != -1) {
		rc = options_take(options, opt);
		if (rc != 0)
			return rc;
	}
	if (optind < argc) {
		fprintf(stderr, "kvxferd: unexpected argument '%s'\nTry 'kvxferd --help'.\n",
			argv[optind]);
		return -EINVAL;
	}
	return 0;
}

/* ---- the configuration */

/* No user can run with nothing configured unless there is a place for the socket: where the usual
 * directory is missing, one under /tmp is made. */
static void config_place_socket(struct kvx_config *config)
{
	char dir[KVX_CONFIG_STR];
	struct stat st;
	char *slash;

	snprintf(dir, sizeof(dir), "%s", config->socket);
	slash = strrchr(dir, '/');
	if (geteuid() == 0 || slash == NULL)
		return;
	*slash = '\0';
	if (stat(dir, &st) < 0)
		snprintf(config->socket, sizeof(config->socket), "/tmp/kvxferd-%u/kvxferd.sock",
			 (unsigned)geteuid());
}

/* File, then command line. Socket and peer address are emptied first, so that it shows whether
 * anybody has named them. */
static int config_build(struct run *run, struct kvx_config *out, struct kvx_why *why)
{
	const struct options *options = &run->options;
	struct kvx_config config, defaults;
	unsigned i;
	int err = 0;

	kvx_config_defaults(&defaults);
	config = defaults;
	snprintf(config.peer_listen, sizeof(config.peer_listen), "?"); /* no file can say that */
	if (options->config != NULL)
		err = kvx_config_load(options->config, &config, why);
	for (i = 0; err == 0 && i < options->n_sets; i++)
		err = kvx_config_set(&config, options->sets[i], why);
	if (err < 0)
		return err;
	run->any_peer_port = strcmp(config.peer_listen, "?") == 0;
	if (run->any_peer_port)
		snprintf(config.peer_listen, sizeof(config.peer_listen), "%s",
			 defaults.peer_listen);
	run->make_socket_dir = config.socket[0] == '\0';
	err = kvx_config_finish(&config, why);
	if (err < 0)
		return err;
	if (run->make_socket_dir)
		config_place_socket(&config);
	*out = config;
	return 0;
}

/* ---- running */

static void on_signal(uv_signal_t *handle, int signo)
{
	struct run *run = handle->data;
	struct kvx_config fresh;
	struct kvx_why why = {""};

	kvx_assert_on_loop();
	if (run->daemon == NULL)
		return;
	if (signo != SIGHUP) {
		kvx_info("daemon: %s", signo == SIGTERM ? "SIGTERM" : "SIGINT");
		kvx_daemon_stop(run->daemon);
		return;
	}
	kvx_service_reloading();
	if (config_build(run, &fresh, &why) < 0)
		kvx_error("daemon: the configuration stays as it is: %s", why.text);
	else
		kvx_daemon_reload(run->daemon, &fresh);
	kvx_service_ready("running");
}

static void signals_open(struct run *run)
{
	static const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
	unsigned i;

	signal(SIGPIPE, SIG_IGN);
	for (i = 0; i < 3; i++) {
		uv_signal_init(&run->loop, &run->signals[i]);
		run->signals[i].data = run;
		uv_signal_start(&run->signals[i], on_signal, numbers[i]);
		uv_unref((uv_handle_t *)&run->signals[i]); /* they do not keep the loop alive */
	}
}

static void signals_close(struct run *run)
{
	unsigned i;

	for (i = 0; i < 3; i++)
		uv_close((uv_handle_t *)&run->signals[i], NULL);
	uv_run(&run->loop, UV_RUN_DEFAULT);
}

static void on_daemon_closed(void *arg)
{
	struct run *run = arg;

	run->daemon = NULL;
}

static void raise_fd_limit(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0 || limit.rlim_cur == limit.rlim_max)
		return;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		kvx_warn("daemon: cannot raise the limit of file descriptors: %s", strerror(errno));
}

static KVX_ON_LOOP int run_daemon(struct run *run, const struct kvx_config *config)
{
	struct kvx_listen_fd fds[KVX_LISTEN_FDS];
	struct kvx_why why = {""};
	struct kvx_daemon_conf conf = {
	    .loop = &run->loop,
	    .config = config,
	    .make_socket_dir = run->make_socket_dir,
	    .any_peer_port = run->any_peer_port,
	    .node_id = run->options.has_node_id ? run->options.node_id : NULL,
	    .listen_fds = fds,
	    .closed = on_daemon_closed,
	    .arg = run,
	};
	int err;

	err = kvx_service_listen_fds(fds, &why);
	if (err >= 0) {
		conf.n_listen_fds = (unsigned)err;
		err = kvx_daemon_open(&conf, &run->daemon, &why);
	}
	if (err < 0) {
		kvx_error("daemon: cannot start: %s",
			  why.text[0] != '\0' ? why.text : strerror(-err));
		return err == -EADDRINUSE ? EXIT_IN_USE : EXIT_FAILED;
	}
	uv_run(&run->loop, UV_RUN_DEFAULT);
	kvx_info("daemon: ended");
	return EXIT_OK;
}

static int run_loop(struct run *run, const struct kvx_config *config)
{
	int err;
	int rc;

	raise_fd_limit();
	err = kvx_guard_install();
	if (err == 0)
		err = uv_loop_init(&run->loop);
	if (err < 0) {
		kvx_error("daemon: cannot start: %s", strerror(-err));
		return EXIT_FAILED;
	}
	kvx_role_set_loop();
	kvx_assert_on_loop();
	signals_open(run);
	rc = run_daemon(run, config);
	signals_close(run);
	uv_loop_close(&run->loop);
	return rc;
}

int main(int argc, char **argv)
{
	static struct run run;
	struct kvx_config config;
	struct kvx_why why = {""};
	int rc;

	rc = options_parse(&run.options, argc, argv);
	if (rc != 0)
		return rc > 0 ? EXIT_OK : EXIT_USAGE;
	if (config_build(&run, &config, &why) < 0) {
		fprintf(stderr, "kvxferd: %s\n", why.text);
		return EXIT_CONFIG;
	}
	if (run.options.print_config) {
		kvx_config_print(&config, stdout);
		return EXIT_OK;
	}
	if (run.options.check_config) {
		printf("kvxferd: the configuration is valid\n");
		return EXIT_OK;
	}
	kvx_log_init((enum kvx_log_level)kvx_log_level_parse(config.log_level),
		     kvx_service_has_journal());
	signal(SIGTERM, SIG_DFL); /* some of libfabric's libraries exit(1) then */
	if (config.gpu_enable)
		kvx_gpu_try(&config.gpu); /* as long as there is one thread */
	return run_loop(&run, &config);
}
