/* Two ends of a transport in one process, pumped by hand: what the tests of every backend between
 * nodes do with them. Who includes it has defined before: T, the backend's table; WAIT_NS; struct
 * side with dom, ep, addr, addr_len, mr, rkey, up, n_done, n_failed and status; side_take(), which
 * takes an event; and SIDES, a type with two of them, a and b. */
#ifndef KVX_TWO_SIDES_H
#define KVX_TWO_SIDES_H

/* s learns the other side's memory. */
static inline void side_import(struct side *s, const struct side *other)
{
	uint8_t mkey[KVX_TRANSPORT_MKEY_MAX];
	int len = T->mkey_pack(other->mr, mkey, sizeof(mkey));

	cr_assert_gt(len, 0);
	cr_assert_eq(T->rkey_unpack(s->ep, mkey, (size_t)len, &s->rkey), 0);
}

static inline void side_pump(struct side *s)
{
	struct kvx_tevent ev[8];
	int n = T->progress(s->dom, ev, 8);

	for (int i = 0; i < n; i++)
		side_take(s, &ev[i]);
}

static inline void pump(SIDES *p)
{
	side_pump(&p->a);
	side_pump(&p->b);
}

#define PUMP_UNTIL(p, cond)                                                                        \
	do {                                                                                       \
		uint64_t end_ = kvx_now_ns() + WAIT_NS;                                            \
		while (!(cond)) {                                                                  \
			cr_assert_lt(kvx_now_ns(), end_, "waited in vain for " #cond);             \
			pump(p);                                                                   \
		}                                                                                  \
	} while (0)

static inline void sides_connect(SIDES *p)
{
	cr_assert_eq(T->connect(p->a.ep, p->b.addr, p->b.addr_len), 0);
	cr_assert_eq(T->connect(p->b.ep, p->a.addr, p->a.addr_len), 0);
	PUMP_UNTIL(p, p->a.up && p->b.up);
}

static inline struct kvx_op make_op(const struct side *s, enum kvx_op_kind kind, uint64_t local,
				    uint64_t remote, uint64_t len)
{
	return (struct kvx_op){.local = s->mr,
			       .remote = s->rkey,
			       .local_offset = local,
			       .remote_offset = remote,
			       .len_bytes = len,
			       .cookie = 77,
			       .kind = kind};
}

/* Posts all ops of side a and waits for them. */
static inline void run_ops(SIDES *p, const struct kvx_op *ops, unsigned n)
{
	unsigned posted = 0;

	p->a.n_done = 0;
	p->a.n_failed = 0;
	p->a.status = 0;
	PUMP_UNTIL(p, ({
			   if (posted < n) {
				   int rc = T->post(p->a.ep, ops + posted, n - posted);

				   cr_assert_geq(rc, 0);
				   posted += (unsigned)rc;
			   }
			   p->a.n_done >= n;
		   }));
	cr_assert_eq(p->a.n_done, n);
}

#endif
