/* Regions of the client library: what memory is taken, what the daemon is told. */
#include "client_fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/kvx_wire.h"
#include "test_end.h"

/* Keeps what the daemon got with the last registration. */
struct registered {
	_Atomic int fd;
	uint64_t offset, len, block_bytes;
	uint32_t access, n_planes;
	char name[80], plane_name[40];
};

static enum fake_answer keep_registration(struct fake_daemon *d, uint16_t type)
{
	struct registered *r = d->arg;
	Kvxp__RegionRegister *m;

	if (type != KVXP__FRAME_TYPE__FRAME_REGION_REGISTER)
		return FAKE_DEFAULT;
	m = kvxp__region_register__unpack(NULL, d->len_bytes, d->body);
	r->offset = m->fd_offset;
	r->len = m->len;
	r->access = m->access;
	strcpy(r->name, m->name);
	if (m->layout != NULL) {
		r->n_planes = (uint32_t)m->layout->n_planes;
		r->block_bytes = m->layout->planes[0]->block_bytes;
		strcpy(r->plane_name, m->layout->planes[0]->name);
	}
	kvxp__region_register__free_unpacked(m, NULL);
	r->fd = d->fds[0];
	d->fds[0] = -1;
	return FAKE_DEFAULT;
}

Test(client_region, alloc_sends_a_sealed_memfd_of_the_same_memory)
{
	const int all_seals = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	struct kvxfer_plane planes[4];
	struct kvxfer_layout layout = {planes, 4};
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.name = "kv cache",
						.access = KVXFER_ACCESS_WRITE,
						.layout = &layout};
	struct registered got = {.fd = -1};
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct fake_daemon d;
	char *data, *seen;

	kvxfer_layout_split_kv(0, 2, 10, 512, planes);
	client = start_client(&d, keep_registration, &got, 2000);
	cr_assert_eq(kvxfer_region_alloc(client, 20481, &options, &region), 0, "%s",
		     kvxfer_client_error(client));
	cr_assert_eq(kvxfer_region_bytes(region), 24576);
	data = kvxfer_region_data(region);
	cr_assert_eq((uintptr_t)data % 4096, 0);
	cr_assert_eq(got.len, 24576);
	cr_assert_eq(got.offset, 0);
	cr_assert_eq(got.access, KVXFER_ACCESS_WRITE);
	cr_assert_str_eq(got.name, "kv cache");
	cr_assert_eq(got.n_planes, 4);
	cr_assert_eq(got.block_bytes, 512);
	cr_assert_str_eq(got.plane_name, "k");
	cr_assert_eq(fcntl(got.fd, F_GET_SEALS) & all_seals, all_seals);
	cr_assert_neq(fcntl(got.fd, F_GETFD) & FD_CLOEXEC, 0);
	seen = mmap(NULL, 24576, PROT_READ, MAP_SHARED, got.fd, 0);
	cr_assert_neq(seen, MAP_FAILED);
	data[24575] = 'z';
	cr_assert_eq(seen[24575], 'z');
	munmap(seen, 24576);
	close(got.fd);
	cr_assert_eq(kvxfer_region_unregister(region), 0);
	stop_client(&d, client);
	KVX_TEST_END();
}

Test(client_region, register_takes_the_users_memfd_and_seals_it)
{
	int fd = memfd_create("user", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	struct registered got = {.fd = -1};
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct fake_daemon d;

	cr_assert_eq(ftruncate(fd, 65536), 0);
	client = start_client(&d, keep_registration, &got, 2000);
	cr_assert_eq(kvxfer_region_register(client, fd, 4096, 8192, NULL, &region), 0, "%s",
		     kvxfer_client_error(client));
	cr_assert_null(kvxfer_region_data(region));
	cr_assert_eq(kvxfer_region_bytes(region), 8192);
	cr_assert_eq(got.offset, 4096);
	cr_assert_eq(got.len, 8192);
	cr_assert_eq(got.access, 0);
	cr_assert_neq(fcntl(fd, F_GET_SEALS) & F_SEAL_SHRINK, 0);
	cr_assert_eq(ftruncate(fd, 4096), -1);
	close(got.fd);
	close(fd); /* the library has its own */
	stop_client(&d, client);
	KVX_TEST_END();
}

Test(client_region, register_refuses_what_is_no_sealable_memfd)
{
	int plain = memfd_create("unsealable", MFD_CLOEXEC);
	int good = memfd_create("good", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	int zero = open("/dev/zero", O_RDWR | O_CLOEXEC), pipes[2], readonly;
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct fake_daemon d;
	char path[64];

	cr_assert_eq(pipe2(pipes, O_CLOEXEC), 0);
	cr_assert_eq(ftruncate(plain, 65536), 0);
	cr_assert_eq(ftruncate(good, 65536), 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", good);
	readonly = open(path, O_RDONLY | O_CLOEXEC);
	client = start_client(&d, NULL, NULL, 2000);
	cr_assert_eq(kvxfer_region_register(client, pipes[0], 0, 4096, NULL, &region), -EBADF);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "not a memfd"));
	cr_assert_eq(kvxfer_region_register(client, zero, 0, 4096, NULL, &region), -EBADF);
	cr_assert_eq(kvxfer_region_register(client, -1, 0, 4096, NULL, &region), -EBADF);
	cr_assert_eq(kvxfer_region_register(client, readonly, 0, 4096, NULL, &region), -EBADF);
	cr_assert_eq(kvxfer_region_register(client, plain, 0, 4096, NULL, &region), -EBADF);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "MFD_ALLOW_SEALING"));
	cr_assert_eq(kvxfer_region_register(client, good, 0, 0, NULL, &region), -EINVAL);
	cr_assert_eq(kvxfer_region_register(client, good, 100, 4096, NULL, &region), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "page size"));
	cr_assert_eq(kvxfer_region_register(client, good, 65536, 1, NULL, &region), -EINVAL);
	cr_assert_eq(kvxfer_region_register(client, good, 4096, UINT64_MAX, NULL, &region),
		     -EINVAL);
	cr_assert_eq(fcntl(good, F_GET_SEALS) & F_SEAL_SEAL, 0, "sealed in spite of refusal");
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_REGISTER], 0);
	stop_client(&d, client);
	close(plain);
	close(good);
	close(zero);
	close(readonly);
	close(pipes[0]);
	close(pipes[1]);
	KVX_TEST_END();
}

static int alloc_with_plane(struct kvxfer_client *client, struct kvxfer_plane plane)
{
	struct kvxfer_layout layout = {&plane, 1};
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options), .layout = &layout};
	struct kvxfer_region *region;

	return kvxfer_region_alloc(client, 8192, &options, &region);
}

Test(client_region, alloc_refuses_bad_layouts_and_options)
{
	struct kvxfer_plane many[300] = {{0}};
	struct kvxfer_layout layout = {many, 300};
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options), .layout = &layout};
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct fake_daemon d;

	client = start_client(&d, NULL, NULL, 2000);
	cr_assert_eq(alloc_with_plane(client, (struct kvxfer_plane){"a", 0, 64, 0, 1}), -EINVAL);
	cr_assert_eq(alloc_with_plane(client, (struct kvxfer_plane){"a", 0, 63, 64, 1}), -EINVAL);
	cr_assert_eq(alloc_with_plane(client, (struct kvxfer_plane){"a", 0, 64, 64, 129}), -EINVAL);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "leaves the region"));
	cr_assert_eq(alloc_with_plane(client, (struct kvxfer_plane){"a", 8192, 1, 1, 0}), -EINVAL);
	cr_assert_eq(
	    alloc_with_plane(client, (struct kvxfer_plane){"a", 1, UINT64_MAX, UINT64_MAX, 2}),
	    -EINVAL);
	cr_assert_eq(alloc_with_plane(client, (struct kvxfer_plane){"a name of a plane that is far "
								    "too long",
								    0, 1, 1, 1}),
		     -EINVAL);
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, &region), -EMSGSIZE);
	layout.n_planes = 0;
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, &region), -EINVAL);
	options.layout = NULL;
	cr_assert_eq(kvxfer_region_alloc(client, 0, &options, &region), -EINVAL);
	cr_assert_eq(kvxfer_region_alloc(client, UINT64_MAX, &options, &region), -EINVAL);
	/* More than the machine has: said at once, not tried. */
	cr_assert_eq(kvxfer_region_alloc(client, UINT64_C(1) << 46, &options, &region), -ENOMEM);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "machine that has"));
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, NULL), -EINVAL);
	options.name = "a name of a region that is longer than the sixty-four bytes it may have";
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, &region), -EINVAL);
	options.name = NULL;
	options.flags = KVXFER_REGION_HUGEPAGES;
	cr_assert_eq(kvxfer_region_register(client, 0, 0, 8192, &options, &region), -EINVAL);
	options.flags = 0;
	options.access = 4;
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, &region), -EINVAL);
	options.access = 0;
	options.flags = 2;
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, &region), -EINVAL);
	options.struct_bytes = 0;
	cr_assert_eq(kvxfer_region_alloc(client, 8192, &options, &region), -EINVAL);
	cr_assert_eq(d.n_frames[KVXP__FRAME_TYPE__FRAME_REGION_REGISTER], 0);
	stop_client(&d, client);
	KVX_TEST_END();
}

static enum fake_answer refuse_register(struct fake_daemon *d, uint16_t type)
{
	if (type != KVXP__FRAME_TYPE__FRAME_REGION_REGISTER)
		return FAKE_DEFAULT;
	fake_reply(d, fake_request_id(d), KVXFER_QUOTA, "only 3 regions per client", 0);
	return FAKE_DONE;
}

Test(client_region, refusal_of_the_daemon_is_passed_on)
{
	struct kvxfer_client *client;
	struct kvxfer_region *region = NULL;
	struct fake_daemon d;

	client = start_client(&d, refuse_register, NULL, 2000);
	cr_assert_eq(kvxfer_region_alloc(client, 8192, NULL, &region), -EDQUOT);
	cr_assert_str_eq(kvxfer_client_error(client), "only 3 regions per client");
	cr_assert_null(region);
	stop_client(&d, client);
	KVX_TEST_END();
}

Test(client_region, hugepages_come_or_are_missed_in_words)
{
	struct kvxfer_region_options options = {.struct_bytes = sizeof(options),
						.flags = KVXFER_REGION_HUGEPAGES};
	struct kvxfer_client *client;
	struct kvxfer_region *region;
	struct fake_daemon d;
	int err;

	client = start_client(&d, NULL, NULL, 2000);
	err = kvxfer_region_alloc(client, 4096, &options, &region);
	if (err == 0) {
		cr_assert_eq(kvxfer_region_bytes(region), 2 << 20);
	} else {
		cr_assert_eq(err, -ENOMEM, "%d: %s", err, kvxfer_client_error(client));
		cr_assert_not_null(strstr(kvxfer_client_error(client), "huge pages"));
	}
	stop_client(&d, client);
	KVX_TEST_END();
}

/* However few it has: no region, with the reason, or a region; never a broken connection. */
Test(client_region, a_process_without_file_descriptors_is_told_so)
{
	unsigned n_refused = 0, n_ok = 0;
	struct kvxfer_client *client;
	struct fake_daemon d;
	struct rlimit limit;
	char *json;

	client = start_client(&d, NULL, NULL, 2000);
	cr_assert_eq(getrlimit(RLIMIT_NOFILE, &limit), 0);
	for (unsigned room = 0; room < 8; room++) {
		struct kvxfer_region *region = NULL;
		int lowest = fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0);
		struct rlimit low = {.rlim_cur = (rlim_t)lowest + room, .rlim_max = limit.rlim_max};

		close(lowest);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
		int err = kvxfer_region_alloc(client, 4096, NULL, &region);
		cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
		if (err == 0) {
			n_ok++;
			cr_assert_eq(kvxfer_region_unregister(region), 0);
		} else {
			n_refused++;
			cr_assert_eq(err, -EMFILE, "%d: %s", err, kvxfer_client_error(client));
		}
		cr_assert_eq(kvxfer_client_query(client, "status", NULL, &json), 0);
		free(json);
	}
	cr_assert(n_refused >= 2 && n_ok >= 1, "%u refused, %u not", n_refused, n_ok);
	stop_client(&d, client);
	KVX_TEST_END();
}

/* Of one user, so many may be under way between processes: those of others of its processes, too.
 */
Test(client_region, a_user_with_too_many_file_descriptors_under_way_is_told_so)
{
	struct rlimit low = {.rlim_cur = 300, .rlim_max = 300};
	struct kvxfer_region *region = NULL;
	struct kvxfer_client *client;
	struct kvx_writer *writer;
	struct fake_daemon d;
	int others[2], fds[200], err = 0;
	char *json;

	client = start_client(&d, NULL, NULL, 2000);
	cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, others), 0);
	cr_assert_eq(kvx_writer_create(&writer), 0);
	for (unsigned i = 0; i < 200; i++)
		fds[i] = others[0];
	/* Root has no such limit, and with another user's count no other program interferes. */
	if (setresuid(65431, 65431, 65431) != 0)
		cr_skip_test("only root can become a user of its own");
	cr_assert_eq(setrlimit(RLIMIT_NOFILE, &low), 0);
	for (unsigned i = 0; err == 0 && i < 20; i++) {
		cr_assert_eq(kvx_writer_put(writer, 1, "x", 1, fds, 200), 0);
		err = kvx_writer_flush(writer, others[0]);
	}
	cr_assert_eq(err, -ETOOMANYREFS);
	cr_assert_eq(kvxfer_region_alloc(client, 4096, NULL, &region), -EMFILE);
	cr_assert_not_null(strstr(kvxfer_client_error(client), "on their way"), "%s",
			   kvxfer_client_error(client));
	cr_assert_eq(kvxfer_client_query(client, "status", NULL, &json), 0);
	free(json);
	kvx_writer_destroy(writer);
	close(others[0]);
	close(others[1]); /* they have all arrived */
	for (unsigned i = 0; region == NULL && i < 200; i++) {
		usleep(10000);
		err = kvxfer_region_alloc(client, 4096, NULL, &region);
	}
	cr_assert_eq(err, 0, "%s", kvxfer_client_error(client));
	stop_client(&d, client);
	KVX_TEST_END();
}
