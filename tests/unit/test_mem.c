/* Memory kinds by number and name; ownership of the fd. */
#include "mem/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <unistd.h>

#include "mem/gpu.h"
#include "test_end.h"
#include "test_memory.h"

Test(mem, kinds_are_found_by_number)
{
	cr_assert_eq(kvx_mem_ops_find(KVX_MEM_HOST), &kvx_mem_host_ops);
	cr_assert_eq(kvx_mem_host_ops.kind, KVX_MEM_HOST);
	cr_assert_eq(kvx_mem_ops_find(KVX_MEM_HIP), &kvx_mem_hip_ops);
	cr_assert_eq(kvx_mem_ops_find(KVX_MEM_CUDA), &kvx_mem_cuda_ops);
	cr_assert_null(kvx_mem_ops_find((enum kvx_mem_kind)99));
	KVX_TEST_END();
}

Test(mem, every_kind_has_a_name)
{
	cr_assert_str_eq(kvx_mem_kind_name(KVX_MEM_HOST), "host");
	cr_assert_str_eq(kvx_mem_kind_name(KVX_MEM_DMABUF), "dmabuf");
	cr_assert_str_eq(kvx_mem_kind_name(KVX_MEM_HIP), "hip");
	cr_assert_str_eq(kvx_mem_kind_name(KVX_MEM_CUDA), "cuda");
	cr_assert_str_eq(kvx_mem_kind_name(0), "unknown");
	cr_assert_str_eq(kvx_mem_kind_name(77), "unknown");
	KVX_TEST_END();
}

Test(mem, fini_unmaps_and_closes)
{
	struct kvx_mem mem;

	test_mem_make(&mem, 8192);
	int fd = mem.fd;
	uint8_t *addr = mem.addr;
	kvx_mem_fini(&mem);
	cr_assert_eq(fcntl(fd, F_GETFD), -1);
	cr_assert_eq(errno, EBADF);
	unsigned char resident[2];
	cr_assert_eq(mincore(addr, 8192, resident), -1);
	kvx_mem_fini(&mem); /* again is fine */
	KVX_TEST_END();
}
