/* Forms of CUDA's driver calls that who makes them (test_gpu.c) and who answers them (front_cu.h)
 * have to agree on. */
#ifndef KVX_CU_ABI_H
#define KVX_CU_ABI_H

#include <stddef.h>

typedef unsigned long long devptr;

struct cuda_copy_2d { /* CUDA_MEMCPY2D */
	size_t src_x, src_y;
	int src_type;
	const void *src_host;
	devptr src_device;
	void *src_array;
	size_t src_pitch;
	size_t dst_x, dst_y;
	int dst_type;
	void *dst_host;
	devptr dst_device;
	void *dst_array;
	size_t dst_pitch;
	size_t width, height;
};

#endif
