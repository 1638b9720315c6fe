/* libhiprtc.so.N of the GPU stand-in: takes any program that has the name of a kernel that the
 * stand-in knows, and gives "code" that its hipModuleLoadData takes. */
#include <stdlib.h>
#include <string.h>

#include "gs.h"

enum { RTC_SUCCESS = 0, RTC_INVALID_INPUT = 3, RTC_COMPILATION = 6 };

static const char code[] = "GPU stand-in: code object";

struct program {
	char *source;
};

int hiprtcCreateProgram(struct program **out_program, const char *source, const char *name,
			int n_headers, const char **headers, const char **include_names)
{
	struct program *program;

	(void)name;
	(void)n_headers;
	(void)headers;
	(void)include_names;
	if (gs_enter(STANDIN_COMPILE) != 0 || source == NULL)
		return RTC_INVALID_INPUT;
	program = calloc(1, sizeof(*program));
	if (program == NULL)
		abort();
	program->source = strdup(source);
	*out_program = program;
	return RTC_SUCCESS;
}

int hiprtcCompileProgram(struct program *program, int n_options, const char **options)
{
	(void)n_options;
	(void)options;
	if (gs_enter(STANDIN_COMPILE) != 0)
		return RTC_COMPILATION;
	return strstr(program->source, "kvx_copy_list") != NULL ? RTC_SUCCESS : RTC_COMPILATION;
}

int hiprtcGetCodeSize(struct program *program, size_t *out_bytes)
{
	(void)program;
	*out_bytes = sizeof(code);
	return RTC_SUCCESS;
}

int hiprtcGetCode(struct program *program, char *out_code)
{
	(void)program;
	memcpy(out_code, code, sizeof(code));
	return RTC_SUCCESS;
}

int hiprtcDestroyProgram(struct program **program)
{
	free((*program)->source);
	free(*program);
	*program = NULL;
	return RTC_SUCCESS;
}
