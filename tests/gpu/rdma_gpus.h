/* The stand-in GPUs, as the stand-in for libibverbs finds their memory: by dma-buf or by address.
 */
#ifndef KVX_TEST_RDMA_GPUS_H
#define KVX_TEST_RDMA_GPUS_H

#include "fake_verbs.h"

extern const struct fake_verbs_gpus test_rdma_gpus;

#endif
