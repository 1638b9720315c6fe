/* The node id and its file. Blocking reads and writes of one small file, at start only. A disk that
 * is full or read-only costs the id its permanence, never the start. */
#include "node_id.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"

#define ID_TEXT_BYTES 64

int kvx_node_id_parse(const char *text, uint8_t out_id[KVX_NODE_ID_BYTES])
{
	uint8_t id[KVX_NODE_ID_BYTES] = {0};
	unsigned n = 0;

	for (; *text != '\0'; text++) {
		char digit[2] = {*text, '\0'};

		if (*text == '-' && n > 0 && n < 2 * KVX_NODE_ID_BYTES)
			continue;
		if (!isxdigit((unsigned char)*text) || n == 2 * KVX_NODE_ID_BYTES)
			return -EINVAL;
		id[n / 2] = (uint8_t)(id[n / 2] << 4 | (uint8_t)strtoul(digit, NULL, 16));
		n++;
	}
	if (n != 2 * KVX_NODE_ID_BYTES)
		return -EINVAL;
	memcpy(out_id, id, sizeof(id));
	return 0;
}

void kvx_node_id_format(const uint8_t id[KVX_NODE_ID_BYTES], char out[33])
{
	unsigned i;

	for (i = 0; i < KVX_NODE_ID_BYTES; i++)
		snprintf(out + 2 * i, 3, "%02x", id[i]);
}

/* Random bytes; where the kernel has none yet (early boot of an odd system) clock and pid, which
 * are unique enough for a name. */
static void random_fill(void *out, size_t len)
{
	struct timespec now;
	uint64_t seed;
	size_t i;

	if (getrandom(out, len, GRND_NONBLOCK) == (ssize_t)len)
		return;
	clock_gettime(CLOCK_REALTIME, &now);
	seed = (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec << 20 ^
	       (uint64_t)getpid() << 44;
	for (i = 0; i < len; i++) {
		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		((uint8_t *)out)[i] = (uint8_t)(seed >> 56);
	}
}

uint64_t kvx_node_epoch(void)
{
	uint64_t epoch;

	random_fill(&epoch, sizeof(epoch));
	return epoch != 0 ? epoch : 1;
}

static int id_file_open(const char *path)
{
	char dir[512];
	char *slash;
	int fd;

	snprintf(dir, sizeof(dir), "%s", path);
	slash = strrchr(dir, '/');
	if (slash != NULL && slash != dir) {
		*slash = '\0';
		mkdir(dir, 0755); /* open says what is wrong */
	}
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600); /* others must not lock it */
	if (fd < 0)
		fd = open(path, O_RDONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* 1: *out_id is what the file holds; 0: it is empty; or -errno. */
static int id_file_read(int fd, uint8_t out_id[KVX_NODE_ID_BYTES])
{
	char text[ID_TEXT_BYTES];
	ssize_t n = pread(fd, text, sizeof(text) - 1, 0);

	if (n < 0)
		return -errno;
	text[n] = '\0';
	text[strcspn(text, " \t\r\n")] = '\0';
	if (text[0] == '\0')
		return 0;
	return kvx_node_id_parse(text, out_id) == 0 ? 1 : -EINVAL;
}

static int id_file_write(int fd, const uint8_t id[KVX_NODE_ID_BYTES])
{
	char text[34];

	kvx_node_id_format(id, text);
	text[32] = '\n';
	if (pwrite(fd, text, 33, 0) != 33 || fsync(fd) < 0) {
		int err = errno != 0 ? -errno : -EIO;

		if (ftruncate(fd, 0) < 0)
			kvx_debug("daemon: ftruncate: %s", strerror(errno));
		return err;
	}
	return 0;
}

void kvx_node_id_get(const char *path, uint8_t out_id[KVX_NODE_ID_BYTES], int *out_lock_fd)
{
	uint8_t id[KVX_NODE_ID_BYTES];
	int fd = -ENOENT;
	int rc;

	random_fill(out_id, KVX_NODE_ID_BYTES);
	*out_lock_fd = -1;
	if (path[0] == '\0')
		return;
	fd = id_file_open(path);
	if (fd < 0) {
		kvx_info("daemon: no node id in %s (%s): a new one for this start", path,
			 strerror(-fd));
		return;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
		kvx_info("daemon: the node id of %s belongs to another daemon that runs: a new one "
			 "for this start",
			 path);
		close(fd);
		return;
	}
	*out_lock_fd = fd;
	rc = id_file_read(fd, id);
	if (rc > 0) {
		memcpy(out_id, id, sizeof(id));
		return;
	}
	if (rc == 0)
		rc = id_file_write(fd, out_id);
	if (rc < 0)
		kvx_warn("daemon: %s: %s: a new node id for this start", path,
			 rc == -EINVAL ? "does not hold a node id (32 hex digits)" : strerror(-rc));
}
