/* Memory of a region that is no client's: plain memory of the test's process. */
#ifndef KVX_TEST_PLAIN_MEM_H
#define KVX_TEST_PLAIN_MEM_H

#include <errno.h>
#include <stdlib.h>

#include "mem/mem.h"

static inline int test_plain_check(struct kvx_mem *mem, struct kvx_why *why)
{
	mem->page_bytes = 4096;
	return 0;
}

static inline int test_plain_map(struct kvx_mem *mem, struct kvx_why *why)
{
	mem->addr = calloc(1, mem->len_bytes);
	return mem->addr != NULL ? 0 : kvx_why(why, -ENOMEM, "out of memory");
}

static inline void test_plain_unmap(struct kvx_mem *mem)
{
	free(mem->addr);
	mem->addr = NULL;
}

static const struct kvx_mem_ops test_plain_ops = {KVX_MEM_HOST, "test", test_plain_check,
						  test_plain_map, test_plain_unmap};

#endif
