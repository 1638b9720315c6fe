/* The end of the process on a broken invariant of our own. Any thread; called only through
 * kvx_assert(). Writes one line to stderr without malloc and aborts, so that the core shows the
 * place. Never used for input of clients or peers. */
#include "base/assert.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void kvx_assert_fail(const char *expr, const char *file, int line, const char *func)
{
	char text[512];
	int n = snprintf(text, sizeof(text), "<2>kvxfer: %s:%d: %s: assertion failed: %s\n", file,
			 line, func, expr);

	if (n > (int)sizeof(text) - 1)
		n = (int)sizeof(text) - 1;
	if (n > 0 && write(STDERR_FILENO, text, (size_t)n) < 0)
		abort();
	abort();
}
