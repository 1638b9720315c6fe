/* The daemon, as the subcommands see it: opened at the first query, answers parsed, every failure
 * told with cause and cure. */
#include "ctl.h"

#include <errno.h>
#include <json-c/json.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "kvxfer/client.h"

static volatile sig_atomic_t interrupted;

/* As the library finds it. */
const char *kvx_ctl_socket_path(const struct kvx_ctl *ctl)
{
	static const char system_path[] = "/run/kvxfer/kvxferd.sock";
	static char users[sizeof(((struct sockaddr_un *)0)->sun_path)];
	const char *env = getenv("KVXFER_SOCKET"), *dir = getenv("XDG_RUNTIME_DIR");
	int n;

	if (ctl->socket)
		return ctl->socket;
	if (env && *env)
		return env;
	if (!dir || *dir != '/' || access(system_path, F_OK) == 0 || errno != ENOENT)
		return system_path;
	n = snprintf(users, sizeof(users), "%s/kvxferd.sock", dir);
	return n > 0 && (size_t)n < sizeof(users) && access(users, F_OK) == 0 ? users : system_path;
}

int kvx_ctl_open(struct kvx_ctl *ctl)
{
	struct kvxfer_client_options options = {
	    .struct_bytes = sizeof(options),
	    .socket_path = ctl->socket,
	    .name = "kvxferctl",
	    .timeout_ms = ctl->timeout_ms,
	};

	if (ctl->client)
		return 0;
	return kvxfer_client_open(&options, &ctl->client);
}

const char *kvx_ctl_open_cure(int err)
{
	switch (-err) {
	case ENOENT:
		return "start the daemon (systemctl start kvxferd, or kvxferd by hand), or name "
		       "its socket with --socket or $KVXFER_SOCKET (the log of one "
		       "started by hand says where it listens)";
	case ECONNREFUSED:
		return "the socket is there but nobody listens: the daemon died; start it again";
	case EACCES:
		return "join the socket's group (daemon.socket_group), or run as root";
	case EPROTONOSUPPORT:
		return "install kvxferctl and kvxferd of the same release";
	case EDQUOT:
		return "raise limits.clients, or close engines that are not needed";
	case ETIMEDOUT:
		return "the daemon does not answer: look at its log and whether it is stopped";
	default:
		return "look at the daemon's log (journalctl -u kvxferd)";
	}
}

static int query_failed(struct kvx_ctl *ctl, const char *verb, int err)
{
	const char *why = kvxfer_client_error(ctl->client);

	kvx_tool_error("%s: %s", verb, *why ? why : strerror(-err));
	switch (-err) {
	case EACCES:
	case EPERM:
		kvx_tool_error("this needs root or the daemon's own user");
		return KVX_CTL_ACCESS;
	case ECONNRESET:
	case EPIPE:
		return KVX_CTL_NO_DAEMON;
	case ETIMEDOUT:
		/* A ping that is not answered is the peer's fault, not the daemon's. */
		return strcmp(verb, "ping") == 0 ? KVX_CTL_FAILED : KVX_CTL_NO_DAEMON;
	default:
		return KVX_CTL_FAILED;
	}
}

int kvx_ctl_query(struct kvx_ctl *ctl, const char *verb, const char *arg,
		  struct json_object **out_obj)
{
	struct json_object *obj;
	char *text;
	int rc = kvx_ctl_open(ctl);

	if (rc != 0) {
		kvx_tool_error("%s", kvxfer_open_error());
		kvx_tool_error("%s", kvx_ctl_open_cure(rc));
		return rc == -EACCES ? KVX_CTL_ACCESS : KVX_CTL_NO_DAEMON;
	}
	rc = kvxfer_client_query(ctl->client, verb, arg, &text);
	if (rc != 0)
		return query_failed(ctl, verb, rc);
	obj = json_tokener_parse(text);
	free(text);
	if (!obj || !json_object_is_type(obj, json_type_object)) {
		json_object_put(obj);
		kvx_tool_error("%s: the daemon's answer is not a JSON object", verb);
		return KVX_CTL_FAILED;
	}
	*out_obj = obj;
	return KVX_CTL_OK;
}

bool kvx_ctl_pass_json(const struct kvx_ctl *ctl, struct json_object *obj)
{
	if (!ctl->json)
		return false;
	kvx_json_print(obj, stdout);
	return true;
}

int kvx_ctl_list(struct kvx_ctl *ctl, const char *verb, const struct kvx_column *columns,
		 unsigned n_columns,
		 void (*row)(struct kvx_table *table, struct json_object *object))
{
	struct json_object *obj, *list;
	struct kvx_table *table;
	int rc = kvx_ctl_query(ctl, verb, NULL, &obj);

	if (rc != KVX_CTL_OK)
		return rc;
	if (!kvx_ctl_pass_json(ctl, obj)) {
		list = kvx_json_array(obj, verb);
		table = kvx_table_create(columns, n_columns);
		for (size_t i = 0; i < kvx_json_length(list); i++)
			row(table, kvx_json_at(list, i));
		kvx_table_print(table, stdout);
		kvx_table_destroy(table);
	}
	json_object_put(obj);
	return KVX_CTL_OK;
}

int kvx_ctl_seconds(const char *text, double *out_seconds)
{
	if (kvx_parse_double(text, 0.05, 86400, out_seconds) == 0)
		return KVX_CTL_OK;
	kvx_tool_error("%s is not an interval in seconds, 0.05 to 86400", text);
	return KVX_CTL_USAGE;
}

static void on_interrupt(int signo)
{
	interrupted = signo;
}

bool kvx_ctl_sleep(double seconds, bool keys)
{
	struct sigaction action = {.sa_handler = on_interrupt};
	struct pollfd pfd = {.fd = keys ? STDIN_FILENO : -1, .events = POLLIN};
	char key = 0;

	sigaction(SIGINT, &action, NULL);
	sigaction(SIGTERM, &action, NULL);
	fflush(stdout);
	if (interrupted)
		return false;
	if (poll(&pfd, 1, (int)(seconds * 1000)) > 0 && read(STDIN_FILENO, &key, 1) < 1)
		return false;
	return !interrupted && key != 'q' && key != 'Q' && key != 3;
}

uint64_t kvx_ctl_since(uint64_t stamp_ns)
{
	struct timespec now;
	uint64_t now_ns;

	clock_gettime(CLOCK_MONOTONIC, &now);
	now_ns = (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
	return stamp_ns && now_ns > stamp_ns ? now_ns - stamp_ns : 0;
}

const char *kvx_ctl_dash(const char *text)
{
	return *text ? text : "-";
}
