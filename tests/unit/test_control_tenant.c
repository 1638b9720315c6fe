/* Tenants: the socket decides which one a client is of, and nothing of one is reached from another.
 */
#include "control_fixture.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/un.h>

#define BLUE 1u

static void config_with(struct kvx_config *config, const char *tenants)
{
	kvx_config_defaults(config);
	snprintf(config->tenants, sizeof(config->tenants), "%s", tenants);
}

/* a is of the default tenant, b of blue. */
static void two_tenants(void)
{
	struct kvx_config config;
	char tenants[64];

	snprintf(tenants, sizeof(tenants), "blue=@kvxrig-blue-%d", (int)getpid());
	config_with(&config, tenants);
	rig_open(&rig, &config);
	rig_client_hello(&rig, &a);
	rig_client_hello_of(&rig, &b, BLUE);
}

static void import_of(struct rig_client *rc, struct rig_client *owner, uint64_t region)
{
	Kvxp__Import req = KVXP__IMPORT__INIT;
	uint8_t desc[KVX_DESC_BYTES];

	rig_export(owner, region, desc);
	req.request_id = 11;
	req.descriptor = (ProtobufCBinaryData){sizeof(desc), desc};
	rig_send(rc, KVXP__FRAME_TYPE__FRAME_IMPORT, &req.base, -1);
}

Test(tenant, region_of_another_one_cannot_be_imported)
{
	two_tenants();
	import_of(&a, &b, rig_register(&b, 4, KVX_ACCESS_READ | KVX_ACCESS_WRITE));
	reply_is(&a, 11, KVX_STATUS_ACCESS, "the region belongs to another tenant");
	import_of(&b, &a, rig_register(&a, 4, KVX_ACCESS_READ | KVX_ACCESS_WRITE));
	reply_is(&b, 11, KVX_STATUS_ACCESS, "this client is of tenant blue");
	cr_assert_eq(kvx_idmap_count(a.client->imports), 0, "a refused import leaves nothing");
	all_gone();
	KVX_TEST_END();
}

Test(tenant, clients_of_one_share_their_regions)
{
	struct rig_client c;
	uint64_t region;

	two_tenants();
	rig_client_hello_of(&rig, &c, BLUE);
	region = rig_register(&b, 4, KVX_ACCESS_WRITE);
	cr_assert_neq(rig_import(&c, &b, region), 0);
	cr_assert_eq(kvx_region_find(kvx_node_regions(rig.node), region)->tenant, BLUE);
	rig_client_close(&c);
	all_gone();
	KVX_TEST_END();
}

/* The token is checked first: who has none learns nothing of the region. */
Test(tenant, wrong_token_is_not_told_whose_region_it_is)
{
	Kvxp__Import req = KVXP__IMPORT__INIT;
	uint8_t bytes[KVX_DESC_BYTES];
	struct kvx_desc desc;

	two_tenants();
	rig_export(&b, rig_register(&b, 4, KVX_ACCESS_READ), bytes);
	cr_assert_eq(kvx_desc_unpack(bytes, sizeof(bytes), &desc, NULL), 0);
	desc.token[0] ^= 1;
	kvx_desc_pack(&desc, bytes);
	req.request_id = 11;
	req.descriptor = (ProtobufCBinaryData){sizeof(bytes), bytes};
	rig_send(&a, KVXP__FRAME_TYPE__FRAME_IMPORT, &req.base, -1);
	reply_is(&a, 11, KVX_STATUS_ACCESS, "token");
	all_gone();
	KVX_TEST_END();
}

Test(tenant, hello_reply_names_it)
{
	Kvxp__Hello hello = KVXP__HELLO__INIT;
	Kvxp__HelloReply *reply;
	struct rig_client c;

	two_tenants();
	cr_assert_eq(rig_client_open(&rig, &c), 0);
	c.client->tenant = BLUE;
	hello.version_min = hello.version_max = 1;
	rig_send(&c, KVXP__FRAME_TYPE__FRAME_HELLO, &hello.base, -1);
	reply = kvxp__hello_reply__unpack(NULL, c.frames[0].len, c.frames[0].body);
	cr_assert_str_eq(reply->tenant, "blue");
	kvxp__hello_reply__free_unpacked(reply, NULL);
	rig_client_close(&c);
	all_gone();
	KVX_TEST_END();
}

/* ---- what is shown to whom */

static char *answer(struct rig_client *rc, const char *verb)
{
	Kvxp__Reply *reply;
	char *text;

	query(rc, verb);
	reply = rig_take_reply(rc);
	cr_assert_neq(reply, NULL);
	cr_assert_eq(reply->status, KVX_STATUS_OK, "%s", reply->text);
	text = strdup(reply->text);
	kvxp__reply__free_unpacked(reply, NULL);
	return text;
}

static void shows(struct rig_client *rc, const char *verb, const char *tenant, bool yes)
{
	char word[64];
	char *text = answer(rc, verb);

	snprintf(word, sizeof(word), "\"%s\":\"%s\"",
		 strcmp(verb, "status") == 0 ? "name" : "tenant", tenant);
	cr_assert_eq(strstr(text, word) != NULL, yes, "%s: %s: %s", verb, word, text);
	free(text);
}

/* Both tenants have a client, a region and a refused transfer. */
static void populate(void)
{
	struct rig_client *each[] = {&a, &b};

	for (unsigned i = 0; i < 2; i++) {
		uint64_t region = rig_register(each[i], 1, 0);

		submit_blocks(each[i],
			      (struct submit){.number = 1, .region = region, .n_blocks = 1});
		terminal_is(each[i], 1, KVX_STATUS_NOT_FOUND, "import");
	}
}

Test(tenant, administrators_see_all_of_them)
{
	static const char *const verbs[] = {"clients", "regions", "transfers", "status"};

	two_tenants();
	populate();
	for (unsigned i = 0; i < 4; i++) {
		shows(&b, verbs[i], "default", true);
		shows(&b, verbs[i], "blue", true);
	}
	all_gone();
	KVX_TEST_END();
}

Test(tenant, others_see_their_own)
{
	static const char *const verbs[] = {"clients", "regions", "transfers", "status"};

	two_tenants();
	populate();
	a.client->uid = b.client->uid = 12345;
	if (getuid() == 12345)
		cr_skip_test("the user of this test is the one it pretends not to be");
	for (unsigned i = 0; i < 4; i++) {
		shows(&a, verbs[i], "default", true);
		shows(&a, verbs[i], "blue", false);
		shows(&b, verbs[i], "blue", true);
		shows(&b, verbs[i], "default", false);
	}
	all_gone();
	KVX_TEST_END();
}

/* ---- sockets */

static socklen_t address_of(const char *path, struct sockaddr_un *addr)
{
	size_t len = strlen(path);

	memset(addr, 0, sizeof(*addr));
	addr->sun_family = AF_UNIX;
	memcpy(addr->sun_path, path, len);
	if (path[0] == '@')
		addr->sun_path[0] = '\0';
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + len);
}

static int dial(const char *path)
{
	struct sockaddr_un addr;
	socklen_t len = address_of(path, &addr);
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	cr_assert_geq(fd, 0);
	cr_assert_eq(connect(fd, (struct sockaddr *)&addr, len), 0, "%s: %s", path,
		     strerror(errno));
	rig_turn(&rig);
	return fd;
}

/* As the service manager would make it. */
static struct kvx_listen_fd listening(const char *name)
{
	static unsigned n;
	char path[64];
	struct sockaddr_un addr;
	struct kvx_listen_fd out = {.fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)};
	socklen_t len;

	snprintf(path, sizeof(path), "@kvxrig-%d-%u", (int)getpid(), n++);
	len = address_of(path, &addr);
	cr_assert_eq(bind(out.fd, (struct sockaddr *)&addr, len), 0);
	cr_assert_eq(listen(out.fd, 4), 0);
	snprintf(out.name, sizeof(out.name), "%s", name);
	return out;
}

/* Of which tenant is the one client that is there? */
static uint32_t tenant_of_only_client(void)
{
	const struct kvx_client *client;
	uint32_t cursor = 0;

	cr_assert_eq(kvx_control_clients(rig.control), 1);
	client = kvx_idmap_next(rig.control->clients, &cursor);
	return client->tenant;
}

static void expect_dial(const char *path, uint32_t tenant)
{
	int fd = dial(path);

	cr_assert_eq(tenant_of_only_client(), tenant, "%s", path);
	close(fd);
	rig_turn(&rig);
	cr_assert_eq(kvx_control_clients(rig.control), 0);
}

Test(tenant, socket_decides)
{
	struct kvx_config config;
	char tenants[128], blue[32], red[32];

	snprintf(blue, sizeof(blue), "@kvxrig-b-%d", (int)getpid());
	snprintf(red, sizeof(red), "@kvxrig-r-%d", (int)getpid());
	snprintf(tenants, sizeof(tenants), "blue=%s red=%s", blue, red);
	config_with(&config, tenants);
	rig_open(&rig, &config);
	expect_dial(rig.config.socket, 0);
	expect_dial(blue, 1);
	expect_dial(red, 2);
	cr_assert_str_eq(kvx_listener_path(rig.control->listener, 2), red);
	rig_end(&rig);
	KVX_TEST_END();
}

Test(tenant, socket_handed_over_has_its_name)
{
	struct kvx_listen_fd fds[] = {listening("blue"), listening("kvxferd.socket"),
				      listening("blue")};
	struct kvx_config config;
	char paths[3][32];

	for (unsigned i = 0; i < 3; i++)
		snprintf(paths[i], sizeof(paths[i]), "@kvxrig-%d-%u", (int)getpid(), i);
	config_with(&config, "blue");
	rig_open_with(&rig,
		      &(struct rig_conf){.config = &config, .listen_fds = fds, .n_listen_fds = 3});
	expect_dial(paths[0], BLUE);
	expect_dial(paths[1], 0);
	expect_dial(paths[2], BLUE);
	cr_assert_neq(access(rig.config.socket, F_OK), 0, "its own socket is not needed");
	rig_end(&rig);
	KVX_TEST_END();
}

Test(tenant, one_that_was_handed_no_socket_gets_its_own)
{
	struct kvx_listen_fd fd = listening("default");
	struct kvx_config config;
	char tenants[64], blue[32];

	snprintf(blue, sizeof(blue), "@kvxrig-o-%d", (int)getpid());
	snprintf(tenants, sizeof(tenants), "blue=%s", blue);
	config_with(&config, tenants);
	rig_open_with(&rig,
		      &(struct rig_conf){.config = &config, .listen_fds = &fd, .n_listen_fds = 1});
	expect_dial(blue, BLUE);
	rig_end(&rig);
	KVX_TEST_END();
}

/* Refused, and nothing is left behind: neither sockets nor descriptors. */
static void refused(const char *tenants, const char *fd_name, const char *text)
{
	struct kvx_listen_fd fd = {.fd = -1};
	struct kvx_config config;
	struct kvx_why why = {""};

	config_with(&config, tenants);
	if (fd_name != NULL)
		fd = listening(fd_name);
	cr_assert_eq(rig_try_control(&rig, &config, &fd, fd_name != NULL ? 1 : 0, &why), -EINVAL,
		     "%s, %s", tenants, fd_name);
	cr_assert(strstr(why.text, text) != NULL, "'%s' not in '%s'", text, why.text);
}

Test(tenant, socket_whose_tenant_is_in_doubt_is_refused)
{
	rig_open(&rig, NULL);
	refused("", "blue", "handed over as 'blue' is of no tenant");
	refused("blue", "red", "FileDescriptorName=");
	refused("blue", "kvxferd-blue.socket", "is of no tenant");
	refused("blue", NULL, "tenant blue has no path");
	refused("blue red", "blue", "tenant red has no path");
	rig_end(&rig); /* also looks that the directory is empty */
	KVX_TEST_END();
}

Test(tenant, unit_of_any_name_is_the_default_one_while_there_is_no_other)
{
	struct kvx_listen_fd fd = listening("my-own.socket");
	struct kvx_config config;
	struct kvx_why why = {""};

	rig_open(&rig, NULL);
	kvx_config_defaults(&config);
	cr_assert_eq(rig_try_control(&rig, &config, &fd, 1, &why), 0, "%s", why.text);
	rig_end(&rig);
	KVX_TEST_END();
}
