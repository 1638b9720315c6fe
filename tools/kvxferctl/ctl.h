/* What the subcommands of kvxferctl share: the command line, the daemon, exit codes. One thread. */
#ifndef KVX_CTL_H
#define KVX_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/tool.h"

struct json_object;

/* Documented in kvxferctl(1). */
enum kvx_ctl_exit {
	KVX_CTL_OK = 0,
	KVX_CTL_FAILED = 1,    /* the daemon refused, or doctor or config check found a fault */
	KVX_CTL_USAGE = 2,     /* the command line is wrong */
	KVX_CTL_NO_DAEMON = 3, /* the daemon cannot be reached, or was lost */
	KVX_CTL_ACCESS = 4,    /* not permitted for this user */
};

struct kvx_ctl {
	const char *socket; /* NULL: the library's default */
	bool json;
	int timeout_ms;
	const char *args[4]; /* what is not an option, the command left out */
	unsigned n_args;
	struct kvxfer_client *client; /* NULL until the first query */
};

enum kvx_ctl_flag_kind { KVX_FLAG_PLAIN, KVX_FLAG_VALUE, KVX_FLAG_OPTIONAL };
/* One option of one subcommand. OPTIONAL takes the next word when it begins with a digit. */
struct kvx_ctl_flag {
	const char *name; /* with the dashes */
	enum kvx_ctl_flag_kind kind;
	bool *set;
	const char **value;
};

struct kvx_ctl_command {
	const char *name;
	const char *synopsis; /* arguments, for the help */
	const char *help;     /* one line */
	unsigned min_args, max_args;
	/* Fills flags (at most 4) and returns how many; NULL: none. */
	unsigned (*flags)(struct kvx_ctl_flag *flags);
	int (*run)(struct kvx_ctl *ctl);
};
extern const struct kvx_ctl_command kvx_ctl_commands[];

/* Both: usage of one command, or of all for NULL. */
void kvx_ctl_help(const struct kvx_ctl_command *command, FILE *f);
/* Reads everything after argv[0]. Returns KVX_CTL_OK and *out_command, or an exit code + 256 when
 * the program is to end with it at once (help, wrong usage; the message was printed). */
int kvx_ctl_parse(struct kvx_ctl *ctl, int argc, char **argv,
		  const struct kvx_ctl_command **out_command);

/* Connects where that has not been done. 0 or -errno; prints nothing. kvxfer_open_error() has the
 * words. */
int kvx_ctl_open(struct kvx_ctl *ctl);
/* Asks the daemon and parses its answer; prints what went wrong. KVX_CTL_OK and a json object to be
 * put by the caller, or the exit code. */
int kvx_ctl_query(struct kvx_ctl *ctl, const char *verb, const char *arg,
		  struct json_object **out_obj);
/* With --json prints the daemon's object and gives true: the command has nothing more to do. */
bool kvx_ctl_pass_json(const struct kvx_ctl *ctl, struct json_object *obj);
/* A whole subcommand: asks for `verb` and prints the list of that name, a row each; row() may leave
 * one out. */
int kvx_ctl_list(struct kvx_ctl *ctl, const char *verb, const struct kvx_column *columns,
		 unsigned n_columns,
		 void (*row)(struct kvx_table *table, struct json_object *object));
/* What to tell a person about a failed open: cause and cure. */
const char *kvx_ctl_open_cure(int err);
/* The socket that is asked, as a path, for messages. */
const char *kvx_ctl_socket_path(const struct kvx_ctl *ctl);
/* Seconds of an interval option ("2", "0.5"); usage error when it is not one. */
int kvx_ctl_seconds(const char *text, double *out_seconds);
/* Sleeps; false when SIGINT came or 'q' was typed (top). */
bool kvx_ctl_sleep(double seconds, bool keys);
/* Nanoseconds since a stamp of the daemon (CLOCK_MONOTONIC, the same for both); 0 for no stamp. */
uint64_t kvx_ctl_since(uint64_t stamp_ns);
/* "copy", or "-" for "". */
const char *kvx_ctl_dash(const char *text);

int kvx_cmd_status(struct kvx_ctl *ctl);
int kvx_cmd_clients(struct kvx_ctl *ctl);
int kvx_cmd_regions(struct kvx_ctl *ctl);
int kvx_cmd_transfers(struct kvx_ctl *ctl);
unsigned kvx_cmd_transfers_flags(struct kvx_ctl_flag *flags);
int kvx_cmd_peers(struct kvx_ctl *ctl);
int kvx_cmd_lanes(struct kvx_ctl *ctl);
int kvx_cmd_devices(struct kvx_ctl *ctl);
int kvx_cmd_topology(struct kvx_ctl *ctl);
unsigned kvx_cmd_topology_flags(struct kvx_ctl_flag *flags);
int kvx_cmd_stats(struct kvx_ctl *ctl);
unsigned kvx_cmd_stats_flags(struct kvx_ctl_flag *flags);
int kvx_cmd_top(struct kvx_ctl *ctl);
unsigned kvx_cmd_top_flags(struct kvx_ctl_flag *flags);
int kvx_cmd_ping(struct kvx_ctl *ctl);
unsigned kvx_cmd_ping_flags(struct kvx_ctl_flag *flags);
int kvx_cmd_doctor(struct kvx_ctl *ctl);
int kvx_cmd_drain(struct kvx_ctl *ctl);
int kvx_cmd_undrain(struct kvx_ctl *ctl);
int kvx_cmd_config(struct kvx_ctl *ctl);
int kvx_cmd_version(struct kvx_ctl *ctl);

/* One line of the transfers table, also used by top. */
struct kvx_table *kvx_transfers_table(void);
void kvx_transfers_row(struct kvx_table *table, struct json_object *transfer);

#endif
