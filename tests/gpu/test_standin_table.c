/* The stand-in for a GPU runtime by the table that the daemon calls a runtime with: what it uses
 * beyond what engines do. */
#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/gpu.h"
#include "standin_rig.h"

static struct kvx_gpu *open_table(void)
{
	struct kvx_gpu_find find = {.kind = strcmp(test_gpu_runtime(), "hip") == 0 ? KVX_GPU_HIP
										   : KVX_GPU_CUDA};
	struct kvx_gpu *gpu = NULL;
	struct kvx_why why = {0};

	cr_assert_eq(kvx_gpu_open(&find, &gpu, &why), 0, "%s", why.text);
	cr_assert_eq(gpu->ops->open(gpu, 0), 0);
	cr_assert_eq(gpu->ops->bind(gpu, 0, NULL), 0);
	return gpu;
}

static void close_table(struct kvx_gpu *gpu)
{
	gpu->ops->close(gpu, 0);
	kvx_gpu_close(gpu);
	node_close();
}

Test(standin, a_batch_moves_all_its_copies)
{
	uint64_t src, dst, dsts[3], srcs[3];
	size_t lens[3] = {100, 200, 300};
	struct kvx_gpu *gpu;
	void *stream;

	node_open();
	gpu = open_table();
	if (!(gpu->caps & KVX_GPU_CAP_BATCH)) {
		close_table(gpu);
		cr_skip_test("this release has no batched copies");
	}
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &src), 0);
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &dst), 0);
	cr_assert_eq(gpu->ops->stream_create(gpu, &stream), 0);
	memset(standin_bytes((void *)src), 0x11, 4096);
	for (unsigned i = 0; i < 3; i++) {
		srcs[i] = src + 1000 * i;
		dsts[i] = dst + 1000 * i;
	}
	cr_assert_eq(gpu->ops->copy_batch(gpu, dsts, srcs, lens, 3, stream), 0);
	cr_assert_eq(gpu->ops->stream_sync(gpu, stream), 0);
	for (unsigned i = 0; i < 3; i++) {
		const uint8_t *at = standin_bytes((void *)dsts[i]);

		cr_assert_eq(at[0], 0x11);
		cr_assert_eq(at[lens[i] - 1], 0x11);
		cr_assert_eq(at[lens[i]], 0);
	}
	gpu->ops->stream_destroy(gpu, stream);
	close_table(gpu);
}

Test(standin, the_kernel_copies_what_its_list_says)
{
	struct kvx_gpu_piece *list = NULL;
	uint64_t src, dst;
	struct kvx_gpu *gpu;
	void *stream, *kernel;

	node_open();
	gpu = open_table();
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &src), 0);
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 4096, &dst), 0);
	cr_assert_eq(gpu->ops->stream_create(gpu, &stream), 0);
	cr_assert_eq(gpu->ops->kernel_load(gpu, &kernel), 0);
	cr_assert_eq(gpu->ops->host_alloc(gpu, 4096, (void **)&list), 0);
	memset(standin_bytes((void *)src), 0x22, 4096);
	list[0] = (struct kvx_gpu_piece){dst, src, 16};
	list[1] = (struct kvx_gpu_piece){dst + 64, src + 100, 8};
	cr_assert_eq(gpu->ops->kernel_run(gpu, kernel, (uintptr_t)list, 2, stream), 0);
	cr_assert_eq(gpu->ops->stream_sync(gpu, stream), 0);
	cr_assert_eq(standin_bytes((void *)dst)[15], 0x22);
	cr_assert_eq(standin_bytes((void *)dst)[16], 0);
	cr_assert_eq(standin_bytes((void *)dst)[71], 0x22);
	/* An address that is none ends the device for this process, as it does on a real one. */
	list[0].dst = 4096;
	cr_assert_eq(gpu->ops->kernel_run(gpu, kernel, (uintptr_t)list, 1, stream), 0);
	cr_assert_eq(gpu->ops->stream_sync(gpu, stream), -ENODEV);
	close_table(gpu);
}

Test(standin, a_dma_buf_is_the_memory_itself)
{
	uint64_t addr, offset;
	struct kvx_gpu *gpu;
	uint8_t *map;
	int fd = -1, rc;

	node_open();
	gpu = open_table();
	cr_assert_eq(gpu->ops->mem_alloc(gpu, 8192, &addr), 0);
	rc = gpu->ops->dmabuf_export(gpu, addr, 8192, &fd, &offset);
	if (rc == -EOPNOTSUPP) {
		close_table(gpu);
		cr_skip_test("this release exports no dma-buf");
	}
	cr_assert_eq(rc, 0);
	map = mmap(NULL, 8192, PROT_READ, MAP_SHARED, fd, (off_t)offset);
	cr_assert_neq(map, MAP_FAILED);
	memset(standin_bytes((void *)addr), 0x33, 8192);
	cr_assert_eq(map[8191], 0x33);
	munmap(map, 8192);
	close(fd);
	close_table(gpu);
}

Test(standin, a_reset_ends_what_is_queued_and_takes_all_that_was_held)
{
	uint64_t src, dst;
	struct kvx_gpu *gpu;
	void *stream, *event;

	node_open();
	gpu = open_table();
	cr_assert_eq(gpu->ops->mem_alloc(gpu, MIB, &src), 0);
	cr_assert_eq(gpu->ops->mem_alloc(gpu, MIB, &dst), 0);
	cr_assert_eq(gpu->ops->stream_create(gpu, &stream), 0);
	cr_assert_eq(gpu->ops->event_create(gpu, &event), 0);
	standin_stall(0, true);
	cr_assert_eq(gpu->ops->copy(gpu, dst, src, MIB, stream), 0);
	cr_assert_eq(gpu->ops->event_record(gpu, event, stream), 0);
	cr_assert_eq(gpu->ops->event_query(gpu, event), -EAGAIN);
	cr_assert_eq(gpu->ops->reset(gpu, 0), 0);
	cr_assert_eq(standin_usage(0).n_allocs, 0);
	cr_assert_neq(gpu->ops->event_query(gpu, event), 0, "the copy was never made");
	standin_stall(0, false);
	close_table(gpu);
}
