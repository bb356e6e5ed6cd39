// SPDX-License-Identifier: MIT OR Apache-2.0
/* IP roots: what a process may bind, where it sends from, what it sees of the network. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/inet_diag.h>
#include <linux/netlink_diag.h>
#include <linux/packet_diag.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/unix_diag.h>
#include <linux/vm_sockets.h>
#include <linux/vm_sockets_diag.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

#define ROOT "10.0.0.2"
#define SECOND "10.0.0.3"
#define OTHER "10.0.0.1"
#define BROADCAST "10.0.0.255"
#define GROUP "239.1.2.3"
/* Of netlink sockets; that no process has by chance. */
#define OUTSIDE_PORT 1985229328u
#define OUTSIDE_PORT_TEXT " 1985229328 "
#define OWN_PORT 1985229329u
#define OWN_PORT_TEXT " 1985229329 "

/* Of the sockets that are made: 0 is what belongs to their type. */
static int protocol;

static struct sockaddr_in v4(const char *address, int port)
{
	struct sockaddr_in sin = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };

	inet_pton(AF_INET, address, &sin.sin_addr);
	return sin;
}

static struct sockaddr_in6 v6(const char *address, int port)
{
	struct sockaddr_in6 sin6 = { .sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port) };

	inet_pton(AF_INET6, address, &sin6.sin6_addr);
	return sin6;
}

/* A socket on which the call, bind or connect, has worked; or -1 and its error. */
static int socket_after(int (*call)(int, const struct sockaddr *, socklen_t), int type, const void *name,
			socklen_t length)
{
	int fd = socket(((const struct sockaddr *)name)->sa_family, type | SOCK_CLOEXEC, protocol), error;

	if (call(fd, name, length)) {
		error = errno;
		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

static int bound4(int type, const char *address, int port)
{
	struct sockaddr_in sin = v4(address, port);

	return socket_after(bind, type, &sin, sizeof(sin));
}

static int bound6(int type, const char *address, int port)
{
	struct sockaddr_in6 sin6 = v6(address, port);

	return socket_after(bind, type, &sin6, sizeof(sin6));
}

/* The address of the socket, or of its peer, as text. */
static const char *name_of(int fd, int peer)
{
	static char text[64];
	struct sockaddr_storage name;
	socklen_t length = sizeof(name);

	text[0] = 0;
	if (fd < 0 || (peer ? getpeername : getsockname)(fd, (void *)&name, &length))
		return text;
	if (name.ss_family == AF_INET)
		inet_ntop(AF_INET, &((struct sockaddr_in *)&name)->sin_addr, text, sizeof(text));
	else
		inet_ntop(AF_INET6, &((struct sockaddr_in6 *)&name)->sin6_addr, text, sizeof(text));
	return text;
}

static int connected4(int type, const char *address, int port)
{
	struct sockaddr_in sin = v4(address, port);

	return socket_after(connect, type, &sin, sizeof(sin));
}

static int connected6(int type, const char *address, int port)
{
	struct sockaddr_in6 sin6 = v6(address, port);

	return socket_after(connect, type, &sin6, sizeof(sin6));
}

static int send_to(int fd, const char *address, int port)
{
	struct sockaddr_in sin = v4(address, port);

	return (int)sendto(fd, "x", 1, 0, (void *)&sin, sizeof(sin));
}

/* Where the next datagram came from; empty after half a second. */
static const char *received(int fd)
{
	static char text[64];
	struct sockaddr_in from;
	socklen_t length = sizeof(from);
	char byte[64];
	struct pollfd waiting = { fd, POLLIN, 0 };

	text[0] = 0;
	if (poll(&waiting, 1, 500) == 1 && recvfrom(fd, byte, sizeof(byte), 0, (void *)&from, &length) >= 0)
		inet_ntop(AF_INET, &from.sin_addr, text, sizeof(text));
	return text;
}

/* Sends with IP_PKTINFO, which names a source address. */
static int send_from(int fd, const char *source, const char *address, int port)
{
	char space[CMSG_SPACE(sizeof(struct in_pktinfo))] = "";
	struct sockaddr_in sin = v4(address, port);
	struct iovec data = { "x", 1 };
	struct msghdr message = {
		.msg_name = &sin, .msg_namelen = sizeof(sin), .msg_iov = &data, .msg_iovlen = 1,
		.msg_control = space, .msg_controllen = sizeof(space),
	};
	struct cmsghdr *header = CMSG_FIRSTHDR(&message);
	struct in_pktinfo info = { 0 };

	header->cmsg_level = IPPROTO_IP;
	header->cmsg_type = IP_PKTINFO;
	header->cmsg_len = CMSG_LEN(sizeof(info));
	inet_pton(AF_INET, source, &info.ipi_spec_dst);
	memcpy(CMSG_DATA(header), &info, sizeof(info));
	return (int)sendmsg(fd, &message, 0);
}

static int lines_with(const char *path, const char *text)
{
	FILE *file = fopen(path, "r");
	char line[512];
	int count = 0;

	while (file && fgets(line, sizeof(line), file))
		count += strstr(line, text) != NULL;
	if (file)
		fclose(file);
	return count;
}

static int outside_tcp, outside_udp, outside_group;
static unsigned own_interface, other_interface;

static void tcp(const char *what, int port)
{
	int server = bound4(SOCK_STREAM, "0.0.0.0", port), client, fd;

	check(!strcmp(name_of(server, 0), ROOT), "%s bound to any is bound to the root (%s)", what, name_of(server, 0));
	WORKS(listen(server, 1), "%s: beside another server on any and the same port", what);
	client = connected4(SOCK_STREAM, "127.0.0.1", port);
	check(!strcmp(name_of(client, 1), ROOT), "%s: loopback is the root (%s)", what, name_of(client, 1));
	check(!strcmp(name_of(client, 0), ROOT), "%s: and where it comes from (%s)", what, name_of(client, 0));
	fd = accept(server, NULL, NULL);
	check(!strcmp(name_of(fd, 0), ROOT), "%s: so it does for the server", what);
	close(fd);
	close(client);
	close(server);
	client = connected4(SOCK_STREAM, OTHER, 8000);
	check(!strcmp(name_of(client, 0), ROOT), "%s: a client of a server outside comes from the root (%s)", what,
	      name_of(client, 0));
	close(client);
	DENIED(bound4(SOCK_STREAM, OTHER, 0), EADDRNOTAVAIL, "%s: no other address", what);
	WORKS(bound4(SOCK_STREAM, SECOND, port + 1), "%s: its second address", what);
	fd = bound4(SOCK_STREAM, "127.0.0.1", port + 2);
	check(!strcmp(name_of(fd, 0), ROOT), "%s bound to loopback is bound to the root", what);
	close(fd);
	fd = socket(AF_INET, SOCK_STREAM, protocol);
	WORKS(listen(fd, 1), "%s: listen without bind", what);
	check(!strcmp(name_of(fd, 0), ROOT), "%s: listens on the root (%s)", what, name_of(fd, 0));
	close(fd);
}

static void multipath_tcp(void)
{
	protocol = IPPROTO_MPTCP;
	tcp("MPTCP", 8010);
	DENIED(bound6(SOCK_STREAM, "::1", 8003), EADDRNOTAVAIL, "MPTCP on IPv6: not its loopback");
	DENIED(connected6(SOCK_STREAM, "fd00::1", 8000), ENETUNREACH, "MPTCP on IPv6: no connection");
	protocol = 0;
}

static int join(int fd, const char *interface)
{
	struct ip_mreqn group = { .imr_ifindex = (int)if_nametoindex(interface) };

	inet_pton(AF_INET, GROUP, &group.imr_multiaddr);
	return setsockopt(fd, IPPROTO_IP, IP_ADD_MEMBERSHIP, &group, sizeof(group));
}

static int multicast_from(int fd, const char *address)
{
	struct in_addr from;

	inet_pton(AF_INET, address, &from);
	return setsockopt(fd, IPPROTO_IP, IP_MULTICAST_IF, &from, sizeof(from));
}

static void multicast(void)
{
	int fd = bound4(SOCK_DGRAM, "0.0.0.0", 9100);

	WORKS(join(fd, "d0"), "join a group on its interface");
	multicast_from(outside_udp, OTHER);
	WORKS(send_to(outside_udp, GROUP, 9100), "multicast from outside");
	check(!strcmp(received(fd), OTHER), "is received by a socket bound to any");
	close(fd);
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	multicast_from(fd, OTHER);
	WORKS(send_to(fd, GROUP, 9102), "multicast by way of an interface that another address names");
	check(!strcmp(received(outside_group), ROOT), "comes from the root");
	close(fd);
	fd = bound4(SOCK_DGRAM, GROUP, 9101);
	multicast_from(fd, OTHER);
	send_to(fd, GROUP, 9102);
	check(!strcmp(received(outside_group), ROOT), "from a socket bound to a group too");
	close(fd);
}

static void udp(void)
{
	int fd = bound4(SOCK_DGRAM, "0.0.0.0", 9000), on = 1, other;
	struct sockaddr_in unspecified = { .sin_family = AF_UNSPEC };

	check(!strcmp(name_of(fd, 0), ROOT), "UDP bound to any is bound to the root");
	send_to(fd, OTHER, 9000);
	check(!strcmp(received(outside_udp), ROOT), "it sends from the root");
	DENIED(send_from(fd, OTHER, OTHER, 9000), EADDRNOTAVAIL, "IP_PKTINFO: no other source");
	WORKS(send_from(fd, SECOND, OTHER, 9000), "IP_PKTINFO: its second address");
	check(!strcmp(received(outside_udp), SECOND), "which it sends from");
	send_to(fd, "127.0.0.1", 9000);
	check(!strcmp(received(fd), ROOT), "what it sends to loopback comes to itself");
	setsockopt(outside_udp, SOL_SOCKET, SO_BROADCAST, &on, sizeof(on));
	send_to(outside_udp, BROADCAST, 9000);
	check(!strcmp(received(fd), OTHER), "it receives a broadcast (%s)", "from outside");
	received(outside_udp);
	close(fd);
	WORKS(bound4(SOCK_DGRAM, BROADCAST, 9001), "UDP bound to the broadcast address");
	DENIED(bound4(SOCK_DGRAM, OTHER, 9002), EADDRNOTAVAIL, "UDP: no other address");
	DENIED(bound4(SOCK_DGRAM, "10.1.255.255", 9002), EADDRNOTAVAIL, "UDP: no other broadcast address");
	fd = socket(AF_INET, SOCK_DGRAM, 0);
	send_to(fd, OTHER, 9000);
	check(!strcmp(received(outside_udp), ROOT), "an unbound socket sends from the root");
	connect(fd, (void *)&unspecified, sizeof(unspecified));
	send_to(fd, OTHER, 9000);
	check(!strcmp(received(outside_udp), ROOT), "still so after AF_UNSPEC");
	close(fd);
	other = connected4(SOCK_DGRAM, OTHER, 9000);
	check(!strcmp(name_of(other, 0), ROOT), "a connected one too");
	close(other);
}

static void ipv6(void)
{
	struct sockaddr_in6 there = v6("fd00::1", 9000);
	int fd = bound6(SOCK_STREAM, "::", 8003), only = 1;

	check(!strcmp(name_of(fd, 0), "::ffff:" ROOT), "IPv6 bound to any is bound to the root (%s)", name_of(fd, 0));
	close(fd);
	DENIED(bound6(SOCK_STREAM, "::1", 8003), EADDRNOTAVAIL, "IPv6: not its loopback");
	DENIED(bound6(SOCK_STREAM, "fd00::1", 8003), EADDRNOTAVAIL, "IPv6: no address");
	DENIED(bound6(SOCK_STREAM, "::ffff:" OTHER, 8003), EADDRNOTAVAIL, "IPv6: no other mapped address");
	fd = bound6(SOCK_STREAM, "::ffff:127.0.0.1", 8004);
	check(!strcmp(name_of(fd, 0), "::ffff:" ROOT), "IPv6: mapped loopback is the root");
	close(fd);
	fd = connected6(SOCK_STREAM, "::ffff:" OTHER, 8000);
	check(!strcmp(name_of(fd, 0), "::ffff:" ROOT), "IPv6: a mapped connection comes from the root (%s)", name_of(fd, 0));
	close(fd);
	DENIED(connected6(SOCK_STREAM, "fd00::1", 8000), ENETUNREACH, "IPv6: no connection");
	DENIED(connected6(SOCK_DGRAM, "fd00::1", 8000), ENETUNREACH, "IPv6: no datagram connection");
	fd = socket(AF_INET6, SOCK_DGRAM, 0);
	DENIED(sendto(fd, "x", 1, 0, (void *)&there, sizeof(there)), ENETUNREACH, "IPv6: no datagram");
	there = v6("::ffff:" OTHER, 9000);
	WORKS(sendto(fd, "x", 1, 0, (void *)&there, sizeof(there)), "IPv6: a mapped datagram");
	check(!strcmp(received(outside_udp), ROOT), "comes from the root");
	close(fd);
	fd = socket(AF_INET6, SOCK_STREAM, 0);
	setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof(only));
	DENIED(listen(fd, 1), EADDRNOTAVAIL, "IPv6 only: no listening");
	close(fd);
	DENIED(socket(AF_INET6, SOCK_RAW, IPPROTO_ICMPV6), EPERM, "IPv6: no raw socket");
}

static void raw(void)
{
	struct { struct iphdr ip; struct icmphdr icmp; } packet = { 0 };
	struct sockaddr_in there = v4(OTHER, 0);
	int fd = socket(AF_INET, SOCK_RAW, IPPROTO_ICMP), on = 1;

	check(fd >= 0, "a raw socket, with the capability");
	check(!strcmp(name_of(fd, 0), ROOT), "is bound to the root");
	DENIED(bind(fd, (void *)&there, sizeof(there)), EADDRNOTAVAIL, "raw: no other address");
	there.sin_family = AF_INET6;
	DENIED(bind(fd, (void *)&there, sizeof(there)), EAFNOSUPPORT, "raw: nor as one of another family");
	there.sin_family = AF_UNSPEC;
	DENIED(bind(fd, (void *)&there, sizeof(there)), EAFNOSUPPORT, "raw: nor as one of no family");
	there.sin_family = AF_INET;
	DENIED(send_from(fd, OTHER, OTHER, 0), EADDRNOTAVAIL, "raw: no other source by IP_PKTINFO");
	setsockopt(fd, IPPROTO_IP, IP_HDRINCL, &on, sizeof(on));
	packet.ip.version = 4;
	packet.ip.ihl = 5;
	packet.ip.ttl = 9;
	packet.ip.protocol = IPPROTO_ICMP;
	packet.ip.daddr = there.sin_addr.s_addr;
	packet.ip.saddr = inet_addr("10.0.0.9");
	packet.icmp.type = ICMP_ECHO;
	DENIED(sendto(fd, &packet, sizeof(packet), 0, (void *)&there, sizeof(there)), EADDRNOTAVAIL,
	       "raw: no forged source");
	packet.ip.saddr = inet_addr(SECOND);
	WORKS(sendto(fd, &packet, sizeof(packet), 0, (void *)&there, sizeof(there)), "raw: an address of its own");
	close(fd);
	write_file("/proc/sys/net/ipv4/ping_group_range", "0 1000");
	fd = socket(AF_INET, SOCK_DGRAM, IPPROTO_ICMP);
	DENIED(bind(fd, (void *)&there, sizeof(there)), EADDRNOTAVAIL, "ping: no other address");
	close(fd);
	DENIED(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_ALL)), EPERM, "no packet socket");
	/* The kernel itself, which has none, says ESOCKTNOSUPPORT. */
	DENIED(socket(AF_INET, SOCK_SEQPACKET, IPPROTO_SCTP), EPROTONOSUPPORT, "no protocol that isn't looked at");
}

/* The names of the interfaces that a dump of rtnetlink gives. */
static int link_dump(const char *name)
{
	struct { struct nlmsghdr header; struct ifinfomsg info; } request = {
		.header = { sizeof(request), RTM_GETLINK, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 },
	};
	char answer[32768];
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE), found = 0;
	ssize_t length;

	if (send(fd, &request, sizeof(request), 0) < 0)
		return -1;
	while ((length = recv(fd, answer, sizeof(answer), 0)) > 0) {
		struct nlmsghdr *header = (void *)answer;

		for (; NLMSG_OK(header, length); header = NLMSG_NEXT(header, length)) {
			if (header->nlmsg_type == NLMSG_DONE) {
				close(fd);
				return found;
			}
			struct rtattr *attr = IFLA_RTA(NLMSG_DATA(header));
			int left = (int)IFLA_PAYLOAD(header);

			for (; RTA_OK(attr, left); attr = RTA_NEXT(attr, left))
				if (attr->rta_type == IFLA_IFNAME)
					found |= !strcmp(RTA_DATA(attr), name);
		}
	}
	close(fd);
	return found;
}

/* What is said of an interface that is asked for by its number: 0, or an error's. */
static int link_by_number(unsigned number)
{
	struct { struct nlmsghdr header; struct ifinfomsg info; } request = {
		.header = { sizeof(request), RTM_GETLINK, NLM_F_REQUEST, 1, 0 },
		.info = { .ifi_index = (int)number },
	};
	char answer[32768];
	struct nlmsghdr *header = (void *)answer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE), error = -1;

	if (send(fd, &request, sizeof(request), 0) > 0 && recv(fd, answer, sizeof(answer), 0) > 0)
		error = header->nlmsg_type == NLMSG_ERROR ? -((struct nlmsgerr *)NLMSG_DATA(header))->error : 0;
	close(fd);
	return error;
}

/* How many messages about sockets sock_diag answers with, but for errors; only those with these bytes, if any. */
static int diag(const void *request, size_t length, const void *part, size_t part_length)
{
	char answer[32768];
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG), found = 0;
	ssize_t left;

	if (send(fd, request, length, 0) < 0)
		return -1;
	while ((left = recv(fd, answer, sizeof(answer), 0)) > 0) {
		struct nlmsghdr *header = (void *)answer;

		for (; NLMSG_OK(header, left); header = NLMSG_NEXT(header, left)) {
			if (header->nlmsg_type == NLMSG_DONE || header->nlmsg_type == NLMSG_ERROR) {
				close(fd);
				return found;
			}
			found += !part || memmem(header, header->nlmsg_len, part, part_length);
			if (!(header->nlmsg_flags & NLM_F_MULTI)) {
				close(fd);
				return found;
			}
		}
	}
	close(fd);
	return found;
}

/* Sockets bound to the port: in a dump of all, or the one bound to the address. */
static int inet_diag(int type, const char *address, int port)
{
	struct { struct nlmsghdr header; struct inet_diag_req_v2 socket; } request = {
		.header = { sizeof(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, 1, 0 },
		.socket = {
			.sdiag_family = AF_INET, .sdiag_protocol = (unsigned char)type,
			/* Not those that are bound and no more, which are not looked for by their port. */
			.idiag_states = (1u << (TCP_CLOSING + 1)) - 1,
			.id.idiag_sport = htons((uint16_t)port),
			.id.idiag_cookie = { INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE },
		},
	};

	/* What is asked for by its address is the destination to UDP. */
	if (address && type == IPPROTO_UDP) {
		inet_pton(AF_INET, address, request.socket.id.idiag_dst);
		request.socket.id.idiag_dport = request.socket.id.idiag_sport;
		request.socket.id.idiag_sport = 0;
	} else if (address) {
		inet_pton(AF_INET, address, request.socket.id.idiag_src);
	} else {
		request.header.nlmsg_flags |= NLM_F_DUMP;
	}
	return diag(&request, sizeof(request), NULL, 0);
}

static int unix_diag(const char *name)
{
	struct { struct nlmsghdr header; struct unix_diag_req socket; } request = {
		.header = { sizeof(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 },
		.socket = { .sdiag_family = AF_UNIX, .udiag_states = -1U, .udiag_show = UDIAG_SHOW_NAME },
	};

	return diag(&request, sizeof(request), name, strlen(name));
}

static int netlink_diag(uint32_t port)
{
	struct { struct nlmsghdr header; struct netlink_diag_req socket; } request = {
		.header = { sizeof(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 },
		.socket = { .sdiag_family = AF_NETLINK, .sdiag_protocol = NDIAG_PROTO_ALL },
	};

	return diag(&request, sizeof(request), &port, sizeof(port));
}

static int packet_diag(void)
{
	struct { struct nlmsghdr header; struct packet_diag_req socket; } request = {
		.header = { sizeof(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 },
		.socket = { .sdiag_family = AF_PACKET },
	};

	return diag(&request, sizeof(request), NULL, 0);
}

/* A family whose sockets are not told apart. */
static int vsock_diag(void)
{
	struct { struct nlmsghdr header; struct vsock_diag_req socket; } request = {
		.header = { sizeof(request), SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0 },
		.socket = { .sdiag_family = AF_VSOCK, .vdiag_states = -1U },
	};

	return diag(&request, sizeof(request), NULL, 0);
}

static int is_listed(const char *directory, const char *name)
{
	DIR *listing = opendir(directory);
	struct dirent *entry;
	int found = 0;

	while (listing && (entry = readdir(listing)))
		found += !strcmp(entry->d_name, name);
	if (listing)
		closedir(listing);
	return found;
}

/* Hears of sockets that end; returns as bind(2). */
static int hear_ends(void)
{
	struct sockaddr_nl name = { .nl_family = AF_NETLINK, .nl_groups = 0xf };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG), result, error;

	result = bind(fd, (void *)&name, sizeof(name));
	error = errno;
	close(fd);
	errno = error;
	return result;
}

/* The tables of /proc/net: those that tell contexts apart or only count, and what else the network has. */
static void tables(const char *who, int sees_all)
{
	check(is_listed("/proc/net", "tcp") == 1 && is_listed("/proc/net", "snmp") == 1, "/proc/net: %s, what all see", who);
	check(is_listed("/proc/net", "..") == 1, "/proc/net: %s, the directory above", who);
	check(is_listed("/proc/net", "fib_trie") == sees_all, "/proc/net: %s, a table of the network's is listed", who);
	check((access("/proc/net/fib_trie", F_OK) == 0) == sees_all, "/proc/net: %s, it is found by its name", who);
	check((access("/proc/thread-self/net/fib_trie", F_OK) == 0) == sees_all, "/proc/net: %s, that of a thread, too", who);
	check((access("/proc/net/stat/rt_cache", F_OK) == 0) == sees_all, "/proc/net: %s, and below a directory", who);
}

static void tables_of_a_guest(void *argument)
{
	(void)argument;
	new_s_context(-1, 0, 0);
	tables("who is in a context", 0);
	check(vsock_diag() == 0, "sock_diag: who is in a context sees no family that isn't told apart");
	DENIED(hear_ends(), EPERM, "sock_diag: nor hears of sockets that end");
	WORKS(unshare(CLONE_NEWNET), "a network of one's own");
	WORKS(hear_ends(), "sock_diag: where one hears of them");
	tables("who has a network of one's own", 1);
}

static void tables_of_all(void *argument)
{
	(void)argument;
	new_s_context(1, 0, 0);
	tables("who is in context 1", 1);
	check(vsock_diag() == 1, "sock_diag: who is in context 1 sees the family that isn't told apart");
}

/* A netlink socket with a port. */
static int netlink(uint32_t port)
{
	struct sockaddr_nl name = { .nl_family = AF_NETLINK, .nl_pid = port };
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	if (bind(fd, (void *)&name, sizeof(name)))
		check(0, "bind a netlink socket");
	return fd;
}

/* What sock_diag says of the sockets outside: to those who are there, and to those who are not. */
static void diagnosed(const char *who, int sees)
{
	check(inet_diag(IPPROTO_TCP, NULL, 8000) == sees, "sock_diag: %s, TCP in a dump", who);
	check(inet_diag(IPPROTO_TCP, OTHER, 8000) == sees, "sock_diag: %s, TCP by its address", who);
	check(inet_diag(IPPROTO_UDP, NULL, 9000) == sees, "sock_diag: %s, UDP in a dump", who);
	check(inet_diag(IPPROTO_UDP, OTHER, 9000) == sees, "sock_diag: %s, UDP by its address", who);
	check(inet_diag(IPPROTO_SCTP, NULL, 8300) == sees, "sock_diag: %s, SCTP in a dump", who);
	check(unix_diag("outside") == sees, "sock_diag: %s, Unix in a dump", who);
	check(netlink_diag(OUTSIDE_PORT) == sees, "sock_diag: %s, netlink in a dump", who);
	check(packet_diag() == sees, "sock_diag: %s, packets in a dump", who);
	check(lines_with("/proc/net/netlink", OUTSIDE_PORT_TEXT) == sees, "/proc/net/netlink: %s", who);
	check(lines_with("/proc/net/packet", "88b5") == sees, "/proc/net/packet: %s", who);
}

static void lists(void)
{
	int tcp_socket = bound4(SOCK_STREAM, "0.0.0.0", 8100), udp_socket = bound4(SOCK_DGRAM, "0.0.0.0", 8101);
	int netlink_socket = netlink(OWN_PORT), other_socket = socket(AF_INET, SOCK_DGRAM, 0);
	struct ifreq request = { .ifr_name = "lo" };
	struct ifconf all = { .ifc_len = 0 };
	char name[IF_NAMESIZE] = "";
	socklen_t length = sizeof(name);

	listen(tcp_socket, 1);
	check(lines_with("/proc/net/tcp", ":1FA4 ") == 1, "its TCP socket is listed");
	check(lines_with("/proc/net/tcp", ":1F40 00000000:0000") == 0, "that of others isn't");
	check(lines_with("/proc/net/udp", ":1FA5 ") == 1, "its UDP socket is listed");
	check(lines_with("/proc/net/udp", ":2328 ") == 0, "that of others isn't");
	check(lines_with("/proc/net/unix", "@outside") == 0, "nor Unix sockets of others");
	check(lines_with("/proc/net/dev", "d0:") == 1 && lines_with("/proc/net/dev", "d1:") == 0 &&
	      lines_with("/proc/net/dev", "lo:") == 0, "only its own interface in /proc/net/dev");
	check(link_dump("d0") == 1 && link_dump("d1") == 0, "and in rtnetlink");
	DENIED(ioctl(tcp_socket, SIOCGIFADDR, &request), EADDRNOTAVAIL, "the address of another interface");
	check(!ioctl(tcp_socket, SIOCGIFCONF, &all) && all.ifc_len == 2 * (int)sizeof(struct ifreq),
	      "SIOCGIFCONF gives its two addresses");
	request = (struct ifreq){ .ifr_ifindex = own_interface };
	check(!ioctl(tcp_socket, SIOCGIFNAME, &request) && !strcmp(request.ifr_name, "d0"), "the name of its own interface");
	check(link_by_number(own_interface) == 0, "and what rtnetlink says of it");
	request = (struct ifreq){ .ifr_ifindex = other_interface };
	DENIED(ioctl(tcp_socket, SIOCGIFNAME, &request), ENODEV, "the name of another interface");
	check(link_by_number(other_interface) == ENODEV, "what rtnetlink says of it");
	check(!setsockopt(other_socket, SOL_SOCKET, SO_BINDTOIFINDEX, &other_interface, sizeof(other_interface)),
	      "a socket is bound to another interface");
	DENIED(getsockopt(other_socket, SOL_SOCKET, SO_BINDTODEVICE, name, &length), ENODEV, "and doesn't tell its name");
	request = (struct ifreq){ .ifr_name = "d0" };
	check(!ioctl(tcp_socket, SIOCGIFINDEX, &request) && request.ifr_ifindex == (int)own_interface,
	      "the number of its own interface");
	request = (struct ifreq){ .ifr_name = "d1" };
	DENIED(ioctl(tcp_socket, SIOCGIFINDEX, &request), ENODEV, "the number of another interface");
	DENIED(ioctl(tcp_socket, SIOCGIFFLAGS, &request), ENODEV, "the flags of another interface");
	check(lines_with("/proc/net/netlink", OWN_PORT_TEXT) == 1, "its netlink socket is listed");
	check(netlink_diag(OWN_PORT) == 1, "sock_diag: its own netlink socket in a dump");
	check(lines_with("/proc/net/if_inet6", " ") == 0, "no IPv6 address");
	check(inet_diag(IPPROTO_TCP, NULL, 8100) == 1, "sock_diag: its own TCP socket in a dump");
	check(inet_diag(IPPROTO_TCP, ROOT, 8100) == 1, "sock_diag: its own TCP socket by its address");
	check(inet_diag(IPPROTO_UDP, NULL, 8101) == 1, "sock_diag: its own UDP socket in a dump");
	check(inet_diag(IPPROTO_UDP, ROOT, 8101) == 1, "sock_diag: its own UDP socket by its address");
	diagnosed("who is held sees none of those outside", 0);
	close(tcp_socket);
	close(udp_socket);
	close(netlink_socket);
	close(other_socket);
}

static void held(void *argument)
{
	uint32_t addresses[] = { inet_addr(ROOT), inet_addr(SECOND) };
	uint32_t wrong[] = { 0 }, many[17] = { 0 };

	(void)argument;
	new_s_context(-1, 0, 0);
	DENIED(set_ipv4root(wrong, 1, 0), EINVAL, "0.0.0.0 is no root");
	DENIED(set_ipv4root(many, 17, 0), EINVAL, "no more than 16");
	DENIED(set_ipv4root(addresses, 0, 0), EINVAL, "nor none");
	DENIED(set_ipv4root(NULL, 1, 0), EFAULT, "nor from nowhere");
	WORKS(set_ipv4root(addresses, 2, inet_addr(BROADCAST)), "two addresses and a broadcast address");
	check(!strcmp(status_of(0, "ipv4root"), ROOT " " SECOND), "they are in the status");
	check(!strcmp(status_of(0, "ipv4root_bcast"), BROADCAST), "so is the broadcast address");
	DENIED(set_ipv4root(addresses, 1, 0), EPERM, "once only");
	tcp("TCP", 8000);
	multipath_tcp();
	udp();
	multicast();
	ipv6();
	raw();
	lists();
}

static void configure(const char *name, const char *address)
{
	struct ifreq request = { 0 };
	int fd = socket(AF_INET, SOCK_DGRAM, 0);
	struct sockaddr_in *sin = (void *)&request.ifr_addr;

	strncpy(request.ifr_name, name, IFNAMSIZ - 1);
	*sin = v4(address, 0);
	ioctl(fd, SIOCSIFADDR, &request);
	*sin = v4("255.255.255.0", 0);
	ioctl(fd, SIOCSIFNETMASK, &request);
	*sin = v4(BROADCAST, 0);
	if (!strcmp(name, "d0"))
		ioctl(fd, SIOCSIFBRDADDR, &request);
	request.ifr_flags = IFF_UP | IFF_RUNNING | IFF_BROADCAST;
	ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
}

/* "dummy" interfaces, which need no hardware. */
static void make_interface(const char *name)
{
	struct {
		struct nlmsghdr header;
		struct ifinfomsg info;
		char attributes[64];
	} request = { .header = { 0, RTM_NEWLINK, NLM_F_REQUEST | NLM_F_CREATE | NLM_F_ACK, 1, 0 } };
	struct rtattr *attr = (void *)request.attributes, *kind;
	int fd = socket(AF_NETLINK, SOCK_RAW, NETLINK_ROUTE);
	char answer[512];

	attr->rta_type = IFLA_IFNAME;
	attr->rta_len = (unsigned short)RTA_LENGTH(strlen(name) + 1);
	memcpy(RTA_DATA(attr), name, strlen(name) + 1);
	attr = (void *)((char *)attr + RTA_ALIGN(attr->rta_len));
	attr->rta_type = IFLA_LINKINFO;
	kind = RTA_DATA(attr);
	kind->rta_type = IFLA_INFO_KIND;
	kind->rta_len = RTA_LENGTH(5);
	memcpy(RTA_DATA(kind), "dummy", 5);
	attr->rta_len = (unsigned short)RTA_LENGTH(RTA_ALIGN(kind->rta_len));
	request.header.nlmsg_len = (unsigned)((char *)attr + RTA_ALIGN(attr->rta_len) - (char *)&request);
	if (send(fd, &request, request.header.nlmsg_len, 0) < 0 || recv(fd, answer, sizeof(answer), 0) < 0)
		check(0, "make an interface");
	close(fd);
}

void test_addresses(void)
{
	struct sockaddr_un { sa_family_t family; char path[9]; } name = { AF_UNIX, "\0outside" };
	struct sockaddr_vm vm_name = { .svm_family = AF_VSOCK, .svm_port = 5000, .svm_cid = VMADDR_CID_ANY };
	int unix_socket = socket(AF_UNIX, SOCK_STREAM, 0), free_socket, netlink_socket, packet_socket;
	struct sockaddr_in sctp_name = v4(OTHER, 8300);
	int vm_socket = socket(AF_VSOCK, SOCK_STREAM, 0), sctp_socket;

	make_interface("d0");
	make_interface("d1");
	configure("lo", "127.0.0.1");
	configure("d0", OTHER);
	configure("d0:1", ROOT);
	configure("d0:2", SECOND);
	configure("d1", "10.1.0.1");
	if (bind(unix_socket, (void *)&name, sizeof(sa_family_t) + 8))
		check(0, "bind a Unix socket");
	if (bind(vm_socket, (void *)&vm_name, sizeof(vm_name)))
		check(0, "bind a socket of virtual machines");
	netlink_socket = netlink(OUTSIDE_PORT);
	packet_socket = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x88b5));
	own_interface = if_nametoindex("d0");
	other_interface = if_nametoindex("d1");
	outside_tcp = bound4(SOCK_STREAM, OTHER, 8000);
	listen(outside_tcp, 8);
	sctp_socket = socket(AF_INET, SOCK_STREAM, IPPROTO_SCTP);
	if (bind(sctp_socket, (void *)&sctp_name, sizeof(sctp_name)) || listen(sctp_socket, 8))
		check(0, "bind an SCTP socket");
	outside_udp = bound4(SOCK_DGRAM, OTHER, 9000);
	outside_group = bound4(SOCK_DGRAM, "0.0.0.0", 9102);
	join(outside_group, "d0");
	diagnosed("who is outside sees them", 1);
	tables("who is outside", 1);
	check(vsock_diag() == 1, "sock_diag: who is outside sees the family that isn't told apart");
	in_child(tables_of_a_guest, NULL);
	in_child(tables_of_all, NULL);
	in_child(held, NULL);
	check(lines_with("/proc/net/tcp", ":1F40 00000000:0000") == 1, "context 0 sees its sockets");
	free_socket = bound4(SOCK_STREAM, "0.0.0.0", 8200);
	check(!strcmp(name_of(free_socket, 0), "0.0.0.0"), "who has no root binds to any");
	close(free_socket);
	close(packet_socket);
	close(netlink_socket);
	close(vm_socket);
	close(sctp_socket);
}
