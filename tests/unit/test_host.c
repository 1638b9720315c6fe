/* Host memory: what clients may hand over, and the tricks that are refused by name. */
#include "mem/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "mem/guard.h"
#include "test_end.h"
#include "test_memory.h"

#define PAGE    4096u
#define HUGE_2M (2u << 20)

/* What check() says of an fd, which it takes. */
static int check_fd(int fd, uint64_t offset, uint64_t len, struct kvx_why *why)
{
	struct kvx_mem mem;

	cr_assert_geq(fd, 0);
	why->text[0] = '\0';
	kvx_mem_init(&mem, &kvx_mem_host_ops, fd, offset, len);
	int err = mem.ops->check(&mem, why);

	kvx_mem_fini(&mem);
	return err;
}

#define assert_says(why, words)                                                                    \
	cr_assert_not_null(strstr((why).text, words), "\"%s\" lacks \"%s\"", (why).text, words)

Test(host, sealed_memfd_is_taken_and_mapped)
{
	struct kvx_mem mem;
	int fd = test_memfd(4 * PAGE, TEST_SEALS);
	uint8_t *client = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	cr_assert_neq(client, MAP_FAILED);
	client[PAGE] = 17;
	kvx_mem_init(&mem, &kvx_mem_host_ops, fd, PAGE, 2 * PAGE + 5);
	cr_assert_eq(mem.ops->check(&mem, NULL), 0);
	cr_assert_eq(mem.page_bytes, PAGE);
	cr_assert_eq(mem.ops->map(&mem, NULL), 0);
	cr_assert_eq(mem.addr[0], 17);
	mem.addr[2 * PAGE + 4] = 42;
	cr_assert_eq(client[3 * PAGE + 4], 42);
	mem.ops->unmap(&mem);
	cr_assert_null(mem.addr);
	mem.ops->unmap(&mem); /* again is fine */
	kvx_mem_fini(&mem);
	munmap(client, 4 * PAGE);
	KVX_TEST_END();
}

Test(host, mapping_fills_the_page_tables)
{
	struct kvx_mem mem;
	unsigned char resident[16];

	test_mem_make(&mem, 16 * PAGE);
	cr_assert_eq(mincore(mem.addr, 16 * PAGE, resident), 0);
	for (unsigned i = 0; i < 16; i++)
		cr_assert(resident[i] & 1, "page %u", i);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

Test(host, each_missing_seal_is_named)
{
	struct kvx_why why;

	cr_assert_eq(check_fd(test_memfd(PAGE, F_SEAL_GROW | F_SEAL_SEAL), 0, PAGE, &why), -EPERM);
	assert_says(why, "seals missing: F_SEAL_SHRINK;");
	assert_says(why, "MFD_ALLOW_SEALING");
	cr_assert_eq(check_fd(test_memfd(PAGE, F_SEAL_SHRINK), 0, PAGE, &why), -EPERM);
	assert_says(why, "seals missing: F_SEAL_GROW F_SEAL_SEAL;");
	assert_says(why, "F_ADD_SEALS");
	KVX_TEST_END();
}

Test(host, sealed_against_writing_is_refused)
{
	struct kvx_why why;
	int seals = TEST_SEALS;

	cr_assert_eq(check_fd(test_memfd(PAGE, seals | F_SEAL_WRITE), 0, PAGE, &why), -EPERM);
	assert_says(why, "F_SEAL_WRITE");
	cr_assert_eq(check_fd(test_memfd(PAGE, seals | 0x0010), 0, PAGE, &why), -EPERM);
	assert_says(why, "F_SEAL_FUTURE_WRITE");
	KVX_TEST_END();
}

Test(host, other_fds_are_refused_by_name)
{
	struct kvx_why why;
	char path[] = "/tmp/kvx-host-XXXXXX";
	int pair[2];

	cr_assert_eq(pipe2(pair, O_CLOEXEC), 0);
	cr_assert_eq(check_fd(pair[0], 0, PAGE, &why), -EBADF);
	assert_says(why, "the fd is a pipe, not a memfd");
	cr_assert_eq(check_fd(pair[1], 0, PAGE, &why), -EBADF);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
	cr_assert_eq(check_fd(pair[0], 0, PAGE, &why), -EBADF);
	assert_says(why, "a socket");
	close(pair[1]);
	cr_assert_eq(check_fd(open("/dev/zero", O_RDWR | O_CLOEXEC), 0, PAGE, &why), -EBADF);
	assert_says(why, "a character device (/dev/zero)");
	cr_assert_eq(check_fd(open("/", O_RDONLY | O_CLOEXEC), 0, PAGE, &why), -EBADF);
	assert_says(why, "a directory");
	cr_assert_eq(check_fd(open("/", O_PATH | O_CLOEXEC), 0, PAGE, &why), -EBADF);
	assert_says(why, "O_PATH");
	cr_assert_eq(check_fd(eventfd(0, EFD_CLOEXEC), 0, PAGE, &why), -EBADF);
	assert_says(why, "[eventfd]");
	int fd = mkostemp(path, O_CLOEXEC);
	unlink(path);
	cr_assert_eq(ftruncate(fd, PAGE), 0);
	int err = check_fd(fd, 0, PAGE, &why);
	/* /tmp may be a tmpfs: then the file has seals, but lacks the needed ones for good. */
	cr_assert(err == -EBADF || err == -EPERM, "%d", err);
	assert_says(why, err == -EBADF ? "a regular file" : "MFD_ALLOW_SEALING");
	KVX_TEST_END();
}

Test(host, read_only_fd_is_refused)
{
	struct kvx_why why;
	char path[64];
	int fd = test_memfd(PAGE, TEST_SEALS);

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	cr_assert_eq(check_fd(open(path, O_RDONLY | O_CLOEXEC), 0, PAGE, &why), -EBADF);
	assert_says(why, "not open for reading and writing");
	close(fd);
	KVX_TEST_END();
}

Test(host, range_outside_of_the_file_is_refused)
{
	struct kvx_why why;
	static const uint64_t bad[][2] = {
	    {0, 3 * PAGE + 1},  {PAGE, 2 * PAGE + 1},
	    {4 * PAGE, 1},      {PAGE, UINT64_MAX - PAGE + 1},
	    {PAGE, UINT64_MAX}, {UINT64_MAX - PAGE + 1, PAGE},
	    {0, UINT64_MAX},
	};

	for (unsigned i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		int fd = test_memfd(3 * PAGE, TEST_SEALS);

		cr_assert_eq(check_fd(fd, bad[i][0], bad[i][1], &why), -ERANGE, "case %u", i);
		assert_says(why, "the memfd has 12288 bytes");
	}
	cr_assert_eq(check_fd(test_memfd(3 * PAGE, TEST_SEALS), 0, 0, &why), -EINVAL);
	assert_says(why, "length is 0");
	cr_assert_eq(check_fd(test_memfd(3 * PAGE, TEST_SEALS), 100, PAGE, &why), -EINVAL);
	assert_says(why, "page size 4096");
	KVX_TEST_END();
}

static int sparse_memfd(size_t len)
{
	int fd = memfd_create("sparse", MFD_CLOEXEC | MFD_ALLOW_SEALING);

	cr_assert_eq(ftruncate(fd, (off_t)len), 0);
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, TEST_SEALS), 0);
	return fd;
}

Test(host, sparse_memory_is_refused)
{
	struct kvx_why why;

	cr_assert_eq(check_fd(sparse_memfd(1ull << 40), 0, 1ull << 40, &why), -EINVAL);
	assert_says(why, "touch or fallocate it first");
	KVX_TEST_END();
}

/* Half of the file has memory: as much as the region has bytes, but perhaps elsewhere. */
Test(host, holes_are_found_when_mapping)
{
	struct kvx_why why;
	struct kvx_mem mem;
	char page[PAGE];
	int fd = sparse_memfd(8 * PAGE);

	memset(page, 5, sizeof(page));
	for (unsigned i = 0; i < 4; i++)
		cr_assert_eq(pwrite(fd, page, PAGE, i * PAGE), PAGE);
	cr_assert_eq(lseek(fd, 123, SEEK_SET), 123);
	kvx_mem_init(&mem, &kvx_mem_host_ops, fd, 0, 4 * PAGE);
	cr_assert_eq(mem.ops->check(&mem, &why), 0, "%s", why.text);
	cr_assert_eq(mem.ops->map(&mem, &why), 0, "%s", why.text);
	cr_assert_eq(lseek(fd, 0, SEEK_CUR), 123); /* the client's position is as it was */
	mem.ops->unmap(&mem);
	mem.fd_offset = 2 * PAGE;
	cr_assert_eq(mem.ops->check(&mem, &why), 0, "%s", why.text);
	cr_assert_eq(mem.ops->map(&mem, &why), -EINVAL);
	assert_says(why, "sparse at offset 16384");
	cr_assert_null(mem.addr);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

static void read_page(void *arg)
{
	(void)*(volatile uint8_t *)arg;
}

/* Punching works in spite of the seals; for tmpfs the next access gets a fresh page. */
Test(host, punched_hole_reads_as_zeros)
{
	struct kvx_mem mem;

	cr_assert_eq(kvx_guard_install(), 0);
	test_mem_make(&mem, 4 * PAGE);
	mem.addr[PAGE] = 9;
	cr_assert_eq(fallocate(mem.fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, PAGE, PAGE), 0);
	cr_assert_eq(kvx_guard_run(read_page, mem.addr + PAGE), 0);
	cr_assert_eq(mem.addr[PAGE], 0);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

/* Huge pages that were punched out may not be there any more: SIGBUS, which the guard catches. */
Test(host, hugetlb_is_mapped_and_a_punched_page_is_survived)
{
	struct kvx_mem mem;
	struct kvx_why why;
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);

	if (fd < 0)
		cr_skip_test("no hugetlb memfd: %s", strerror(errno));
	if (ftruncate(fd, 2 * HUGE_2M) < 0 || fallocate(fd, 0, 0, 2 * HUGE_2M) < 0) {
		close(fd);
		cr_skip_test("no two huge pages are free (vm.nr_hugepages): %s", strerror(errno));
	}
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, TEST_SEALS), 0);
	cr_assert_eq(kvx_guard_install(), 0);
	kvx_mem_init(&mem, &kvx_mem_host_ops, fd, 0, HUGE_2M + 5);
	cr_assert_eq(mem.ops->check(&mem, &why), 0, "%s", why.text);
	cr_assert_eq(mem.page_bytes, HUGE_2M);
	cr_assert_eq(mem.ops->map(&mem, &why), 0, "%s", why.text);
	mem.addr[HUGE_2M + 4] = 1;
	cr_assert_eq(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, HUGE_2M, HUGE_2M),
		     0);
	int err = kvx_guard_run(read_page, mem.addr + HUGE_2M);
	cr_assert(err == 0 || err == -EFAULT);
	kvx_mem_fini(&mem);
	KVX_TEST_END();
}

Test(host, hugetlb_offset_must_be_a_huge_page)
{
	struct kvx_why why;
	int fd = memfd_create("huge", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB);

	if (fd < 0)
		cr_skip_test("no hugetlb memfd: %s", strerror(errno));
	cr_assert_eq(ftruncate(fd, 2 * HUGE_2M), 0); /* reserves nothing yet */
	cr_assert_eq(fcntl(fd, F_ADD_SEALS, TEST_SEALS), 0);
	int again = dup(fd);
	cr_assert_eq(check_fd(fd, PAGE, PAGE, &why), -EINVAL);
	assert_says(why, "page size 2097152");
	cr_assert_eq(check_fd(again, HUGE_2M, HUGE_2M, &why), -EINVAL);
	KVX_TEST_END();
}
