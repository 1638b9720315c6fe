/* What the files of gpu_fake.h share. */
#ifndef KVX_TEST_GPU_FAKE_PRIV_H
#define KVX_TEST_GPU_FAKE_PRIV_H

#include <pthread.h>

#include "gpu_fake.h"

extern pthread_mutex_t fake_lock;
extern _Thread_local int fake_bound; /* this thread's device */

/* Counts a call; 0, or what it is to fail with. */
int fake_enter(enum fake_call call);
/* Their calls, into the runtime's table. */
void fake_mem_fill(struct kvx_gpu_ops *ops);
void fake_copy_fill(struct kvx_gpu_ops *ops);
/* Takes away all that was made on a device; nothing that is under way is copied any more. With the
 * lock. */
void fake_mem_reset(int device);
void fake_copy_reset(int device);

#endif
