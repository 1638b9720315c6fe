/* Finding a GPU runtime's library and its calls, and what its error codes mean. Any thread. */
#include "gpu/gpu_priv.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static _Thread_local int last_code;

int kvx_gpu_code(void)
{
	return last_code;
}

/* After one of these the device (or all that this process has of it) answers nothing but errors. */
static bool code_is_lost(int code)
{
	switch (code) {
	case 4:   /* deinitialized */
	case 46:  /* device unavailable */
	case 214: /* uncorrectable memory error */
	case 220: /* the same of NVLink */
	case 226: /* contained */
	case 700: /* illegal address */
	case 702: /* launch timeout */
	case 709: /* context destroyed */
	case 710: /* device-side assert */
	case 714: /* hardware stack error */
	case 715: /* illegal instruction */
	case 716: /* misaligned address */
	case 717: /* invalid address space */
	case 718: /* invalid program counter */
	case 719: /* launch failure */
	case 721: /* tensor memory leak */
	case 911: /* external device */
		return true;
	default:
		return false;
	}
}

/* The two runtimes have the same numbers for all of these. */
int gpu_err(int code)
{
	if (code == 0)
		return 0;
	last_code = code;
	if (code_is_lost(code))
		return -ENODEV;
	switch (code) {
	case 600: /* not ready */
		return -EAGAIN;
	case 2: /* out of memory */
		return -ENOMEM;
	case 1: /* invalid value */
	case 101:
		return -EINVAL;
	case 400: /* invalid handle */
	case 205: /* map failed: above all an IPC handle of memory that is gone */
		return -EBADF;
	case 712: /* host memory is registered already */
		return -EEXIST;
	case 217: /* peer access unsupported */
	case 711: /* too many peers */
	case 801: /* not supported */
	case 500: /* not found */
		return -EOPNOTSUPP;
	default:
		return -EIO;
	}
}

/* One search for a library: the reason of one that is there but cannot be loaded is worth more than
 * that of all that are not there, and the first one, of the folder that was named, most. */
struct library_search {
	const struct kvx_gpu_find *find;
	struct kvx_why *why;
	bool have_reason;
};

static void library_note_error(struct library_search *search, const char *path)
{
	const char *said = dlerror();
	size_t len = strlen(path);

	if (said == NULL || search->have_reason)
		return;
	/* Itself, not one that it needs. */
	if (strncmp(said, path, len) == 0 && said[len] == ':' &&
	    strstr(said, "No such file or directory") != NULL)
		return;
	search->have_reason = true;
	kvx_why(search->why, 0, "%s", said);
}

static void *library_try(struct library_search *search, const char *dir, const char *name,
			 char *out_file, size_t file_bytes)
{
	char path[512];
	int flags = RTLD_NOW | RTLD_LOCAL | (search->find->loaded_only ? RTLD_NOLOAD : 0);

	if (dir != NULL)
		snprintf(path, sizeof(path), "%s/%s", dir, name);
	else
		snprintf(path, sizeof(path), "%s", name);
	void *library = dlopen(path, flags);
	if (library != NULL)
		snprintf(out_file, file_bytes, "%s", path);
	else
		library_note_error(search, path);
	return library;
}

/* All names, and the folder that was named when there is no such one. */
static void library_not_found(const struct gpu_library *library, const char *dir,
			      struct kvx_why *why)
{
	char names[128];
	size_t len = 0, n = 0;

	names[0] = '\0';
	for (const char *const *name = library->names; *name != NULL; name++, n++)
		len += (size_t)snprintf(names + len, sizeof(names) - len, "%s%s",
					n == 0            ? ""
					: name[1] == NULL ? " or "
							  : ", ",
					*name);
	if (dir != NULL && access(dir, X_OK) != 0)
		kvx_why(why, 0, "%s was not found (%s: %s)", names, dir, strerror(errno));
	else
		kvx_why(why, 0, "%s was not found", names);
}

void *gpu_library_open(const struct gpu_library *library, const struct kvx_gpu_find *find,
		       char *out_file, size_t file_bytes, struct kvx_why *why)
{
	struct library_search search = {.find = find, .why = why};
	const char *own = find->dir != NULL && find->dir[0] != '\0' ? find->dir : NULL;

	for (const char *const *name = library->names; *name != NULL; name++) {
		void *got = NULL;

		if (own != NULL)
			got = library_try(&search, own, *name, out_file, file_bytes);
		if (got == NULL)
			got = library_try(&search, NULL, *name, out_file, file_bytes);
		for (const char *const *dir = library->dirs; got == NULL && *dir != NULL; dir++)
			got = library_try(&search, *dir, *name, out_file, file_bytes);
		if (got != NULL)
			return got;
	}
	if (!search.have_reason)
		library_not_found(library, own, why);
	return NULL;
}

int gpu_symbols_load(void *library, const struct gpu_symbol *symbols, size_t n, void *calls,
		     const char *file, struct kvx_why *why)
{
	for (size_t i = 0; i < n; i++) {
		const struct gpu_symbol *symbol = &symbols[i];
		void *address = dlsym(library, symbol->name);

		if (address == NULL && symbol->instead != NULL)
			address = dlsym(library, symbol->instead);
		if (address == NULL && symbol->needed)
			return kvx_why(why, -ENOSYS,
				       "%s has no %s: it is too old, or not what its name says",
				       file, symbol->name);
		memcpy((char *)calls + symbol->offset, &address, sizeof(address));
	}
	return 0;
}

int kvx_gpu_open(const struct kvx_gpu_find *find, struct kvx_gpu **out_gpu, struct kvx_why *why)
{
	switch (find->kind) {
	case KVX_GPU_CUDA:
		return gpu_cuda_open(find, out_gpu, why);
	case KVX_GPU_HIP:
		return gpu_hip_open(find, out_gpu, why);
	}
	return kvx_why(why, -EINVAL, "%d is no GPU runtime", (int)find->kind);
}

void kvx_gpu_close(struct kvx_gpu *gpu)
{
	free(gpu); /* the runtime stays loaded: it has threads, and takes badly to being unloaded */
}

const char *kvx_gpu_code_name(struct kvx_gpu *gpu, int code)
{
	return gpu->ops->kind == KVX_GPU_CUDA ? gpu_cuda_code_name(gpu, code)
					      : gpu_hip_code_name(gpu, code);
}
