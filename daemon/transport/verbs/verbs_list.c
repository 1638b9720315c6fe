/* The devices that libibverbs offers, and what it says while it looks: that a provider does not
 * speak the ABI of a kernel driver it only prints on stderr, which is caught here. Start-up only:
 * for the time of the call, what other threads print on stderr is held back. Any thread, one at a
 * time. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "transport/verbs/verbs_priv.h"

static const char library_says[] = "libibverbs: ";

/* Takes the library's lines into words and gives the others back to whom they were for. */
static void words_sort_out(int fd, char *words, size_t words_bytes)
{
	FILE *file = fdopen(fd, "r");
	char line[512];
	size_t used = 0;

	if (file == NULL) {
		close(fd);
		return;
	}
	rewind(file);
	while (fgets(line, sizeof(line), file) != NULL) {
		size_t len = strlen(line);

		if (strncmp(line, library_says, sizeof(library_says) - 1) != 0) {
			ssize_t n = write(STDERR_FILENO, line, len);

			(void)n; /* stderr is all there is to complain to */
		} else if (used + len < words_bytes) {
			memcpy(words + used, line, len + 1);
			used += len;
		}
	}
	fclose(file);
}

struct ibv_device **verbs_list(int *out_n, char *words, size_t words_bytes)
{
	int saved = -1, fd = memfd_create("kvx-verbs-words", MFD_CLOEXEC);
	struct ibv_device **list;
	int error;

	words[0] = '\0';
	if (fd >= 0)
		saved = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 3);
	(void)fflush(stderr);
	if (saved >= 0 && dup2(fd, STDERR_FILENO) < 0) {
		close(saved);
		saved = -1;
	}
	errno = 0;
	list = ibv_get_device_list(out_n);
	error = errno;
	(void)fflush(stderr);
	if (saved >= 0) {
		(void)dup2(saved, STDERR_FILENO);
		close(saved);
		words_sort_out(fd, words, words_bytes);
	} else if (fd >= 0) {
		close(fd);
	}
	errno = error;
	return list;
}
