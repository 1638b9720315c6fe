/* What libfabric offers: finding the provider for an address, which libfabric can be asked for by
 * any thread; and its codes in ours. */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "transport/fabric/fabric_priv.h"

/* By default the tcp provider copies short runs of bytes through buffers of its own with memcpy():
 * on region memory that is not there this raises SIGBUS outside of any guard, where a system call
 * just fails. And it is never given memory of a GPU: it need not load the runtimes of those, of
 * which one may be broken. It reads these once, at its first use; here, because setenv(3) is for a
 * process of one thread. */
__attribute__((constructor)) static void library_setup(void)
{
	(void)setenv("FI_TCP_PREFETCH_RBUF_SIZE", "0", 1);
	(void)setenv("FI_TCP_STAGING_SBUF_SIZE", "0", 1);
	(void)setenv("FI_HMEM", "system", 1);
}

int fabric_err(ssize_t rc)
{
	if (rc >= 0)
		return 0;
	switch (-rc) {
	case FI_EAGAIN:
		return -EAGAIN;
	case FI_ENOMEM:
		return -ENOMEM;
	case FI_ECANCELED:
		return -ECANCELED;
	case FI_EACCES:
	case FI_ENOKEY:
		return -EACCES;
	case FI_EFAULT:
		return -EFAULT;
	case FI_ENODATA: /* fi_getinfo: nobody offers this */
	case FI_ENOSYS:
	case FI_EOPNOTSUPP:
		return -EOPNOTSUPP;
	case FI_ECONNREFUSED:
	case FI_EHOSTUNREACH:
	case FI_ENETUNREACH:
	case FI_EADDRNOTAVAIL:
	case FI_ETIMEDOUT:
		return -EHOSTUNREACH;
	case FI_ENOTCONN:
	case FI_ECONNRESET:
	case FI_ECONNABORTED:
	case FI_ESHUTDOWN:
	case FI_EHOSTDOWN:
		return -EHOSTDOWN;
	case FI_EINVAL:
		return -EINVAL;
	default:
		return -EIO;
	}
}

int fabric_random(void *buf, size_t len)
{
	return getrandom(buf, len, 0) == (ssize_t)len ? 0 : -EIO;
}

static bool info_addr_is_any(const struct fi_info *info)
{
	if (info->addr_format == FI_SOCKADDR_IN) {
		const struct sockaddr_in *sin = info->src_addr;

		return sin->sin_addr.s_addr == htonl(INADDR_ANY);
	}
	if (info->addr_format == FI_SOCKADDR_IN6) {
		const struct sockaddr_in6 *sin6 = info->src_addr;

		return IN6_IS_ADDR_UNSPECIFIED(&sin6->sin6_addr);
	}
	return false;
}

static int info_get_type(const struct kvx_dom_conf *conf, enum fi_ep_type type, uint64_t caps,
			 struct fi_info **out_info)
{
	struct fi_info *hints = fi_allocinfo();
	int rc;

	if (hints == NULL)
		return -ENOMEM;
	hints->caps = caps;
	hints->ep_attr->type = type;
	hints->domain_attr->mr_mode =
	    FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
	hints->domain_attr->threading = FI_THREAD_DOMAIN;
	hints->domain_attr->control_progress = FI_PROGRESS_MANUAL;
	hints->domain_attr->data_progress = FI_PROGRESS_MANUAL;
	hints->domain_attr->resource_mgmt = FI_RM_ENABLED;
	hints->fabric_attr->prov_name = strdup(conf->provider); /* freed by fi_freeinfo() */
	if (hints->fabric_attr->prov_name == NULL) {
		fi_freeinfo(hints);
		return -ENOMEM;
	}
	rc = fi_getinfo(FI_VERSION(1, 17), conf->bind_host, NULL, FI_SOURCE, hints, out_info);
	fi_freeinfo(hints);
	return rc == 0 ? 0 : fabric_err(rc);
}

/* Connection-oriented endpoints first: no message is copied or announced by a layer in between, a
 * broken connection is told at once, and nobody reaches an endpoint whom it did not let in. */
int fab_info_get(const struct kvx_dom_conf *conf, struct fi_info **out_info, bool *out_rma,
		 struct kvx_why *why)
{
	static const enum fi_ep_type types[] = {FI_EP_MSG, FI_EP_RDM};
	/* No op is longer than a message. */
	bool rma = conf->fabric_rma_min_bytes <= conf->fabric_message_bytes;
	int rc = -EOPNOTSUPP;

	if (conf->provider == NULL || conf->bind_host == NULL)
		return kvx_why(why, -EINVAL, "fabric: no provider or no address to listen on");
	for (unsigned i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		if (rma) {
			rc = info_get_type(conf, types[i], FI_MSG | FI_RMA, out_info);
			*out_rma = rc == 0;
		}
		if (!rma || rc == -EOPNOTSUPP) {
			rc = info_get_type(conf, types[i], FI_MSG, out_info);
			*out_rma = false;
		}
		if (rc != -EOPNOTSUPP)
			break;
	}
	if (rc < 0)
		return kvx_why(why, rc,
			       "fabric: libfabric offers no provider \"%s\" for address %s "
			       "(fi_info -p %s shows what it has)",
			       conf->provider, conf->bind_host, conf->provider);
	/* Not a hint: a provider may then give no more than that. */
	if ((*out_info)->tx_attr->inject_size < FAB_MIN_INJECT) {
		fi_freeinfo(*out_info);
		return kvx_why(why, -EOPNOTSUPP, "fabric: provider %s injects fewer than %u bytes",
			       conf->provider, FAB_MIN_INJECT);
	}
	if (info_addr_is_any(*out_info)) {
		fi_freeinfo(*out_info);
		return kvx_why(why, -EINVAL,
			       "fabric: cannot listen on %s: the address is told to peers, name "
			       "the one of the interface",
			       conf->bind_host);
	}
	return 0;
}

int fabric_probe(const struct kvx_dom_conf *conf, struct kvx_rail *rails, unsigned max,
		 struct kvx_why *why)
{
	struct fi_info *info;
	bool rma;
	int rc = fab_info_get(conf, &info, &rma, why);

	if (rc != 0)
		return rc;
	fi_freeinfo(info);
	if (max == 0)
		return 0;
	rails[0] = (struct kvx_rail){.numa_node = -1, .usable = true};
	return 1;
}
