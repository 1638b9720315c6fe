/* Host memory: a sealed memfd (tmpfs or hugetlbfs) that a client handed over. check() runs on the
 * loop and asks the fd nothing that could block there: F_GET_SEALS first, which only the kernel's
 * own memory file systems answer, so that fstat() never reaches a file system that a client serves
 * itself. map() and unmap() run on the job thread. Never reads or changes what is in the memory.
 *
 * The seals make the length final: no access within it can fault because the file shrank. A hole
 * punched later is filled with zero pages by the next access, or raises SIGBUS where there are
 * none, which the guard (mem/guard.h) catches. */
#include "mem/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/assert.h"
#include "mem/guard.h"

#ifndef MADV_POPULATE_WRITE /* Linux 5.14 */
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE /* Linux 5.1 */
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define NEEDED_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)

static uint64_t round_up(uint64_t value, uint64_t unit)
{
	return (value + unit - 1) / unit * unit;
}

/* What an fd is that is not a memfd, in words. Uses only what cannot block whatever the file. */
static const char *fd_describe(int fd, char *buf, size_t len)
{
	char path[32], target[96];
	struct statx stx;
	int flags = fcntl(fd, F_GETFL);
	if (flags >= 0 && (flags & O_PATH))
		return "a path (O_PATH)";
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	ssize_t n = readlink(path, target, sizeof(target) - 1);
	target[n > 0 ? n : 0] = '\0';
	if (strncmp(target, "anon_inode:", 11) == 0) {
		snprintf(buf, len, "an anonymous file (%.60s)", target + 11);
		return buf;
	}
	if (strncmp(target, "/dmabuf:", 8) == 0)
		return "a dma-buf (memory kind dmabuf, not host)";
	/* AT_STATX_DONT_SYNC: a file system in user space is not asked. */
	if (statx(fd, "", AT_EMPTY_PATH | AT_STATX_DONT_SYNC, STATX_TYPE, &stx) < 0)
		return "something unknown";
	switch (stx.stx_mode & S_IFMT) {
	case S_IFIFO:
		return "a pipe";
	case S_IFSOCK:
		return "a socket";
	case S_IFDIR:
		return "a directory";
	case S_IFCHR:
		snprintf(buf, len, "a character device (%.60s)", target);
		return buf;
	case S_IFBLK:
		return "a block device";
	case S_IFREG:
		return "a regular file";
	default:
		return "something unknown";
	}
}

static int host_check_seals(int fd, struct kvx_why *why)
{
	char buf[112];
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0)
		return kvx_why(why, -EBADF,
			       "the fd is %s, not a memfd: make one with memfd_create(2) and "
			       "MFD_ALLOW_SEALING",
			       fd_describe(fd, buf, sizeof(buf)));
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR)
		return kvx_why(why, -EBADF, "the memfd is not open for reading and writing");
	if (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE))
		return kvx_why(
		    why, -EPERM,
		    "the memfd is sealed against writing (%s): transfers could not write "
		    "to it",
		    seals & F_SEAL_WRITE ? "F_SEAL_WRITE" : "F_SEAL_FUTURE_WRITE");
	int missing = NEEDED_SEALS & ~seals;
	if (missing == 0)
		return 0;
	/* A tmpfs file that is no sealable memfd answers F_SEAL_SEAL alone, for good. */
	bool sealed_off = (seals & F_SEAL_SEAL) != 0;
	return kvx_why(why, -EPERM, "seals missing:%s%s%s; %s",
		       missing & F_SEAL_SHRINK ? " F_SEAL_SHRINK" : "",
		       missing & F_SEAL_GROW ? " F_SEAL_GROW" : "",
		       missing & F_SEAL_SEAL ? " F_SEAL_SEAL" : "",
		       sealed_off ? "they can no longer be added: use a memfd made with "
				    "MFD_ALLOW_SEALING"
				  : "add them with fcntl(F_ADD_SEALS)");
}

/* Fills page_bytes from the file system that the memfd lives in. */
static int host_check_fs(struct kvx_mem *mem, struct kvx_why *why)
{
	struct statfs fs;
	if (fstatfs(mem->fd, &fs) < 0)
		return kvx_why(why, -EBADF, "cannot ask for the fd's file system: %s",
			       strerror(errno));
	if ((unsigned long)fs.f_type == HUGETLBFS_MAGIC)
		mem->page_bytes = (uint64_t)fs.f_bsize;
	else if ((unsigned long)fs.f_type == TMPFS_MAGIC)
		mem->page_bytes = (uint64_t)sysconf(_SC_PAGESIZE);
	else
		return kvx_why(why, -EBADF,
			       "the fd is on file system 0x%lx: only memfds (tmpfs or hugetlbfs) "
			       "are taken",
			       (unsigned long)fs.f_type);
	return 0;
}

static int host_check_range(const struct kvx_mem *mem, const struct stat *st, struct kvx_why *why)
{
	uint64_t size = st->st_size < 0 ? 0 : (uint64_t)st->st_size;
	if (mem->len_bytes == 0)
		return kvx_why(why, -EINVAL, "the region's length is 0, must be at least 1");
	if (mem->fd_offset % mem->page_bytes != 0)
		return kvx_why(why, -EINVAL,
			       "the offset %" PRIu64 " is no multiple of the page size %" PRIu64,
			       mem->fd_offset, mem->page_bytes);
	if (mem->fd_offset > size || mem->len_bytes > size - mem->fd_offset)
		return kvx_why(why, -ERANGE,
			       "the memfd has %" PRIu64 " bytes, the region needs %" PRIu64
			       " from offset %" PRIu64,
			       size, mem->len_bytes, mem->fd_offset);
	/* st_blocks counts 512-byte units of the whole file, of huge pages too. Fewer than the
	 * region has bytes: certainly sparse. What this cannot tell, map() finds out. */
	if ((uint64_t)st->st_blocks * 512 < mem->len_bytes)
		return kvx_why(why, -EINVAL,
			       "the memfd is sparse: %" PRIu64 " of the region's %" PRIu64
			       " bytes have memory: touch or fallocate it first",
			       (uint64_t)st->st_blocks * 512, mem->len_bytes);
	return 0;
}

static int host_check(struct kvx_mem *mem, struct kvx_why *why)
{
	struct stat st;
	int err = host_check_seals(mem->fd, why);
	if (err < 0)
		return err;
	err = host_check_fs(mem, why);
	if (err < 0)
		return err;
	if (fstat(mem->fd, &st) < 0)
		return kvx_why(why, -EBADF, "fstat: %s", strerror(errno));
	return host_check_range(mem, &st, why);
}

/* A file that is larger than what it has memory for may have its holes inside of the region or
 * outside of it. Walks the page cache, which is why it is here and not in check(). Space that was
 * only fallocated and never written looks like a hole: then the whole file must have memory. */
static int host_check_holes(const struct kvx_mem *mem, struct kvx_why *why)
{
	struct stat st;
	if (fstat(mem->fd, &st) < 0)
		return kvx_why(why, -EIO, "fstat: %s", strerror(errno));
	if (st.st_blocks * 512 >= st.st_size)
		return 0;
	off_t before = lseek(mem->fd, 0, SEEK_CUR); /* the client shares the position */
	off_t hole = lseek(mem->fd, (off_t)mem->fd_offset, SEEK_HOLE);
	int err = errno;
	lseek(mem->fd, before, SEEK_SET);
	if (hole < 0)
		return kvx_why(why, -EIO, "lseek(SEEK_HOLE): %s", strerror(err));
	if ((uint64_t)hole < mem->fd_offset + mem->len_bytes)
		return kvx_why(why, -EINVAL,
			       "the memfd is sparse at offset %" PRIu64 ": touch the region's "
			       "memory first, or fallocate the whole file",
			       (uint64_t)hole);
	return 0;
}

struct touch {
	uint8_t *addr;
	uint64_t len_bytes;
	uint64_t page_bytes;
};

static void touch_pages(void *arg)
{
	const struct touch *touch = arg;
	/* Adding 0 atomically writes without changing what the client may be storing there. */
	for (uint64_t at = 0; at < touch->len_bytes; at += touch->page_bytes)
		__atomic_fetch_add(touch->addr + at, 0, __ATOMIC_RELAXED);
}

/* Makes the page tables now, writable, so that no copy stops for a fault later. */
static int host_populate(uint8_t *addr, const struct kvx_mem *mem, uint64_t map_bytes,
			 struct kvx_why *why)
{
	if (madvise(addr, map_bytes, MADV_POPULATE_WRITE) == 0)
		return 0;
	if (errno == EINVAL) { /* a kernel before 5.14 */
		struct touch touch = {addr, mem->len_bytes, mem->page_bytes};
		if (kvx_guard_run(touch_pages, &touch) == 0)
			return 0;
		errno = EFAULT;
	}
	switch (errno) {
	case ENOMEM:
		return kvx_why(why, -ENOMEM, "no memory for the region's pages");
	case EFAULT:
		return kvx_why(why, -EFAULT, "the region's memory is not accessible");
	default:
		return kvx_why(why, -EIO, "cannot populate the region: %s", strerror(errno));
	}
}

static int host_map(struct kvx_mem *mem, struct kvx_why *why)
{
	kvx_assert(mem->addr == NULL && mem->page_bytes > 0);
	int err = host_check_holes(mem, why);
	if (err < 0)
		return err;
	uint64_t map_bytes = round_up(mem->len_bytes, mem->page_bytes);
	void *addr = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mem->fd,
			  (off_t)mem->fd_offset);
	if (addr == MAP_FAILED)
		return kvx_why(why, errno == ENOMEM ? -ENOMEM : -EIO,
			       "mmap of %" PRIu64 " bytes: %s", map_bytes, strerror(errno));
	/* What engines keep there is neither for the daemon's core dumps nor for its children. */
	madvise(addr, map_bytes, MADV_DONTDUMP);
	madvise(addr, map_bytes, MADV_DONTFORK);
	err = host_populate(addr, mem, map_bytes, why);
	if (err < 0) {
		munmap(addr, map_bytes);
		return err;
	}
	mem->addr = addr;
	return 0;
}

static void host_unmap(struct kvx_mem *mem)
{
	if (mem->addr == NULL)
		return;
	munmap(mem->addr, round_up(mem->len_bytes, mem->page_bytes));
	mem->addr = NULL;
}

const struct kvx_mem_ops kvx_mem_host_ops = {
    .kind = KVX_MEM_HOST,
    .name = "host",
    .check = host_check,
    .map = host_map,
    .unmap = host_unmap,
};
