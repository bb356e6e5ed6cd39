/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * IPv4 roots: a task with a root speaks from its own addresses only, and hears what is said to them only. No LSM
 * is needed, so that this works wherever control groups (v2) have eBPF.
 *
 * Two nets, one behind the other:
 *
 * - The calls. bind, connect and sendmsg are rewritten (0.0.0.0 and 127.0.0.1 mean the first address) or refused
 *   with an errno that programs understand. The task's root decides or, if it has none, the socket's.
 * - The packets. Every socket that a task with a root makes or uses carries a copy of the root, and what it sends
 *   from, or hears at, another address is dropped. That holds for what has no hook of its own: listen without
 *   bind, ports that the kernel picks, raw and ping sockets, headers made by the caller, multicast.
 *
 * IPv6 is spoken in its IPv4-mapped form only: `::` and `::1` mean the mapped first address, and anything else is
 * refused as if there were no IPv6 on this host. Transports whose calls have no hooks (SCTP, MPTCP, UDP-Lite,
 * DCCP, L2TP) are refused as if they were not built in; programs fall back to TCP and UDP.
 *
 * A root is inherited in a tracepoint, which can't fail a fork. So the table of tasks is allocated beforehand and
 * larger than the number of threads that there can be; if it should be full for all that, the newest tasks go to
 * a table where something always gives way, and what happened is counted.
 *
 * What this can't do, and a network namespace can:
 *
 * - A server on 0.0.0.0 hears the first address, not all of them; over UDP it hears no broadcasts. One on the
 *   broadcast address or 255.255.255.255 does.
 * - Raw and ping sockets that are not bound leave from what the routing table picks: EPERM if that is foreign.
 * - A datagram socket that has sent before it is connected can't be connected: EADDRNOTAVAIL.
 * - Datagrams to ::1 are refused. Who asked 127.0.0.1 is answered by the first address.
 * - Packet sockets, and families that carry IP in disguise (SMC, RDS), have no hooks: keep CAP_NET_RAW and such
 *   modules from guests.
 *
 * A root can't be seen or left by those who have none: sockets that were made without one and handed on are as
 * good as any other gift, but follow the rules from the first bind, connect or sendmsg on.
 */
#include "vserver.h"

VS_LICENSE;

/* linux/errno.h */
#define EPROTONOSUPPORT 93
#define EAFNOSUPPORT 97
#define EADDRNOTAVAIL 99
#define ENETUNREACH 101
#define ENOBUFS 105

/* linux/socket.h, linux/net.h, linux/in.h, linux/icmp.h */
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define SOCK_DGRAM 2
#define SOCK_RAW 3
#define IPPROTO_ICMP 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17
#define IPV4_SOURCE 12	    /* where a header has its addresses */
#define IPV4_DESTINATION 16

#define vs_big_endian(value) __builtin_bswap32(value)
#define ANY 0
#define LOOPBACK vs_big_endian(0x7f000001)
#define BROADCAST 0xffffffff
#define MAPPED vs_big_endian(0x0000ffff) /* the third word of ::ffff:a.b.c.d */

/* ---- what programs of control groups are given: uapi/linux/bpf.h ------------------------------ */

struct bpf_sock {
	__u32 bound_dev_if;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 mark;
	__u32 priority;
	__u32 src_ip4; /* that of received packets: skc_rcv_saddr */
	__u32 src_ip6[4];
	__u32 src_port;
};

struct bpf_sock_addr {
	__u32 user_family;
	__u32 user_ip4;
	__u32 user_ip6[4];
	__u32 user_port;
	__u32 family;
	__u32 type;
	__u32 protocol;
	__u32 msg_src_ip4;
	__u32 msg_src_ip6[4];
	struct bpf_sock *sk;
};

struct bpf_sockopt {
	struct bpf_sock *sk;
	void *optval;
	void *optval_end;
	__s32 level;
	__s32 optname;
	__s32 optlen;
	__s32 retval;
};

struct __sk_buff {
	__u32 unused[42];
	struct bpf_sock *sk;
};

struct sockaddr_in {
	__u16 family;
	__u16 port;
	__u32 address;
	__u8 zero[8];
};

struct sockaddr_in6 {
	__u16 family;
	__u16 port;
	__u32 flow;
	__u32 address[4];
	__u32 scope;
};

/* As the kernel has it, under names that no other program needs. */
#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct signal_struct___root {
	int nr_threads;
};

struct task_struct___root {
	struct signal_struct___root *signal;
};
#pragma clang attribute pop

static long (*const vs_load_bytes)(void *skb, __u32 offset, void *to, __u32 size) = (void *)26;
static long (*const vs_bind)(void *ctx, void *address, int size) = (void *)64;
static void *(*const vs_socket_storage)(void *map, void *sk, void *value, __u64 flags) = (void *)107;
static long (*const vs_set_retval)(int retval) = (void *)187;

/* ---- state ------------------------------------------------------------------------------------ */

#define VS_MAP_LRU_HASH 9
#define VS_MAP_SK_STORAGE 24
#define VS_CLONE 512   /* BPF_F_CLONE: what is accepted inherits from what listens */
#define VS_CREATE 1    /* BPF_SK_STORAGE_GET_F_CREATE */
#define VS_PREALLOC 0

/*
 * Tasks with a root, by the address of their task_struct. The loader makes it larger than the kernel's limit of
 * threads; it is allocated beforehand, so that neither guests nor a lack of memory keep a task out.
 */
VS_MAP(root_tasks, VS_MAP_HASH, VS_PREALLOC, 32768, __u64, struct vs_root);

/* Those that did not fit: many have ended and wait to be freed. The one not asked for longest gives way. */
VS_MAP(root_spill, VS_MAP_LRU_HASH, VS_PREALLOC, 4096, __u64, struct vs_root);

/* How often that was: VS_LOSS_... */
VS_MAP(root_losses, VS_MAP_ARRAY, 0, 2, __u32, __u64);
#define VS_LOSS_SPILLED 0 /* went to root_spill */
#define VS_LOSS_LOST 1	  /* found no room at all, and runs without a root */

/* What a socket carries. */
VS_MAP(root_sockets, VS_MAP_SK_STORAGE, VS_NO_PREALLOC | VS_CLONE, 0, int, struct vs_root);

VS_INLINE __u64 *vs_loss(__u32 which)
{
	return vs_map_lookup(&root_losses, &which);
}

VS_INLINE int vs_has_spilled(void)
{
	__u64 *spilled = vs_loss(VS_LOSS_SPILLED);

	return spilled && *spilled;
}

VS_INLINE struct vs_root *vs_root_of(__u64 task)
{
	struct vs_root *root = vs_map_lookup(&root_tasks, &task);

	if (!root && vs_has_spilled())
		root = vs_map_lookup(&root_spill, &task);
	return root;
}

VS_INLINE struct vs_root *vs_own_root(void)
{
	return vs_root_of((__u64)vs_current());
}

VS_INLINE void vs_forget(__u64 task)
{
	vs_map_delete(&root_tasks, &task);
	if (vs_has_spilled())
		vs_map_delete(&root_spill, &task);
}

/* ---- inheritance -------------------------------------------------------------------------------- */

SEC("raw_tp/task_newtask")
int task_newtask(__u64 *ctx)
{
	struct vs_root *root = vs_own_root();
	__u64 child = ctx[0];
	__u64 *loss;

	if (!root) {
		/* No entry is left of a task that was here before; but if there were, it would be a trap. */
		if (vs_root_of(child))
			vs_forget(child);
		return 0;
	}
	if (!vs_map_update(&root_tasks, &child, root, VS_ANY))
		return 0;
	loss = vs_loss(VS_LOSS_SPILLED);
	if (loss)
		__sync_fetch_and_add(loss, 1);
	if (!vs_map_update(&root_spill, &child, root, VS_ANY))
		return 0;
	loss = vs_loss(VS_LOSS_LOST);
	if (loss)
		__sync_fetch_and_add(loss, 1);
	return 0;
}

SEC("raw_tp/sched_process_free")
int sched_process_free(__u64 *ctx)
{
	vs_forget(ctx[0]);
	return 0;
}

/* ---- the calls of the interface ------------------------------------------------------------------- */

/* Refuses a call: to be returned. */
VS_INLINE int vs_refuse(int errno)
{
	vs_set_retval(-errno);
	return 0;
}

/* The kernel shows one page of an option and fails a call whose program seems to have shortened a larger one. */
VS_INLINE int vs_not_ours(struct bpf_sockopt *ctx)
{
	if (ctx->optlen > 4096)
		ctx->optlen = 0;
	return 1;
}

VS_INLINE int vs_is_single_threaded(void)
{
	struct task_struct___root *task = (void *)vs_current();

	return task->signal->nr_threads == 1;
}

#define HANDLED (-1) /* in optlen: the kernel is not to look at it any more */

SEC("cgroup/setsockopt")
int setsockopt(struct bpf_sockopt *ctx)
{
	struct vs_root *given = ctx->optval;
	struct vs_root root = {};
	__u64 task;

	if (ctx->level != VS_SOL || ctx->optname != VS_SO_SET_ROOT)
		return vs_not_ours(ctx);
	if (vs_own_root()) {
		/* During a reload another program of ours was asked first. */
		if (ctx->optlen == HANDLED)
			return 1;
		return vs_refuse(EPERM);
	}
	if ((void *)(given + 1) > ctx->optval_end)
		return vs_refuse(EINVAL);
	if (ctx->optlen != HANDLED && ctx->optlen != sizeof(root))
		return vs_refuse(EINVAL);
	root.count = given->count;
	root.broadcast = given->broadcast;
	if (root.count < 1 || root.count > VS_ROOT_MAX)
		return vs_refuse(EINVAL);
	for (__u32 i = 0; i < VS_ROOT_MAX; i++) {
		if (i >= root.count)
			break;
		root.address[i] = given->address[i];
		if (root.address[i] == ANY || root.address[i] == BROADCAST)
			return vs_refuse(EINVAL);
	}
	if (!vs_is_single_threaded())
		return vs_refuse(EBUSY);
	task = (__u64)vs_current();
	if (vs_map_update(&root_tasks, &task, &root, VS_NOEXIST))
		return vs_refuse(ENOMEM);
	ctx->optlen = HANDLED;
	return 1;
}

SEC("cgroup/getsockopt")
int getsockopt(struct bpf_sockopt *ctx)
{
	struct vs_root *root, *to = ctx->optval;
	__u32 *version = ctx->optval;

	if (ctx->level != VS_SOL)
		return vs_not_ours(ctx);
	if (ctx->optname == VS_SO_GET_ABI) {
		if ((void *)(version + 1) > ctx->optval_end)
			return vs_refuse(EINVAL);
		*version = VS_ABI;
		ctx->optlen = sizeof(*version);
	} else if (ctx->optname == VS_SO_GET_ROOT) {
		if ((void *)(to + 1) > ctx->optval_end)
			return vs_refuse(EINVAL);
		root = vs_own_root();
		if (root)
			*to = *root;
		else
			*to = (struct vs_root){};
		ctx->optlen = sizeof(*to);
	} else {
		return vs_not_ours(ctx);
	}
	vs_barrier();
	ctx->retval = 0;
	return 1;
}

/* ---- the calls that are confined -------------------------------------------------------------------- */

VS_INLINE int vs_has(struct vs_root *root, __u32 address)
{
	for (__u32 i = 0; i < VS_ROOT_MAX; i++) {
		if (i >= root->count)
			break;
		if (root->address[i] == address)
			return 1;
	}
	return 0;
}

/* What an address to listen at becomes; ANY for none. */
VS_INLINE __u32 vs_at_home(struct vs_root *root, __u32 address)
{
	if (vs_has(root, address))
		return address;
	if (address == ANY || address == LOOPBACK)
		return root->address[0];
	if (address == BROADCAST || address == root->broadcast)
		return address;
	return ANY;
}

/* What an address to speak to becomes. */
VS_INLINE __u32 vs_abroad(struct vs_root *root, __u32 address)
{
	if (address != ANY && (address != LOOPBACK || vs_has(root, address)))
		return address;
	return root->address[0];
}

/* The root that a call on a socket has to keep; the socket carries it from now on. */
VS_INLINE struct vs_root *vs_rules(struct bpf_sock_addr *ctx)
{
	struct vs_root *root = vs_own_root();
	struct bpf_sock *sk = ctx->sk;

	if (!sk)
		return root;
	if (root)
		/* Fails for a lack of memory: the call's own rules hold nevertheless. */
		vs_socket_storage(&root_sockets, sk, root, VS_CREATE);
	else
		root = vs_socket_storage(&root_sockets, sk, NULL, 0);
	return root;
}

VS_INLINE int vs_is_spoken(struct bpf_sock *sk)
{
	if (sk->type == SOCK_STREAM)
		return sk->protocol == IPPROTO_TCP;
	if (sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_UDP)
		return 1;
	if (sk->family != AF_INET)
		return 0;
	return sk->type == SOCK_RAW || (sk->type == SOCK_DGRAM && sk->protocol == IPPROTO_ICMP);
}

SEC("cgroup/sock_create")
int sock_create(struct bpf_sock *sk)
{
	struct vs_root *root = vs_own_root();

	if (!root)
		return 1;
	if (!vs_is_spoken(sk))
		return vs_refuse(EPROTONOSUPPORT);
	if (!vs_socket_storage(&root_sockets, sk, root, VS_CREATE))
		return vs_refuse(ENOBUFS);
	return 1;
}

SEC("cgroup/bind4")
int bind4(struct bpf_sock_addr *ctx)
{
	struct vs_root *root = vs_rules(ctx);
	__u32 address;

	if (!root)
		return 1;
	address = vs_at_home(root, ctx->user_ip4);
	if (address == ANY)
		return vs_refuse(EADDRNOTAVAIL);
	ctx->user_ip4 = address;
	return 1;
}

/* The IPv4 address that one of IPv6 stands for. Returns 0 for none. */
VS_INLINE int vs_unmap(struct bpf_sock_addr *ctx, __u32 *address)
{
	__u32 third = ctx->user_ip6[2], last = ctx->user_ip6[3];

	if (ctx->user_ip6[0] || ctx->user_ip6[1])
		return 0;
	*address = last;
	if (third == MAPPED)
		return 1;
	if (last == vs_big_endian(1))
		*address = LOOPBACK;
	return third == 0 && (last == 0 || last == vs_big_endian(1));
}

VS_INLINE void vs_map_to(struct bpf_sock_addr *ctx, __u32 address)
{
	ctx->user_ip6[2] = MAPPED;
	vs_barrier();
	ctx->user_ip6[3] = address;
}

SEC("cgroup/bind6")
int bind6(struct bpf_sock_addr *ctx)
{
	struct vs_root *root = vs_rules(ctx);
	__u32 address;

	if (!root)
		return 1;
	if (!vs_unmap(ctx, &address))
		return vs_refuse(EADDRNOTAVAIL);
	address = vs_at_home(root, address);
	if (address == ANY)
		return vs_refuse(EADDRNOTAVAIL);
	vs_map_to(ctx, address);
	return 1;
}

/* Binds a socket that is about to be connected, unless it is. */
VS_INLINE int vs_leave_from(struct bpf_sock_addr *ctx, struct vs_root *root)
{
	struct sockaddr_in in = {.family = AF_INET, .address = root->address[0]};
	struct sockaddr_in6 in6 = {.family = AF_INET6, .address = {0, 0, MAPPED, root->address[0]}};
	struct bpf_sock *sk = ctx->sk;
	long failed;

	if (!sk)
		return vs_refuse(EADDRNOTAVAIL);
	if (sk->src_ip4 != ANY)
		return vs_has(root, sk->src_ip4) ? 1 : vs_refuse(EADDRNOTAVAIL);
	/* Fails on a socket that has used a port before it was connected: the kernel would pick the address. */
	if (sk->family == AF_INET6)
		failed = vs_bind(ctx, &in6, sizeof(in6));
	else
		failed = vs_bind(ctx, &in, sizeof(in));
	return failed ? vs_refuse(EADDRNOTAVAIL) : 1;
}

SEC("cgroup/connect4")
int connect4(struct bpf_sock_addr *ctx)
{
	struct vs_root *root = vs_rules(ctx);

	if (!root)
		return 1;
	ctx->user_ip4 = vs_abroad(root, ctx->user_ip4);
	return vs_leave_from(ctx, root);
}

SEC("cgroup/connect6")
int connect6(struct bpf_sock_addr *ctx)
{
	struct vs_root *root = vs_rules(ctx);
	__u32 address;

	if (!root)
		return 1;
	if (!vs_unmap(ctx, &address))
		return vs_refuse(ENETUNREACH);
	vs_map_to(ctx, vs_abroad(root, address));
	return vs_leave_from(ctx, root);
}

/* Datagrams with a destination or control data of their own; mapped ones too. */
SEC("cgroup/sendmsg4")
int sendmsg4(struct bpf_sock_addr *ctx)
{
	struct vs_root *root = vs_rules(ctx);
	__u32 source;

	if (!root)
		return 1;
	ctx->user_ip4 = vs_abroad(root, ctx->user_ip4);
	vs_barrier();
	source = ctx->msg_src_ip4;
	if (vs_has(root, source))
		return 1;
	if (source != ANY && source != LOOPBACK)
		return vs_refuse(EADDRNOTAVAIL);
	ctx->msg_src_ip4 = root->address[0];
	return 1;
}

/* The kernel does not let a datagram be turned into a mapped one here. */
SEC("cgroup/sendmsg6")
int sendmsg6(struct bpf_sock_addr *ctx)
{
	return vs_rules(ctx) ? vs_refuse(ENETUNREACH) : 1;
}

/* ---- the packets -------------------------------------------------------------------------------------- */

/* The root of a packet's socket, if it has one, and the address at an offset of the header; ANY for no IPv4. */
VS_INLINE struct vs_root *vs_root_of_packet(struct __sk_buff *skb, __u32 offset, __u32 *address)
{
	struct bpf_sock *sk = skb->sk;
	struct vs_root *root;
	__u8 version;

	*address = ANY;
	if (!sk)
		return NULL;
	root = vs_socket_storage(&root_sockets, sk, NULL, 0);
	if (!root || vs_load_bytes(skb, 0, &version, sizeof(version)) || version >> 4 != 4)
		return root;
	if (vs_load_bytes(skb, offset, address, sizeof(*address)))
		*address = ANY;
	return root;
}

SEC("cgroup_skb/ingress")
int ingress(struct __sk_buff *skb)
{
	__u32 address;
	struct vs_root *root = vs_root_of_packet(skb, IPV4_DESTINATION, &address);

	if (!root)
		return 1;
	if (address == ANY)
		return 0;
	return vs_has(root, address) || address == root->broadcast || address == BROADCAST;
}

SEC("cgroup_skb/egress")
int egress(struct __sk_buff *skb)
{
	__u32 address;
	struct vs_root *root = vs_root_of_packet(skb, IPV4_SOURCE, &address);

	return !root || vs_has(root, address);
}
