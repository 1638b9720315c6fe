/* For tests of kvxferctl doctor: its findings by their words. */
#ifndef KVX_TEST_FINDINGS_H
#define KVX_TEST_FINDINGS_H

#include <stdio.h>
#include <string.h>

#include "kvxferctl/doctor.h"

/* The finding of this level whose text has these words; NULL: there is none, and stderr says which
 * there are. */
static inline const struct kvx_finding *test_find(const struct kvx_report *report,
						  enum kvx_finding_level level, const char *words)
{
	for (unsigned i = 0; i < report->n_findings; i++)
		if (report->findings[i].level == level &&
		    strstr(report->findings[i].text, words) != NULL)
			return &report->findings[i];
	for (unsigned i = 0; i < report->n_findings; i++)
		fprintf(stderr, "# %d %s\n", (int)report->findings[i].level,
			report->findings[i].text);
	return NULL;
}

#endif
