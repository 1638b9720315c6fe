/* kvxferctl doctor: checks this node and says cause and cure of what it finds. Works without a
 * daemon; what only the daemon knows is then said to be unknown. */
#include "ctl.h"

#include <errno.h>
#include <json-c/json.h>
#include <libgen.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "doctor_gpu.h"
#include "kvxfer/client.h"

static void check_socket(struct kvx_report *report, const char *path)
{
	char *copy = kvx_tool_strdup(path);
	const char *dir = dirname(copy);
	struct stat st, dir_st;

	if (path[0] == '@') {
		kvx_report_add(
		    report, KVX_FINDING_WARN, "socket",
		    kvx_tool_printf("%s is an abstract socket: any local user may connect", path),
		    kvx_tool_strdup("use a path (daemon.socket) with socket_mode and "
				    "socket_group"));
	} else if (stat(path, &st) != 0 || !S_ISSOCK(st.st_mode)) {
		kvx_report_add(report, KVX_FINDING_FAIL, "socket",
			       kvx_tool_printf("%s: %s", path,
					       errno == ENOENT ? "no such socket" : "not a socket"),
			       kvx_tool_strdup(kvx_ctl_open_cure(-ENOENT)));
	} else if (access(path, W_OK) != 0) {
		kvx_report_add(report, KVX_FINDING_FAIL, "socket",
			       kvx_tool_printf("%s: not writable for this user (mode %04o)", path,
					       st.st_mode & 07777u),
			       kvx_tool_strdup(kvx_ctl_open_cure(-EACCES)));
	} else if (st.st_mode & S_IWOTH && stat(dir, &dir_st) == 0 && dir_st.st_mode & S_IXOTH) {
		kvx_report_add(
		    report, KVX_FINDING_WARN, "socket",
		    kvx_tool_printf("%s: any local user may connect (mode %04o)", path,
				    st.st_mode & 07777u),
		    kvx_tool_strdup("set daemon.socket_mode to 0660 and daemon.socket_group "
				    "to the engines' group"));
	} else {
		kvx_report_ok(report, "socket",
			      kvx_tool_printf("%s, mode %04o, uid %u, gid %u", path,
					      st.st_mode & 07777u, st.st_uid, st.st_gid));
	}
	free(copy);
}

/* The daemon's "status", NULL when it does not answer; what went wrong is in the report. */
static struct json_object *check_daemon(struct kvx_ctl *ctl, struct kvx_report *report)
{
	struct json_object *obj = NULL;
	char *text = NULL;
	int rc = kvx_ctl_open(ctl);

	if (rc != 0) {
		kvx_report_add(report, KVX_FINDING_FAIL, "daemon",
			       kvx_tool_printf("not reachable: %s", kvxfer_open_error()),
			       kvx_tool_strdup(kvx_ctl_open_cure(rc)));
		return NULL;
	}
	rc = kvxfer_client_query(ctl->client, "status", NULL, &text);
	if (rc == 0)
		obj = json_tokener_parse(text);
	free(text);
	if (!obj) {
		kvx_report_add(report, KVX_FINDING_FAIL, "daemon",
			       kvx_tool_printf("does not answer: %s",
					       rc != 0 ? kvxfer_client_error(ctl->client)
						       : "its answer is not JSON"),
			       kvx_tool_strdup(kvx_ctl_open_cure(-ETIMEDOUT)));
		return NULL;
	}
	if (strcmp(kvx_json_str(obj, "state"), "draining") == 0)
		kvx_report_add(report, KVX_FINDING_WARN, "daemon",
			       kvx_tool_strdup("draining: new transfers are refused"),
			       kvx_tool_strdup("kvxferctl undrain"));
	else
		kvx_report_ok(report, "daemon",
			      kvx_tool_printf("running, pid %s, version %s",
					      kvx_json_str(obj, "pid"),
					      kvx_json_str(obj, "version")));
	return obj;
}

/* NULL when there is no daemon, or it does not know the question. */
static struct json_object *ask(struct kvx_ctl *ctl, const char *verb)
{
	struct json_object *obj = NULL;
	char *text = NULL;

	if (ctl->client != NULL && kvxfer_client_query(ctl->client, verb, NULL, &text) == 0)
		obj = json_tokener_parse(text);
	free(text);
	return obj;
}

static void check_rdma(struct kvx_report *report, struct json_object *devices)
{
	static const struct kvx_rdma_places places = {
	    .sysfs = "/sys/class",
	    .dev = "/dev/infiniband",
	    .soname = "libibverbs.so.1",
	    .limit_ms = 20000,
	};

	kvx_doctor_rdma(report, &places, devices);
}

/* Runtimes are looked for where the daemon does. */
static void check_gpus(struct kvx_report *report, struct kvx_ctl *ctl, struct json_object *daemon,
		       struct json_object *devices)
{
	struct json_object *config = daemon != NULL ? ask(ctl, "config") : NULL;
	const char *lib_dir = kvx_json_str(kvx_json_get(config, "config"), "gpu.library_dir");
	const struct kvx_gpu_places places = {.root = "",
					      .lib_dir = *lib_dir ? lib_dir : NULL,
					      .limit_ms = 20000,
					      .ask_runtime = true};
	const struct kvx_gpu_daemon says = {.pid = (unsigned)kvx_json_u64(daemon, "pid"),
					    .devices = devices};

	kvx_doctor_gpus(report, &places, &says);
	json_object_put(config);
}

static void check_version(struct kvx_report *report, struct json_object *daemon)
{
	const char *version = kvx_json_str(daemon, "version");

	if (!daemon || strcmp(version, kvxfer_version()) == 0)
		return;
	kvx_report_add(report, KVX_FINDING_WARN, "version",
		       kvx_tool_printf("daemon %s, library %s", version, kvxfer_version()),
		       kvx_tool_strdup("install both of the same release and restart kvxferd"));
}

/* A node without RDMA devices is in order. */
static void check_transport(struct kvx_report *report, struct json_object *transport)
{
	const char *name = kvx_json_str(transport, "name");
	const char *reason = kvx_json_str(transport, "reason");
	bool is_verbs = strcmp(name, "verbs") == 0;

	if (strcmp(name, "gpu") == 0)
		return; /* told of each device */
	if (kvx_json_bool(transport, "usable"))
		kvx_report_ok(
		    report, "transport",
		    kvx_tool_printf("%s is usable%s%s", name, *reason ? ": " : "", reason));
	else if (is_verbs && strncmp(reason, "no RDMA device", 14) == 0)
		kvx_report_ok(report, "transport", kvx_tool_printf("%s: %s", name, reason));
	else
		kvx_report_add(report, KVX_FINDING_WARN, "transport",
			       kvx_tool_printf("%s is not usable: %s", name,
					       *reason ? reason : "no reason given"),
			       kvx_tool_strdup(is_verbs ? "see what is said of rdma below, and "
							  "[verbs] in kvxferd.conf(5)"
							: "see fabric.provider and peer.enable in "
							  "kvxferd.conf(5), and `fi_info`"));
}

static void check_transports(struct kvx_report *report, struct json_object *daemon)
{
	struct json_object *transports = kvx_json_array(daemon, "transports");

	if (!daemon) {
		kvx_report_add(report, KVX_FINDING_WARN, "transports",
			       kvx_tool_strdup("not known: only a running daemon knows which "
					       "transports and providers work here"),
			       kvx_tool_strdup("start kvxferd and run doctor again"));
		return;
	}
	for (size_t i = 0; i < kvx_json_length(transports); i++)
		check_transport(report, kvx_json_at(transports, i));
}

static void check_peers(struct kvx_report *report, struct json_object *daemon)
{
	uint64_t up = kvx_json_u64(daemon, "peers_up"), all = kvx_json_u64(daemon, "peers");

	if (!daemon || all == 0)
		return;
	if (up == all)
		kvx_report_ok(report, "peers",
			      kvx_tool_printf("%llu of %llu up", (unsigned long long)up,
					      (unsigned long long)all));
	else
		kvx_report_add(report, KVX_FINDING_WARN, "peers",
			       kvx_tool_printf("%llu of %llu up", (unsigned long long)up,
					       (unsigned long long)all),
			       kvx_tool_strdup("kvxferctl peers shows the last error of each"));
}

static void print_report(const struct kvx_report *report)
{
	static const char *const names[] = {"ok", "warn", "fail"};
	static const enum kvx_color colors[] = {KVX_COLOR_GREEN, KVX_COLOR_YELLOW, KVX_COLOR_RED};
	unsigned counts[3] = {0};

	for (unsigned i = 0; i < report->n_findings; i++) {
		const struct kvx_finding *finding = &report->findings[i];

		counts[finding->level]++;
		printf("%s%-5s%s %-12s %s\n", kvx_color_on(stdout, colors[finding->level]),
		       names[finding->level], kvx_color_off(stdout), finding->check, finding->text);
		if (*finding->cure)
			printf("%-5s %-12s cure: %s\n", "", "", finding->cure);
	}
	printf("%u ok, %u warn, %u fail\n", counts[0], counts[1], counts[2]);
}

static void print_report_json(const struct kvx_report *report)
{
	static const char *const names[] = {"ok", "warn", "fail"};
	struct json_object *obj = json_object_new_object(), *checks = json_object_new_array();

	for (unsigned i = 0; i < report->n_findings; i++) {
		const struct kvx_finding *finding = &report->findings[i];
		struct json_object *check = json_object_new_object();

		kvx_json_set_str(check, "check", finding->check);
		kvx_json_set_str(check, "level", names[finding->level]);
		kvx_json_set_str(check, "cause", finding->text);
		kvx_json_set_str(check, "cure", finding->cure);
		json_object_array_add(checks, check);
	}
	kvx_json_set_str(obj, "worst", names[report->worst]);
	json_object_object_add(obj, "checks", checks);
	kvx_json_print(obj, stdout);
	json_object_put(obj);
}

int kvx_cmd_doctor(struct kvx_ctl *ctl)
{
	struct kvx_report report = {0};
	struct json_object *daemon, *devices;
	bool failed;

	daemon = check_daemon(ctl, &report);
	check_socket(&report, daemon && *kvx_json_str(daemon, "socket")
				  ? kvx_json_str(daemon, "socket")
				  : kvx_ctl_socket_path(ctl));
	check_version(&report, daemon);
	check_transports(&report, daemon);
	check_peers(&report, daemon);
	kvx_doctor_limits(&report, daemon);
	kvx_doctor_memory(&report);
	kvx_doctor_network(&report);
	devices = daemon != NULL ? ask(ctl, "devices") : NULL;
	check_rdma(&report, devices);
	check_gpus(&report, ctl, daemon, devices);
	if (ctl->json)
		print_report_json(&report);
	else
		print_report(&report);
	failed = report.worst == KVX_FINDING_FAIL;
	kvx_report_fini(&report);
	json_object_put(devices);
	json_object_put(daemon);
	return failed ? KVX_CTL_FAILED : KVX_CTL_OK;
}
