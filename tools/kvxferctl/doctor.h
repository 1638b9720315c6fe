/* The checks of kvxferctl doctor. Each adds findings to a report; none changes anything. One
 * thread. */
#ifndef KVX_DOCTOR_H
#define KVX_DOCTOR_H

#include <stdint.h>
#include <stdio.h>

struct json_object;

enum kvx_finding_level { KVX_FINDING_OK, KVX_FINDING_WARN, KVX_FINDING_FAIL };

struct kvx_finding {
	enum kvx_finding_level level;
	const char *check; /* static */
	char *text;        /* what was found, and what it leads to */
	char *cure;        /* "" for OK */
};
struct kvx_report {
	struct kvx_finding *findings;
	unsigned n_findings;
	enum kvx_finding_level worst;
};

/* text and cure: heap strings of kvx_tool_printf(), taken over; cure NULL: none. */
void kvx_report_add(struct kvx_report *report, enum kvx_finding_level level, const char *check,
		    char *text, char *cure);
void kvx_report_ok(struct kvx_report *report, const char *check, char *text);
void kvx_report_fini(struct kvx_report *report);

/* daemon: answer of "status", NULL when the daemon does not answer. daemon_pid: 0 then. */
void kvx_doctor_limits(struct kvx_report *report, struct json_object *daemon);
void kvx_doctor_memory(struct kvx_report *report);
void kvx_doctor_network(struct kvx_report *report);
/* Where RDMA shows itself; tests have places of their own. */
struct kvx_rdma_places {
	const char *sysfs;  /* "/sys/class" */
	const char *dev;    /* "/dev/infiniband" */
	const char *soname; /* "libibverbs.so.1" */
	unsigned limit_ms;  /* how long the library may take */
};
/* devices: answer of "devices", NULL when the daemon does not answer. */
void kvx_doctor_rdma(struct kvx_report *report, const struct kvx_rdma_places *places,
		     struct json_object *devices);

/* First line of a small file, without the newline, in buf; NULL when it cannot be read. */
char *kvx_read_line(const char *path, char *buf, size_t buf_bytes);
/* Number after "key:" in a file of such lines (/proc/meminfo), in its own unit; -ENOENT. */
int kvx_read_field(const char *path, const char *key, uint64_t *out_value);

#endif
