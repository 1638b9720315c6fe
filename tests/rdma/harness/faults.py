"""The faults of a guest's network, as shell lines: netem for what the wire does, tc filters for silent partitions."""

ROCE_PORT = 4791
PEER_PORT = 7717  # of the daemons in guests
# Of the clsact qdisc.
MATCH = {
    "peers": [f"protocol ip flower ip_proto tcp dst_port {PEER_PORT}", f"protocol ip flower ip_proto tcp src_port {PEER_PORT}"],
    "tcp": ["protocol ip flower ip_proto tcp"],
    "roce": [f"protocol ip flower ip_proto udp dst_port {ROCE_PORT}"],
    "all": ["protocol all matchall"],
}
# (hook, action). "drop" on the way out tells the sender, and rxe then sends again at once, for ever, in a softirq: the guest stands
# still. "trap" takes the packet away and says that it was sent, as a wire does.
WAYS = {"in": [("ingress", "drop")], "out": [("egress", "trap")], "both": [("ingress", "drop"), ("egress", "trap")]}


def netem(nic, what):
    """what: as for "tc qdisc add ... netem"; None takes it away."""
    if what is None:
        return f"tc qdisc del dev eth{nic} root 2>/dev/null; true"
    return f"tc qdisc replace dev eth{nic} root netem limit 20000 {what}"


def block(nics, what, way):
    lines = []
    for nic in nics:
        lines.append(f"(tc qdisc show dev eth{nic} | grep -q clsact || tc qdisc add dev eth{nic} clsact)")
        for hook, action in WAYS[way]:
            lines += [f"tc filter add dev eth{nic} {hook} {match} action {action}" for match in MATCH[what]]
    return " && ".join(lines)


def unblock(nics):
    return "; ".join(f"tc qdisc del dev eth{nic} clsact 2>/dev/null" for nic in nics) + "; true"


def link(nic, up):
    return f"ip link set eth{nic} {'up' if up else 'down'}"
