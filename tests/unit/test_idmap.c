/* The id map: ids of removed objects stay dead. */
#include "base/idmap.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "fault_alloc.h"
#include "test_end.h"

Test(idmap, removed_id_is_never_found_again)
{
	struct kvx_idmap *map;
	int a, b;
	uint64_t id_a, id_b;

	cr_assert_eq(kvx_idmap_create(4, &map), 0);
	cr_assert_eq(kvx_idmap_add(map, &a, &id_a), 0);
	cr_assert_eq(kvx_idmap_remove(map, id_a), &a);
	cr_assert_eq(kvx_idmap_add(map, &b, &id_b), 0);

	cr_assert_neq(id_a, id_b);
	cr_assert_null(kvx_idmap_find(map, id_a));
	cr_assert_null(kvx_idmap_remove(map, id_a));
	cr_assert_eq(kvx_idmap_find(map, id_b), &b);
	kvx_idmap_destroy(map);
	KVX_TEST_END();
}

Test(idmap, unknown_ids_are_not_found)
{
	static const uint64_t ids[] = {0, 1, UINT32_MAX, UINT64_MAX, 1ull << 32 | 7, 2ull << 32};
	struct kvx_idmap *map;
	uint64_t id;
	int a;

	cr_assert_eq(kvx_idmap_create(4, &map), 0);
	cr_assert_eq(kvx_idmap_add(map, &a, &id), 0);
	cr_assert_neq(id, 0);
	for (size_t i = 0; i < sizeof(ids) / sizeof(ids[0]); i++)
		cr_assert_null(kvx_idmap_find(map, ids[i]), "id %#lx", ids[i]);
	kvx_idmap_destroy(map);
	KVX_TEST_END();
}

Test(idmap, full_map_refuses_until_one_is_removed)
{
	struct kvx_idmap *map;
	int objs[40];
	uint64_t ids[40], extra = 77;

	cr_assert_eq(kvx_idmap_create(40, &map), 0);
	for (int i = 0; i < 40; i++)
		cr_assert_eq(kvx_idmap_add(map, &objs[i], &ids[i]), 0);
	cr_assert_eq(kvx_idmap_add(map, &objs[0], &extra), -EDQUOT);
	cr_assert_eq(extra, 77, "output written on failure");
	cr_assert_eq(kvx_idmap_remove(map, ids[17]), &objs[17]);
	cr_assert_eq(kvx_idmap_add(map, &objs[17], &extra), 0);
	cr_assert_eq(kvx_idmap_count(map), 40);
	kvx_idmap_destroy(map);
	cr_assert_eq(kvx_idmap_create(0, &map), -EINVAL);
	KVX_TEST_END();
}

Test(idmap, walk_sees_each_object_once_and_survives_removal)
{
	struct kvx_idmap *map;
	bool seen[30] = {false};
	int objs[30], *obj;
	uint64_t ids[30];
	uint32_t cursor = 0;
	unsigned n = 0;

	cr_assert_eq(kvx_idmap_create(30, &map), 0);
	for (int i = 0; i < 30; i++)
		cr_assert_eq(kvx_idmap_add(map, &objs[i], &ids[i]), 0);
	while ((obj = kvx_idmap_next(map, &cursor)) != NULL) {
		cr_assert_not(seen[obj - objs]);
		seen[obj - objs] = true;
		cr_assert_eq(kvx_idmap_remove(map, ids[obj - objs]), obj);
		n++;
	}
	cr_assert_eq(n, 30);
	cr_assert_eq(kvx_idmap_count(map), 0);
	kvx_idmap_destroy(map);
	KVX_TEST_END();
}

Test(idmap, random_adds_and_removes_match_a_model)
{
	enum { MAX = 64, STEPS = 200000 };
	struct kvx_idmap *map;
	static uint64_t dead[STEPS], live[MAX];
	static char objs[MAX];
	unsigned n_live = 0, n_dead = 0;

	srand(1);
	cr_assert_eq(kvx_idmap_create(MAX, &map), 0);
	for (unsigned step = 0; step < STEPS; step++) {
		if (n_live < MAX && rand() % 2 == 0) {
			cr_assert_eq(kvx_idmap_add(map, &objs[rand() % MAX], &live[n_live++]), 0);
		} else if (n_live > 0) {
			unsigned i = (unsigned)rand() % n_live;

			cr_assert_not_null(kvx_idmap_remove(map, live[i]));
			dead[n_dead++] = live[i];
			live[i] = live[--n_live];
		}
		if (n_dead > 0)
			cr_assert_null(kvx_idmap_find(map, dead[(unsigned)rand() % n_dead]));
		cr_assert_eq(kvx_idmap_count(map), n_live);
	}
	for (unsigned i = 0; i < n_live; i++)
		cr_assert_not_null(kvx_idmap_find(map, live[i]));
	kvx_idmap_destroy(map);
	KVX_TEST_END();
}

Test(idmap, each_failing_allocation_is_reported)
{
	struct kvx_idmap *map;
	int obj, err = 0;
	unsigned n = 0;

	do {
		uint64_t id;

		fault_alloc_arm(++n);
		map = NULL;
		err = kvx_idmap_create(100, &map);
		for (int i = 0; err == 0 && i < 100; i++)
			err = kvx_idmap_add(map, &obj, &id);
		kvx_idmap_destroy(map);
		cr_assert(err == 0 || err == -ENOMEM);
	} while (fault_alloc_disarm());
	cr_assert_eq(err, 0);
	cr_assert_gt(n, 3, "the sweep met no allocation");
	KVX_TEST_END();
}
