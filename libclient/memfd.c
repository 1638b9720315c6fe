/* Memory that the daemon will take: sealed memfds whose pages exist. Called by region.c; knows no
 * client. The pages are made here, so that they are charged to this process and a shortage is an
 * error now instead of a signal later. */
#include "libclient/client_priv.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21U << 26)
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

#define HUGE_BYTES (UINT64_C(2) << 20)
#define SEALS      (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
/* One fallocate(2) begins anew when a signal comes: small steps end even under a profiler's. */
#define STEP_BYTES (UINT64_C(64) << 20)

static int pages_missing(bool huge, uint64_t len_bytes, int err, struct kvx_why *why)
{
	if (err != -ENOSPC && err != -ENOMEM)
		return kvx_why(why, err, "allocating %llu bytes: %s", (unsigned long long)len_bytes,
			       strerror(-err));
	if (huge)
		return kvx_why(
		    why, -ENOMEM,
		    "too few free huge pages of 2 MiB for %llu bytes (%llu pages): raise "
		    "vm.nr_hugepages, or go without; see kvxferctl doctor",
		    (unsigned long long)len_bytes, (unsigned long long)(len_bytes / HUGE_BYTES));
	return kvx_why(why, -ENOMEM, "not enough memory for %llu bytes of shared memory",
		       (unsigned long long)len_bytes);
}

/* More than there is at all would not fail: it would wake the OOM killer. */
static int memory_check(uint64_t len_bytes, struct kvx_why *why)
{
	uint64_t memory = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE);

	if (len_bytes <= memory)
		return 0;
	return kvx_why(why, -ENOMEM, "%llu bytes of shared memory on a machine that has %llu",
		       (unsigned long long)len_bytes, (unsigned long long)memory);
}

static int pages_make(int fd, uint64_t offset, uint64_t len_bytes)
{
	while (len_bytes > 0) {
		uint64_t step = len_bytes < STEP_BYTES ? len_bytes : STEP_BYTES;

		if (fallocate(fd, 0, (off_t)offset, (off_t)step) == 0) {
			offset += step;
			len_bytes -= step;
		} else if (errno != EINTR) {
			return -errno;
		}
	}
	return 0;
}

/* Space that was reserved and never touched looks like a hole to the daemon, which refuses holes.
 * Where the kernel cannot do it (before 5.14), it is the caller's to touch its memory. */
static void pages_touch(int fd, uint64_t offset, uint64_t len_bytes)
{
	void *map = mmap(NULL, len_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)offset);

	if (map == MAP_FAILED)
		return;
	madvise(map, len_bytes, MADV_POPULATE_WRITE);
	munmap(map, len_bytes);
}

static int seals_add(int fd, struct kvx_why *why)
{
	int seals = fcntl(fd, F_GET_SEALS);

	if (seals < 0)
		return kvx_why(why, -EBADF,
			       "fd %d is not a memfd: make it with memfd_create(2) and "
			       "MFD_ALLOW_SEALING",
			       fd);
	if ((seals & SEALS) == SEALS)
		return 0;
	if ((seals & F_SEAL_SEAL) != 0)
		return kvx_why(why, -EBADF,
			       "fd %d lacks the seals F_SEAL_SHRINK and F_SEAL_GROW, and is sealed "
			       "against getting them: make it with MFD_ALLOW_SEALING",
			       fd);
	if (fcntl(fd, F_ADD_SEALS, SEALS) != 0)
		return kvx_why(why, -EBADF, "fd %d cannot be sealed: %s%s", fd, strerror(errno),
			       errno == EPERM ? "; it must be open for reading and writing" : "");
	return 0;
}

static int memfd_open(bool huge, const char *name)
{
	unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
	char label[KVX_CL_NAME_BYTES + 8];
	int fd;

	if (huge)
		flags |= MFD_HUGETLB | MFD_HUGE_2MB;
	snprintf(label, sizeof(label), "kvxfer:%s", name);
	fd = memfd_create(label, flags | MFD_NOEXEC_SEAL);
	if (fd < 0 && errno == EINVAL) /* before Linux 6.3 */
		fd = memfd_create(label, flags);
	return fd < 0 ? -errno : fd;
}

int kvx_cl_memfd_create(uint64_t len_bytes, bool huge, const char *name,
			struct kvx_cl_memfd *out_memfd, struct kvx_why *why)
{
	uint64_t page = huge ? HUGE_BYTES : (uint64_t)sysconf(_SC_PAGESIZE);
	struct kvx_cl_memfd memfd;
	int err;

	if (len_bytes == 0 || len_bytes > INT64_MAX - page)
		return kvx_why(why, -EINVAL, "a region of %llu bytes cannot be",
			       (unsigned long long)len_bytes);
	memfd.len_bytes = (len_bytes + page - 1) / page * page;
	err = memory_check(memfd.len_bytes, why);
	if (err < 0)
		return err;
	memfd.fd = memfd_open(huge, name);
	if (memfd.fd < 0)
		return kvx_why(why, memfd.fd, "memfd_create: %s%s", strerror(-memfd.fd),
			       huge ? "; huge pages of 2 MiB may not be supported here" : "");
	if (ftruncate(memfd.fd, (off_t)memfd.len_bytes) != 0) {
		err = pages_missing(huge, memfd.len_bytes, -errno, why);
		goto err_close;
	}
	memfd.map = mmap(NULL, memfd.len_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd.fd, 0);
	if (memfd.map == MAP_FAILED) {
		err = pages_missing(huge, memfd.len_bytes, -errno, why);
		goto err_close;
	}
	/* Transparent huge pages where the system leaves the choice to programs. Populating is for
	 * the page tables; whether there is memory at all, fallocate says. */
	madvise(memfd.map, memfd.len_bytes, MADV_HUGEPAGE);
	madvise(memfd.map, memfd.len_bytes, MADV_POPULATE_WRITE);
	err = pages_make(memfd.fd, 0, memfd.len_bytes);
	if (err < 0) {
		err = pages_missing(huge, memfd.len_bytes, err, why);
		goto err_unmap;
	}
	err = seals_add(memfd.fd, why);
	if (err < 0)
		goto err_unmap;
	*out_memfd = memfd;
	return 0;

err_unmap:
	munmap(memfd.map, memfd.len_bytes);
err_close:
	close(memfd.fd);
	return err;
}

/* Everything that can be said about the fd before it is changed. */
static int memfd_check(int fd, uint64_t offset, uint64_t len_bytes, struct kvx_why *why)
{
	int mode = fcntl(fd, F_GETFL);
	struct statfs fs;
	struct stat st;
	uint64_t end;

	if (mode < 0 || fstat(fd, &st) != 0 || fstatfs(fd, &fs) != 0)
		return kvx_why(why, -EBADF, "fd %d: %s", fd, strerror(errno));
	if (!S_ISREG(st.st_mode) || fcntl(fd, F_GET_SEALS) < 0)
		return kvx_why(why, -EBADF,
			       "fd %d is not a memfd: make it with memfd_create(2) and "
			       "MFD_ALLOW_SEALING",
			       fd);
	if ((mode & O_ACCMODE) != O_RDWR)
		return kvx_why(why, -EBADF, "fd %d is not open for reading and writing", fd);
	if (len_bytes == 0)
		return kvx_why(why, -EINVAL, "len_bytes is 0");
	if (__builtin_add_overflow(offset, len_bytes, &end) || end > (uint64_t)st.st_size)
		return kvx_why(why, -EINVAL,
			       "offset %llu + len %llu is beyond the memfd's %llu bytes",
			       (unsigned long long)offset, (unsigned long long)len_bytes,
			       (unsigned long long)st.st_size);
	if (fs.f_bsize > 0 && offset % (uint64_t)fs.f_bsize != 0)
		return kvx_why(why, -EINVAL, "offset %llu is not a multiple of the page size %llu",
			       (unsigned long long)offset, (unsigned long long)fs.f_bsize);
	return 0;
}

int kvx_cl_memfd_adopt(int fd, uint64_t offset, uint64_t len_bytes, int *out_fd,
		       struct kvx_why *why)
{
	struct statfs fs;
	bool huge;
	int err, own;

	err = memfd_check(fd, offset, len_bytes, why);
	if (err < 0)
		return err;
	err = seals_add(fd, why);
	if (err < 0)
		return err;
	huge = fstatfs(fd, &fs) == 0 && fs.f_type == HUGETLBFS_MAGIC;
	err = memory_check(len_bytes, why);
	if (err < 0)
		return err;
	err = pages_make(fd, offset, len_bytes);
	if (err < 0)
		return pages_missing(huge, len_bytes, err, why);
	pages_touch(fd, offset, len_bytes);
	own = fcntl(fd, F_DUPFD_CLOEXEC, 3);
	if (own < 0)
		return kvx_why(why, -errno, "duplicating fd %d: %s", fd, strerror(errno));
	*out_fd = own;
	return 0;
}
