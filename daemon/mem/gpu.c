/* The memory kinds of GPUs: what a client sent is checked here without asking any runtime, its fds
 * on the job thread and all else on the loop. It is mapped by the domain of its device
 * (transport/gpu), where calls that may hang have a deadline: map() and unmap() have nothing to do.
 */
#include "mem/gpu.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"

/* A copy of a crumb costs as much as one of a page, and an op may run over thousands of them. */
#define SMALL_SEGMENT_BYTES 4096u
#define SMALL_SEGMENTS_MAX  64u

struct kvx_gpu_mem *kvx_gpu_mem_create(uint32_t n_bases, uint32_t n_segments)
{
	struct kvx_gpu_mem *gpu = calloc(1, sizeof(*gpu));

	if (gpu == NULL)
		return NULL;
	gpu->bases = calloc(n_bases > 0 ? n_bases : 1, sizeof(*gpu->bases));
	gpu->segments = calloc(n_segments > 0 ? n_segments : 1, sizeof(*gpu->segments));
	if (gpu->bases == NULL || gpu->segments == NULL) {
		kvx_gpu_mem_destroy(gpu);
		return NULL;
	}
	gpu->n_bases = n_bases;
	gpu->n_segments = n_segments;
	for (uint32_t i = 0; i < n_bases; i++)
		gpu->bases[i].fd = -1;
	return gpu;
}

void kvx_gpu_mem_close_fds(struct kvx_gpu_mem *gpu)
{
	for (uint32_t i = 0; i < gpu->n_bases; i++) {
		if (gpu->bases[i].fd >= 0)
			close(gpu->bases[i].fd);
		gpu->bases[i].fd = -1;
	}
}

void kvx_gpu_mem_destroy(struct kvx_gpu_mem *gpu)
{
	if (gpu == NULL)
		return;
	kvx_gpu_mem_close_fds(gpu);
	free(gpu->bases);
	free(gpu->segments);
	free(gpu);
}

/* 1: it is; 0: it is not; -EDQUOT: the daemon has no fd left to find out. */
static int fd_is_dmabuf(int fd)
{
	char path[40], text[512];

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	int info = open(path, O_RDONLY | O_CLOEXEC);
	if (info < 0)
		return errno == EMFILE || errno == ENFILE ? -EDQUOT : 0;
	ssize_t n = read(info, text, sizeof(text) - 1);
	close(info);
	text[n > 0 ? n : 0] = '\0';
	return strstr(text, "\nexp_name:") != NULL;
}

/* Closing a stranger's file may block for as long as its file system likes; that of a dma-buf or
 * a memfd, which are the kernel's alone, does not. Neither question asks a file system, and no
 * other file can answer them so. */
static int fd_is_kernel_memory(int fd)
{
	return fcntl(fd, F_GET_SEALS) >= 0 ? 1 : fd_is_dmabuf(fd);
}

int kvx_gpu_mem_check_fds(const struct kvx_gpu_mem *gpu, struct kvx_why *why)
{
	for (uint32_t i = 0; i < gpu->n_bases; i++) {
		int is = gpu->bases[i].fd >= 0 ? fd_is_kernel_memory(gpu->bases[i].fd) : 1;

		if (is < 0)
			return kvx_why(why, is,
				       "the daemon has no free file descriptor to look at a "
				       "dma-buf: raise LimitNOFILE in kvxferd.service");
		if (is == 0)
			return kvx_why(why, -EBADF,
				       "allocation %" PRIu32 ": its file descriptor is no dma-buf",
				       i);
	}
	return 0;
}

uint32_t kvx_gpu_mem_find(const struct kvx_gpu_mem *gpu, uint64_t offset)
{
	uint32_t low = 0, high = gpu->n_segments;

	while (high - low > 1) {
		uint32_t mid = low + (high - low) / 2;

		if (gpu->segments[mid].start <= offset)
			low = mid;
		else
			high = mid;
	}
	return low;
}

uint64_t kvx_gpu_mem_addr(const struct kvx_gpu_mem *gpu, uint64_t offset, uint64_t *out_room)
{
	const struct kvx_gpu_segment *segment = &gpu->segments[kvx_gpu_mem_find(gpu, offset)];
	uint64_t at = offset - segment->start;

	kvx_assert(at < segment->len_bytes && gpu->bases[segment->base].addr != 0);
	*out_room = segment->len_bytes - at;
	return gpu->bases[segment->base].addr + segment->offset + at;
}

static int check_segment(const struct kvx_gpu_mem *gpu, uint32_t i, struct kvx_why *why)
{
	const struct kvx_gpu_segment *segment = &gpu->segments[i];

	if (segment->base >= gpu->n_bases)
		return kvx_why(why, -EINVAL,
			       "segment %" PRIu32 " names allocation %" PRIu32 " of %" PRIu32, i,
			       segment->base, gpu->n_bases);
	uint64_t have = gpu->bases[segment->base].len_bytes;
	if (segment->len_bytes == 0 || segment->offset > have ||
	    segment->len_bytes > have - segment->offset)
		return kvx_why(why, -ERANGE,
			       "segment %" PRIu32 " (offset %" PRIu64 ", %" PRIu64
			       " bytes) leaves its allocation of %" PRIu64 " bytes",
			       i, segment->offset, segment->len_bytes, have);
	return 0;
}

static int check_witnesses(const struct kvx_gpu_mem *gpu, uint64_t len_bytes, struct kvx_why *why)
{
	for (uint32_t i = 0; i < gpu->n_witnesses; i++) {
		uint64_t offset = gpu->witnesses[i].offset, room;

		if (offset >= len_bytes)
			return kvx_why(why, -ERANGE,
				       "a witness at %" PRIu64 " of %" PRIu64 " bytes", offset,
				       len_bytes);
		const struct kvx_gpu_segment *segment =
		    &gpu->segments[kvx_gpu_mem_find(gpu, offset)];
		room = segment->len_bytes - (offset - segment->start);
		if (room < KVX_GPU_WITNESS_BYTES)
			return kvx_why(why, -ERANGE, "a witness at %" PRIu64 " leaves its segment",
				       offset);
	}
	return 0;
}

static int check_crumbs(const struct kvx_gpu_mem *gpu, struct kvx_why *why)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < gpu->n_segments; i++)
		n += gpu->segments[i].len_bytes < SMALL_SEGMENT_BYTES;
	if (n > SMALL_SEGMENTS_MAX)
		return kvx_why(why, -EINVAL,
			       "%" PRIu32 " segments have less than %u bytes, %u may: register "
			       "the allocations that they lie in, and name the parts by a layout",
			       n, SMALL_SEGMENT_BYTES, SMALL_SEGMENTS_MAX);
	return 0;
}

/* Fills the segments' starts. */
static int gpu_check(struct kvx_mem *mem, struct kvx_why *why)
{
	struct kvx_gpu_mem *gpu = mem->gpu;
	uint64_t sum = 0;

	if (gpu == NULL || gpu->n_segments == 0)
		return kvx_why(why, -EINVAL, "a region of GPU memory needs segments");
	if (gpu->id.pci[0] == '\0' && !kvx_gpu_uuid_known(&gpu->id))
		return kvx_why(why, -EINVAL, "the device of the memory is not named");
	for (uint32_t i = 0; i < gpu->n_segments; i++) {
		int err = check_segment(gpu, i, why);

		if (err < 0)
			return err;
		gpu->segments[i].start = sum;
		if (__builtin_add_overflow(sum, gpu->segments[i].len_bytes, &sum))
			return kvx_why(why, -ERANGE, "the segments are more than 2^64 bytes");
	}
	if (sum != mem->len_bytes)
		return kvx_why(why, -EINVAL,
			       "the segments have %" PRIu64 " bytes, the region %" PRIu64, sum,
			       mem->len_bytes);
	int err = check_crumbs(gpu, why);
	if (err < 0)
		return err;
	mem->page_bytes = 4096;
	return check_witnesses(gpu, mem->len_bytes, why);
}

static int gpu_map(struct kvx_mem *mem, struct kvx_why *why)
{
	return 0;
}

static void gpu_unmap(struct kvx_mem *mem)
{
}

const struct kvx_mem_ops kvx_mem_hip_ops = {
    .kind = KVX_MEM_HIP,
    .name = "hip",
    .check = gpu_check,
    .map = gpu_map,
    .unmap = gpu_unmap,
};

const struct kvx_mem_ops kvx_mem_cuda_ops = {
    .kind = KVX_MEM_CUDA,
    .name = "cuda",
    .check = gpu_check,
    .map = gpu_map,
    .unmap = gpu_unmap,
};
