/* doctor: the list of findings, and the reading of the small files that checks look at. */
#include "doctor.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "common/tool.h"

void kvx_report_add(struct kvx_report *report, enum kvx_finding_level level, const char *check,
		    char *text, char *cure)
{
	unsigned n = report->n_findings++;

	report->findings =
	    kvx_tool_realloc(report->findings, report->n_findings * sizeof(*report->findings));
	report->findings[n] = (struct kvx_finding){
	    .level = level,
	    .check = check,
	    .text = text,
	    .cure = cure ? cure : kvx_tool_strdup(""),
	};
	if (level > report->worst)
		report->worst = level;
}

void kvx_report_ok(struct kvx_report *report, const char *check, char *text)
{
	kvx_report_add(report, KVX_FINDING_OK, check, text, NULL);
}

char *kvx_read_line(const char *path, char *buf, size_t buf_bytes)
{
	FILE *f = fopen(path, "re");
	char *line;

	if (!f)
		return NULL;
	line = fgets(buf, (int)buf_bytes, f);
	fclose(f);
	if (line)
		line[strcspn(line, "\n")] = '\0';
	return line;
}

int kvx_read_field(const char *path, const char *key, uint64_t *out_value)
{
	FILE *f = fopen(path, "re");
	char line[256];
	size_t len = strlen(key);
	int rc = -ENOENT;

	if (!f)
		return -ENOENT;
	while (rc != 0 && fgets(line, sizeof(line), f)) {
		if (strncmp(line, key, len) != 0 || line[len] != ':')
			continue;
		*out_value = strtoull(line + len + 1, NULL, 10);
		rc = 0;
	}
	fclose(f);
	return rc;
}

void kvx_report_fini(struct kvx_report *report)
{
	for (unsigned i = 0; i < report->n_findings; i++) {
		free(report->findings[i].text);
		free(report->findings[i].cure);
	}
	free(report->findings);
	*report = (struct kvx_report){0};
}
