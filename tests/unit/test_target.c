/* Targets: references, and watches that may go while they are told. */
#include "xfer/target.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <string.h>

#include "test_end.h"

struct watcher {
	struct kvx_target_watch watch;
	unsigned n_told;
	int status;
	struct kvx_target *target;
	struct watcher *takes_out; /* when it is told */
	bool drops_ref;
};

static unsigned n_released;

static void on_release(struct kvx_target *target)
{
	n_released++;
}

static void on_lost(struct kvx_target_watch *watch, int status, const char *text)
{
	struct watcher *w = (struct watcher *)watch;
	w->n_told++;
	w->status = status;
	cr_assert_str_eq(text, "why");
	if (w->takes_out != NULL)
		kvx_target_unwatch(w->target, &w->takes_out->watch);
	if (w->drops_ref)
		kvx_target_unref(w->target);
}

Test(target, last_reference_releases_once)
{
	struct kvx_target target = {.release = on_release};
	kvx_target_unref(NULL);
	kvx_target_ref(&target);
	cr_assert_eq(kvx_target_ref(&target), &target);
	kvx_target_unref(&target);
	cr_assert_eq(n_released, 0);
	kvx_target_unref(&target);
	cr_assert_eq(n_released, 1);
	KVX_TEST_END();
}

Test(target, loss_is_told_once_to_each)
{
	struct kvx_target target = {.release = on_release, .n_refs = 1};
	struct watcher w[3];
	memset(w, 0, sizeof(w));
	for (unsigned i = 0; i < 3; i++) {
		w[i].watch.lost = on_lost;
		kvx_target_watch(&target, &w[i].watch);
	}
	kvx_target_lose(&target, -ESTALE, "why");
	kvx_target_lose(&target, -EIO, "another why");
	cr_assert_eq(w[0].n_told, 0, "told before it is time");
	kvx_target_tell(&target);
	kvx_target_tell(&target);
	cr_assert(target.lost);
	cr_assert_eq(target.lost_status, -ESTALE);
	for (unsigned i = 0; i < 3; i++) {
		cr_assert_eq(w[i].n_told, 1);
		cr_assert_eq(w[i].status, -ESTALE);
	}
	KVX_TEST_END();
}

/* The first takes out the second, the third takes out itself and drops the last reference. */
Test(target, watches_may_go_while_told)
{
	struct kvx_target target = {.release = on_release, .n_refs = 1};
	struct watcher w[4];
	memset(w, 0, sizeof(w));
	for (unsigned i = 0; i < 4; i++) {
		w[i].watch.lost = on_lost;
		w[i].target = &target;
		kvx_target_watch(&target, &w[i].watch);
	}
	w[0].takes_out = &w[1];
	w[2].takes_out = &w[2];
	w[2].drops_ref = true;
	kvx_target_lose(&target, -EPIPE, "why");
	kvx_target_tell(&target);
	cr_assert_eq(w[0].n_told, 1);
	cr_assert_eq(w[1].n_told, 0);
	cr_assert_eq(w[2].n_told, 1);
	cr_assert_eq(w[3].n_told, 1);
	cr_assert_eq(n_released, 1);
	KVX_TEST_END();
}
