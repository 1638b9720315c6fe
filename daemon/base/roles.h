/* Thread roles, checked by clang's thread-safety analysis (capability "role"); empty for gcc.
 * KVX_ON_LOOP marks prototypes that only the loop thread may call, KVX_ON_WORKER those of a worker
 * thread. */
#ifndef KVX_ROLES_H
#define KVX_ROLES_H

#if defined(__clang__)
#define KVX_ROLE_ATTR(x) __attribute__((x))
#else
#define KVX_ROLE_ATTR(x)
#endif

struct KVX_ROLE_ATTR(capability("role")) kvx_role {
	char unused;
};
extern struct kvx_role kvx_role_loop;
extern struct kvx_role kvx_role_worker;

#define KVX_ON_LOOP   KVX_ROLE_ATTR(requires_capability(kvx_role_loop))
#define KVX_ON_WORKER KVX_ROLE_ATTR(requires_capability(kvx_role_worker))

/* Entry points that get a void * (libuv callbacks, thread mains) call one of these first: at run
 * time they check the thread, at compile time they tell the analysis which role they have. */
void kvx_role_set_loop(void);   /* this thread is the loop thread */
void kvx_role_set_worker(void); /* this thread is a worker thread */
void kvx_assert_on_loop(void) KVX_ROLE_ATTR(assert_capability(kvx_role_loop));
void kvx_assert_on_worker(void) KVX_ROLE_ATTR(assert_capability(kvx_role_worker));

#endif
