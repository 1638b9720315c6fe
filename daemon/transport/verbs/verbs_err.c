/* What verbs calls and completions say, in the daemon's words: the one translator of this backend.
 * Pure; any thread. The texts of completions are read by people: they say what happened and where
 * to look. */
#include <errno.h>
#include <sys/random.h>

#include "transport/verbs/verbs_priv.h"

int verbs_err(int err)
{
	switch (err) {
	case 0:
		return 0;
	case ENOMEM:
	case EAGAIN:
	case ENOBUFS:
	case ENOSPC:
		return -ENOMEM;
	case ENODEV:
	case ENXIO:
		return -ENODEV;
	case EACCES:
	case EPERM:
		return -EACCES;
	case EFAULT:
		return -EFAULT;
	case EINVAL:
		return -EINVAL;
	case EBUSY:
		return -EBUSY;
	case EOPNOTSUPP:
	case ENOSYS:
	case EPROTONOSUPPORT:
		return -EOPNOTSUPP;
	case ETIMEDOUT: /* of address resolution */
	case EHOSTUNREACH:
	case ENETUNREACH:
		return -EHOSTUNREACH;
	default:
		return -EIO;
	}
}

/* An error completion ends the lane, whoever's op it was: none of them stands for one transfer's
 * own fault. */
int verbs_wc_err(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_SUCCESS:
		return 0;
	case IBV_WC_RETRY_EXC_ERR:
	case IBV_WC_RNR_RETRY_EXC_ERR:
	case IBV_WC_RESP_TIMEOUT_ERR:
		return -EHOSTUNREACH;
	case IBV_WC_REM_ABORT_ERR:
		return -EHOSTDOWN;
	case IBV_WC_FATAL_ERR:
		return -ENODEV;
	default:
		return -EIO;
	}
}

const char *verbs_wc_text(enum ibv_wc_status status)
{
	switch (status) {
	case IBV_WC_SUCCESS:
		return "success";
	case IBV_WC_RETRY_EXC_ERR:
		return "retries exceeded: the other side does not answer (is its daemon running, "
		       "its "
		       "port up, UDP port 4791 open on RoCE?)";
	case IBV_WC_RNR_RETRY_EXC_ERR:
		return "receiver-not-ready retries exceeded: the other side refuses our packets";
	case IBV_WC_RESP_TIMEOUT_ERR:
		return "response timeout: the other side does not answer";
	case IBV_WC_WR_FLUSH_ERR:
		return "work request flushed: the queue pair had failed before";
	case IBV_WC_LOC_PROT_ERR:
		return "local protection error: local memory is not registered as the work request "
		       "needs it";
	case IBV_WC_LOC_ACCESS_ERR:
		return "local access error: the other side used our memory in a way it may not";
	case IBV_WC_LOC_LEN_ERR:
		return "local length error: message longer than the port takes";
	case IBV_WC_LOC_QP_OP_ERR:
		return "local queue pair operation error: the device refuses the work request";
	case IBV_WC_REM_ACCESS_ERR:
		return "remote access error: the other side has withdrawn or never granted this "
		       "memory";
	case IBV_WC_REM_INV_REQ_ERR:
		return "remote invalid request: the other side's queue pair does not take it";
	case IBV_WC_REM_OP_ERR:
		return "remote operation error: the other side's device could not carry it out";
	case IBV_WC_REM_ABORT_ERR:
		return "the other side aborted the operation";
	case IBV_WC_BAD_RESP_ERR:
		return "unexpected response of the other side";
	case IBV_WC_FATAL_ERR:
		return "fatal device error (see the kernel's log)";
	default:
		return "error completion (see vendor code)";
	}
}

int verbs_random(void *buf, size_t len)
{
	return getrandom(buf, len, 0) == (ssize_t)len ? 0 : -EIO;
}
