/* What libibverbs on this node says, asked in a process of its own: a provider that crashes, hangs
 * or exits takes nothing else down. One thread. */
#ifndef KVX_DOCTOR_LIBRARY_H
#define KVX_DOCTOR_LIBRARY_H

#include <stdbool.h>

#define KVX_LIBRARY_DEVICES 64

enum kvx_library_end {
	KVX_LIBRARY_ANSWERED,
	KVX_LIBRARY_MISSING, /* there is no libibverbs.so.1 */
	KVX_LIBRARY_CRASHED,
	KVX_LIBRARY_HUNG,
	KVX_LIBRARY_FAILED, /* it could not be asked */
};
struct kvx_library_device {
	char name[64];
	int open_errno; /* why it could not be opened; 0: it could */
};
struct kvx_library {
	enum kvx_library_end end;
	int number;        /* CRASHED: the signal; FAILED: an errno */
	char path[256];    /* of the library; "" when it was not found */
	char last[64];     /* CRASHED, HUNG: the device that was being opened; "": none yet */
	char words[16384]; /* what it wrote on stderr */
	char left[128];    /* HUNG: that its process is left behind, as in struct kvx_child */
	struct kvx_library_device devices[KVX_LIBRARY_DEVICES];
	unsigned n_devices;
};

/* Lists and opens every device; ends after at most limit_ms. soname: "libibverbs.so.1". */
void kvx_library_ask(const char *soname, unsigned limit_ms, struct kvx_library *out_library);
/* The release of rdma-core that the library is of ("44.0" of libibverbs.so.1.14.44.0); "" when the
 * file's name does not tell. Returns buf. */
char *kvx_library_release(const struct kvx_library *library, char *buf, unsigned buf_bytes);

#endif
