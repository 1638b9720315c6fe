/* The list of backends of this build, and the only place that knows their names. Read-only after
 * the first call; any thread. */
#include <pthread.h>
#include <string.h>

#include "base/assert.h"
#include "transport/transport.h"

/* Best first for the same pair of ends. */
static const struct kvx_transport_ops *const backends[] = {&kvx_copy_ops, &kvx_gpu_transport_ops,
							   &kvx_verbs_ops, &kvx_fabric_ops, NULL};

static void ops_check(const struct kvx_transport_ops *ops)
{
	kvx_assert(ops->name != NULL && ops->name[0] != '\0');
	kvx_assert(ops->probe != NULL && ops->open != NULL && ops->close != NULL);
	kvx_assert(ops->listen != NULL && ops->connect != NULL && ops->ep_close != NULL);
	kvx_assert(ops->mem_reg != NULL && ops->mem_dereg != NULL && ops->mkey_pack != NULL);
	kvx_assert(ops->rkey_unpack != NULL && ops->rkey_free != NULL);
	kvx_assert(ops->post != NULL && ops->progress != NULL && ops->arm != NULL);
	kvx_assert(ops->fence != NULL && ops->lease != NULL);
	kvx_assert(ops->caps & (KVX_CAP_SAME_NODE | KVX_CAP_CROSS_NODE));
	/* Addresses are exchanged only to reach other nodes. */
	kvx_assert(!(ops->caps & KVX_CAP_CONNECT) || (ops->caps & KVX_CAP_CROSS_NODE));
}

static void registry_check(void)
{
	for (unsigned i = 0; backends[i] != NULL; i++) {
		ops_check(backends[i]);
		for (unsigned j = 0; j < i; j++)
			kvx_assert(strcmp(backends[i]->name, backends[j]->name) != 0);
	}
}

const struct kvx_transport_ops *const *kvx_transport_registry(void)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	pthread_once(&once, registry_check);
	return backends;
}

const struct kvx_transport_ops *kvx_transport_find(const char *name)
{
	const struct kvx_transport_ops *const *all = kvx_transport_registry();
	for (; *all != NULL; all++)
		if (strcmp((*all)->name, name) == 0)
			return *all;
	return NULL;
}
