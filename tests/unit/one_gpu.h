/* A transport of one GPU, for nodes that are to have one: its probe finds the device, and the rest
 * is the fake transport. It keeps nothing. */
#ifndef KVX_ONE_GPU_H
#define KVX_ONE_GPU_H

#include "transport/fake/fake.h"

#define TEST_GPU_PCI "0000:11:00.0"

void test_one_gpu_ops(struct kvx_transport_ops *out_ops);

#endif
