/* libkvx_weak_fence.so: preloaded into a kvxferd, it leaves the fence out: queue pairs and memory
 * registrations that the daemon destroys go on until its process ends. For the test that must see
 * late bytes; any thread. */
#include <infiniband/verbs.h>

/* These replace the library's; its own declarations have attributes that do not matter here. */
__attribute__((visibility("default"))) int ibv_destroy_qp(struct ibv_qp *qp)
{
	return 0;
}

__attribute__((visibility("default"))) int ibv_dereg_mr(struct ibv_mr *mr)
{
	return 0;
}
