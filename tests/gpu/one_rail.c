/* Linked into a kvxferd of the tests together with the stand-in for libibverbs: it has one device,
 * "fake0", which reaches memory of the stand-in for a GPU runtime by dma-buf or by address, so that
 * the daemon has a use for dma-bufs. */
#include "rdma_gpus.h"

__attribute__((constructor)) static void one_rail(void)
{
	fake_verbs_reset();
	fake_verbs_set_gpus(&test_rdma_gpus);
}
