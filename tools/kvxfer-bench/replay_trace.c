/* Reads request traces: one JSON object a line, {"timestamp": ms, "input_length": tokens,
 * "output_length": tokens, "hash_ids": [...]}, a hash id for every 512 tokens begun. Anything else
 * is refused with its line. */
#include <errno.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"

#define MAX_TOKENS (64u << 20)

struct parse {
	const char *path;
	unsigned long line;
	struct kvx_trace *trace;
};

static int line_error(const struct parse *parse, const char *why)
{
	kvx_tool_error("%s:%lu: %s", parse->path, parse->line, why);
	return -EINVAL;
}

/* A whole number that is not negative. */
static bool number_get(struct json_object *obj, const char *key, uint64_t *out_value)
{
	struct json_object *value = kvx_json_get(obj, key);

	if (!value || !json_object_is_type(value, json_type_int) ||
	    json_object_get_int64(value) < 0)
		return false;
	*out_value = (uint64_t)json_object_get_int64(value);
	return true;
}

static int hashes_add(struct parse *parse, struct json_object *ids)
{
	struct kvx_trace *trace = parse->trace;
	size_t n = kvx_json_length(ids);

	if (trace->n_hashes + n > trace->max_hashes) {
		trace->max_hashes = 2 * trace->max_hashes + n;
		trace->hashes =
		    kvx_tool_realloc(trace->hashes, trace->max_hashes * sizeof(*trace->hashes));
	}
	for (size_t i = 0; i < n; i++) {
		struct json_object *id = kvx_json_at(ids, i);

		if (!json_object_is_type(id, json_type_int) || json_object_get_int64(id) < 0)
			return line_error(parse,
					  "hash_ids holds something that is not a whole number");
		trace->hashes[trace->n_hashes + i] = (uint64_t)json_object_get_int64(id);
	}
	trace->n_hashes += n;
	return 0;
}

static int request_add(struct parse *parse, struct json_object *obj)
{
	struct kvx_trace *trace = parse->trace;
	struct json_object *at = kvx_json_get(obj, "timestamp"),
			   *ids = kvx_json_array(obj, "hash_ids");
	size_t n_hashes = kvx_json_length(ids);
	uint64_t tokens, unused;

	if (!at ||
	    (!json_object_is_type(at, json_type_int) &&
	     !json_object_is_type(at, json_type_double)) ||
	    !(json_object_get_double(at) >= 0) || json_object_get_double(at) > 1e12)
		return line_error(parse, "timestamp is missing or not a time in milliseconds");
	if (!number_get(obj, "input_length", &tokens) || tokens == 0 || tokens > MAX_TOKENS)
		return line_error(parse, "input_length is missing or not a number of tokens");
	if (kvx_json_get(obj, "output_length") && !number_get(obj, "output_length", &unused))
		return line_error(parse, "output_length is not a number of tokens");
	if (!ids)
		return line_error(parse, "hash_ids is missing or not an array");
	if (n_hashes != (tokens + KVX_HASH_TOKENS - 1) / KVX_HASH_TOKENS)
		return line_error(parse,
				  "hash_ids has not one id for every 512 tokens of input_length");
	if (trace->n_requests == trace->max_requests) {
		trace->max_requests = trace->max_requests ? 2 * trace->max_requests : 256;
		trace->requests = kvx_tool_realloc(trace->requests,
						   trace->max_requests * sizeof(*trace->requests));
	}
	trace->requests[trace->n_requests++] = (struct kvx_trace_request){
	    .at_ms = json_object_get_double(at),
	    .tokens = (uint32_t)tokens,
	    .n_hashes = (uint32_t)n_hashes,
	    .first_hash = trace->n_hashes,
	};
	return hashes_add(parse, ids);
}

static int line_parse(struct parse *parse, struct json_tokener *tokener, const char *line,
		      size_t len)
{
	struct json_object *obj;
	int rc;

	if (strspn(line, " \t\r\n") == len)
		return 0;
	if (len > INT32_MAX)
		return line_error(parse, "the line is too long");
	json_tokener_reset(tokener);
	obj = json_tokener_parse_ex(tokener, line, (int)len);
	enum json_tokener_error error = json_tokener_get_error(tokener);

	if (!obj || error != json_tokener_success) {
		json_object_put(obj);
		return line_error(parse, error == json_tokener_continue
					     ? "the line ends too early"
					     : json_tokener_error_desc(error));
	}
	size_t end = json_tokener_get_parse_end(tokener);

	if (!json_object_is_type(obj, json_type_object) ||
	    end + strspn(line + end, " \t\r\n") < strlen(line))
		rc = line_error(parse, "not one JSON object");
	else
		rc = request_add(parse, obj);
	json_object_put(obj);
	return rc;
}

int kvx_trace_load(const char *path, uint32_t max_requests, struct kvx_trace *out_trace)
{
	struct kvx_trace trace = {0};
	struct parse parse = {.path = path, .trace = &trace};
	struct json_tokener *tokener;
	FILE *f = fopen(path, "re");
	char *line = NULL;
	size_t line_max = 0;
	ssize_t len;
	int rc = 0;

	if (!f) {
		kvx_tool_error("%s: %s", path, strerror(errno));
		return -EINVAL;
	}
	tokener = json_tokener_new();
	while (rc == 0 && trace.n_requests < max_requests &&
	       (len = getline(&line, &line_max, f)) >= 0) {
		parse.line++;
		rc = line_parse(&parse, tokener, line, (size_t)len);
	}
	if (rc == 0 && ferror(f))
		rc = line_error(&parse, strerror(errno));
	if (rc == 0 && trace.n_requests == 0) {
		kvx_tool_error("%s: no requests in it", path);
		rc = -EINVAL;
	}
	json_tokener_free(tokener);
	free(line);
	fclose(f);
	if (rc == 0)
		*out_trace = trace;
	else
		kvx_trace_fini(&trace);
	return rc;
}

void kvx_trace_fini(struct kvx_trace *trace)
{
	free(trace->requests);
	free(trace->hashes);
	memset(trace, 0, sizeof(*trace));
}
