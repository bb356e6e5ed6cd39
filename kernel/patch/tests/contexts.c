// SPDX-License-Identifier: MIT OR Apache-2.0
/* Contexts: who sees, signals and touches whom; numbers, flags, the ceiling. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/cn_proc.h>
#include <linux/connector.h>
#include <linux/kcmp.h>
#include <linux/netlink.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define CAP_KILL 5
#define CAP_NET_ADMIN 12
#define CAP_SYS_ADMIN 21

/* A process that waits in the context that the caller is in, or in a fresh one. */
static pid_t waiting(int fresh, int *context)
{
	int ready[2];
	pid_t child;

	if (pipe(ready))
		return -1;
	child = fork();
	if (!child) {
		int number = fresh ? (int)new_s_context(fresh < 0 ? -1 : fresh, 0, 0) : 0;

		if (write(ready[1], &number, sizeof(number)) > 0)
			pause();
		_exit(1);
	}
	if (read(ready[0], context, sizeof(*context)) != sizeof(*context))
		*context = -1;
	close(ready[0]);
	close(ready[1]);
	return child;
}

static int listed(pid_t pid)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	int found = 0;

	while (proc && (entry = readdir(proc)))
		found |= atoi(entry->d_name) == pid;
	closedir(proc);
	return found;
}

static int open_of(pid_t pid, const char *name, int flags)
{
	char path[64];
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, flags | O_CLOEXEC);
	if (fd >= 0)
		close(fd);
	return fd;
}

static int stat_of(pid_t pid)
{
	struct stat st;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d", pid);
	return stat(path, &st);
}

static volatile sig_atomic_t got_signal;

static void on_signal(int signal)
{
	got_signal = signal;
}

/* Every way that one process has to another, all of which find nobody. */
static void does_not_see(const char *who, pid_t pid)
{
	char byte, *where = &byte;
	struct iovec local = { &byte, 1 }, remote = { where, 1 };
	struct sched_param param = { 0 };
	struct rlimit limit;
	cpu_set_t set;
	clockid_t clock;
	struct timespec time;
	int pair[2];
	siginfo_t info = { .si_code = SI_QUEUE };

	check(!listed(pid), "%s: not listed in /proc", who);
	DENIED(stat_of(pid), ENOENT, "%s: stat of its directory", who);
	DENIED(open_of(pid, "status", O_RDONLY), ENOENT, "%s: its status", who);
	DENIED(open_of(pid, "", O_PATH), ENOENT, "%s: its directory by O_PATH", who);
	DENIED(kill(pid, 0), ESRCH, "%s: kill 0", who);
	DENIED(kill(pid, SIGTERM), ESRCH, "%s: kill", who);
	DENIED(syscall(SYS_tkill, pid, SIGTERM), ESRCH, "%s: tkill", who);
	DENIED(syscall(SYS_tgkill, pid, pid, SIGTERM), ESRCH, "%s: tgkill", who);
	DENIED(syscall(SYS_rt_sigqueueinfo, pid, SIGTERM, &info), ESRCH, "%s: sigqueue", who);
	DENIED(kill(-pid, SIGTERM), ESRCH, "%s: kill of its group", who);
	DENIED(syscall(SYS_pidfd_open, pid, 0), ESRCH, "%s: pidfd_open", who);
	DENIED(getpgid(pid), ESRCH, "%s: getpgid", who);
	DENIED(getsid(pid), ESRCH, "%s: getsid", who);
	DENIED(getpriority(PRIO_PROCESS, pid), ESRCH, "%s: getpriority", who);
	DENIED(setpriority(PRIO_PROCESS, pid, 5), ESRCH, "%s: setpriority", who);
	DENIED(getpriority(PRIO_PGRP, pid), ESRCH, "%s: getpriority of its group", who);
	DENIED(setpriority(PRIO_PGRP, pid, 5), ESRCH, "%s: setpriority of its group", who);
	DENIED(syscall(SYS_ioprio_set, 1, pid, 3 << 13), ESRCH, "%s: ioprio_set", who);
	DENIED(syscall(SYS_ioprio_get, 1, pid), ESRCH, "%s: ioprio_get", who);
	DENIED(sched_getscheduler(pid), ESRCH, "%s: sched_getscheduler", who);
	DENIED(sched_setscheduler(pid, SCHED_BATCH, &param), ESRCH, "%s: sched_setscheduler", who);
	DENIED(sched_getaffinity(pid, sizeof(set), &set), ESRCH, "%s: sched_getaffinity", who);
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	DENIED(sched_setaffinity(pid, sizeof(set), &set), ESRCH, "%s: sched_setaffinity", who);
	DENIED(prlimit(pid, RLIMIT_NOFILE, NULL, &limit), ESRCH, "%s: prlimit", who);
	DENIED(ptrace(PTRACE_ATTACH, pid, 0, 0), ESRCH, "%s: ptrace attach", who);
	DENIED(ptrace(PTRACE_SEIZE, pid, 0, 0), ESRCH, "%s: ptrace seize", who);
	DENIED(process_vm_readv(pid, &local, 1, &remote, 1, 0), ESRCH, "%s: process_vm_readv", who);
	DENIED(process_vm_writev(pid, &local, 1, &remote, 1, 0), ESRCH, "%s: process_vm_writev", who);
	DENIED(syscall(SYS_kcmp, getpid(), pid, KCMP_VM, 0, 0), ESRCH, "%s: kcmp", who);
	DENIED(syscall(SYS_get_robust_list, pid, &where, &where), ESRCH, "%s: get_robust_list", who);
	check(clock_getcpuclockid(pid, &clock) || clock_gettime(clock, &time), "%s: its processor clock", who);
	if (!socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) {
		DENIED(fcntl(pair[0], F_SETOWN, pid), ESRCH, "%s: F_SETOWN", who);
		DENIED(fcntl(pair[0], F_SETOWN, -pid), ESRCH, "%s: F_SETOWN of its group", who);
		close(pair[0]);
		close(pair[1]);
	}
}

static pid_t outsider;

/* How many process 1 has, as far as the caller sees. */
static int children_of_init(void)
{
	FILE *file = fopen("/proc/1/task/1/children", "r");
	int number, count = 0;

	while (file && fscanf(file, "%d", &number) == 1)
		count++;
	if (!file)
		return -1;
	fclose(file);
	return count;
}

/* What tells of all processes as they come and go. */
static int listen_to_processes(void)
{
	struct sockaddr_nl name = { .nl_family = AF_NETLINK, .nl_groups = CN_IDX_PROC };
	int fd = socket(AF_NETLINK, SOCK_DGRAM | SOCK_CLOEXEC, NETLINK_CONNECTOR);
	int result = bind(fd, (void *)&name, sizeof(name)), error = errno;

	close(fd);
	errno = error;
	return result;
}

static void in_fresh(void *argument)
{
	long number;
	pid_t child;
	char text[32];

	(void)argument;
	if (setresuid(1000, 1000, 1000))
		check(0, "become an ordinary user");
	number = new_s_context(-1, 0, 0);
	check(number > 1, "an ordinary user enters a fresh context");
	snprintf(text, sizeof(text), "%ld", number);
	check(!strcmp(status_of(0, "s_context"), text), "its number is in /proc/self/status");
	child = fork();
	if (!child)
		_exit(strcmp(status_of(0, "s_context"), text) != 0);
	int status;
	waitpid(child, &status, 0);
	check(!status, "a child inherits the number");
	DENIED(new_s_context(0, 0, 0), EINVAL, "no way back to 0");
	DENIED(new_s_context(1, 0, 0), EPERM, "nor to 1");
	DENIED(new_s_context(77, 0, 0), EPERM, "nor to another");
	does_not_see("a user in a context", outsider);
	check(listed(1) && listed(getpid()), "process 1 and itself are listed");
	DENIED(kill(1, 0), EPERM, "a user in a context: kill process 1");
	check(children_of_init() == 0, "a user in a context: process 1 has no children to be seen");
	DENIED(kill(-1, 0), ESRCH, "kill -1 reaches nobody where nobody else is");
	check(new_s_context(-1, 0, 0) > number, "from a context into a further one");
}

static void root_in_context(void *argument)
{
	struct sched_param param = { 0 };
	struct rlimit limit;
	char text[16];
	pid_t sibling;
	int status, context;

	(void)argument;
	WORKS(new_s_context(5, 0, 0), "root chooses a number");
	check(!strcmp(status_of(0, "s_context"), "5"), "and is in it");
	does_not_see("root in a context", outsider);
	DENIED(kill(1, 0), EPERM, "root in a context: kill process 1");
	DENIED(setpriority(PRIO_PROCESS, 1, 5), EPERM, "root in a context: priority of process 1");
	DENIED(sched_setscheduler(1, SCHED_BATCH, &param), EPERM, "root in a context: scheduler of process 1");
	DENIED(prlimit(1, RLIMIT_NOFILE, NULL, &limit), EPERM, "root in a context: limits of process 1");
	DENIED(ptrace(PTRACE_ATTACH, 1, 0, 0), EPERM, "root in a context: trace process 1");
	DENIED(open_of(1, "mem", O_RDWR), EPERM, "root in a context: memory of process 1");
	DENIED(open_of(1, "oom_score_adj", O_WRONLY), EPERM, "root in a context: oom_score_adj of process 1");
	DENIED(open_of(1, "autogroup", O_WRONLY), EPERM, "root in a context: autogroup of process 1");
	WORKS(open_of(1, "status", O_RDONLY), "root in a context: reads of process 1");
	DENIED(listen_to_processes(), EPERM, "root in a context: hears of processes");
	DENIED(syscall(SYS_ioprio_set, 1, 1, 3 << 13), EPERM, "root in a context: ioprio of process 1");
	sibling = waiting(0, &context);
	snprintf(text, sizeof(text), "%d", sibling);
	check(listed(sibling), "it sees its own");
	WORKS(kill(sibling, 0), "and may signal them");
	WORKS(open_of(sibling, "oom_score_adj", O_WRONLY), "and change what they are to the OOM killer");
	WORKS(setpriority(PRIO_PROCESS, sibling, 3), "and set their priority");
	WORKS(kill(-1, SIGKILL), "kill -1 as root");
	waitpid(sibling, &status, 0);
	check(WIFSIGNALED(status), "kill -1 reached its own");
	setpriority(PRIO_USER, 0, 1);
	new_s_context(-2, 1ull << CAP_SYS_ADMIN, 0);
	DENIED(open("/proc/sys/kernel/hostname", O_WRONLY), EPERM, "root in a context: write to /proc/sys");
	DENIED(chmod("/proc/uptime", 0600), EPERM, "root in a context: chmod in /proc");
	DENIED(open("/proc/sysrq-trigger", O_WRONLY), EPERM, "root in a context: sysrq-trigger");
}

static void viewer(void *argument)
{
	struct sched_param param = { 0 };

	(void)argument;
	check(new_s_context(1, 0, 0) == 1, "root enters context 1");
	check(listed(outsider) && !stat_of(outsider), "context 1 sees others");
	check(!strcmp(status_of(outsider, "s_context"), "0"), "and their context");
	DENIED(kill(outsider, 0), EPERM, "context 1: kill");
	DENIED(setpriority(PRIO_PROCESS, outsider, 5), EPERM, "context 1: setpriority");
	DENIED(sched_setscheduler(outsider, SCHED_BATCH, &param), EPERM, "context 1: sched_setscheduler");
	DENIED(ptrace(PTRACE_ATTACH, outsider, 0, 0), EPERM, "context 1: ptrace");
	DENIED(new_s_context(-2, 0, LOCK), EINVAL, "context 1 has no flags");
}

static void *idle(void *argument)
{
	pause();
	return argument;
}

static void threads(void *argument)
{
	pthread_t thread;

	pthread_create(&thread, NULL, idle, argument);
	DENIED(new_s_context(-1, 0, 0), EBUSY, "a process of two threads is refused");
}

static void flags(void *argument)
{
	pid_t child;
	int status;

	(void)argument;
	DENIED(new_s_context(-1, 0, 64), EINVAL, "an unknown flag");
	DENIED(new_s_context(-3, 0, 0), EINVAL, "an unknown number");
	DENIED(new_s_context(-2, 0, LOCK), EINVAL, "context 0 has no flags");
	WORKS(new_s_context(6, 0, 0), "context 6");
	WORKS(new_s_context(-2, 0, LOCK), "a flag for the present context");
	check(!strcmp(status_of(0, "ctxflags"), "1"), "it is in the status");
	DENIED(new_s_context(-1, 0, 0), EPERM, "a locked context makes no other");
	WORKS(new_s_context(-2, 1ull << CAP_KILL, 0), "but lowers its ceiling");
	child = fork();
	if (!child) {
		setresuid(1000, 1000, 1000);
		_exit(new_s_context(-2, 0, PRIVATE) != -1 || errno != EPERM);
	}
	waitpid(child, &status, 0);
	check(!status, "another user adds no flag to it");
	new_s_context(-2, 1ull << CAP_SYS_ADMIN, 0);
	DENIED(new_s_context(-2, 0, PRIVATE), EPERM, "nor does its root lock the administrator out");
	check(!strcmp(status_of(0, "NoNewPrivs"), "0"), "root lowers the ceiling and may run set-id programs");
	if (setresuid(1000, 1000, 1000))
		check(0, "become an ordinary user");
	new_s_context(-2, 0, 0);
	check(!strcmp(status_of(0, "NoNewPrivs"), "0"), "so may a user who gives nothing up");
	DENIED(new_s_context(1, 1ull << CAP_NET_ADMIN, 0), EPERM, "a call that fails");
	check(!strcmp(status_of(0, "NoNewPrivs"), "0"), "changes nothing");
	WORKS(new_s_context(-2, 1ull << CAP_NET_ADMIN, 0), "a user lowers the ceiling");
	check(!strcmp(status_of(0, "NoNewPrivs"), "1"), "and runs no set-id programs");
}

static void private(void *argument)
{
	pid_t child;
	int in[2];
	char byte = 0;

	(void)argument;
	if (pipe(in))
		return;
	child = fork();
	if (!child) {
		check(new_s_context(7, 0, PRIVATE) == 7, "a private context");
		if (write(in[1], &byte, 1) == 1)
			sleep(1);
		_exit(0);
	}
	if (read(in[0], &byte, 1) == 1)
		DENIED(new_s_context(7, 0, 0), EPERM, "nobody joins a private context");
	waitpid(child, NULL, 0);
	/* It goes when its last member has been reaped, a moment later. */
	for (int tries = 0; tries < 100 && new_s_context(7, 0, 0) != 7; tries++)
		usleep(20000);
	check(!strcmp(status_of(0, "ctxflags"), "0"), "a new context of that number starts afresh");
}

static uint64_t caps_of(const char *name)
{
	return strtoull(status_of(0, name), NULL, 16);
}

/* The effective capabilities of a program that root runs. */
static void after_exec(const char *what, uint64_t without)
{
	check(!(caps_of("CapEff") & without) && !(caps_of("CapPrm") & without) && !(caps_of("CapBnd") & without),
	      "%s: what was given up is gone", what);
}

static void ceiling(void *argument)
{
	uint64_t gone = 1ull << CAP_SYS_ADMIN | 1ull << CAP_NET_ADMIN, all = caps_of("CapBnd");

	(void)argument;
	check(caps_of("ctxceiling") == all, "all capabilities are possible at first");
	WORKS(new_s_context(-2, gone, 0), "lower the ceiling in context 0");
	check(caps_of("ctxceiling") == (all & ~gone), "the ceiling is in the status");
	after_exec("at once", gone);
	WORKS(unshare(CLONE_NEWUSER), "a user namespace");
	after_exec("in a user namespace", gone);
	check(caps_of("CapEff") == (all & ~gone), "the others are there");
	errno = 0;
	check(unshare(CLONE_NEWNET) == -1 && errno == EPERM, "no network namespace without CAP_SYS_ADMIN");
}

static int pair[2];

/* Sends and waits; whether a signal has come to the child then. */
static int signalled(int to_child, int from_child)
{
	char byte = 0;

	if (write(pair[1], &byte, 1) != 1 || write(to_child, &byte, 1) != 1 || read(from_child, &byte, 1) != 1)
		return -1;
	return byte;
}

/* A signal asked for in one context isn't delivered to a process that has left it. */
static void signals_by_file(void *argument)
{
	int ready[2], go[2];
	char byte = 0;
	pid_t child;

	(void)argument;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || pipe(ready) || pipe(go))
		return;
	child = fork();
	if (!child) {
		signal(SIGIO, on_signal);
		close(go[1]);
		while (write(ready[1], &byte, 1) == 1 && read(go[0], &byte, 1) == 1) {
			byte = got_signal != 0;
			got_signal = 0;
			if (byte)
				new_s_context(-1, 0, 0);
		}
		_exit(0);
	}
	if (read(ready[0], &byte, 1) != 1)
		return;
	WORKS(fcntl(pair[0], F_SETOWN, child), "a child is to have a socket's signals");
	WORKS(fcntl(pair[0], F_SETFL, O_ASYNC), "as they come");
	check(signalled(go[1], ready[0]) == 1, "SIGIO comes to a process of the same context");
	check(signalled(go[1], ready[0]) == 0, "and doesn't follow it into another");
	close(go[1]);
	waitpid(child, NULL, 0);
}

static void nproc(void *argument)
{
	struct rlimit limit = { 5, 5 };
	int made, round;

	(void)argument;
	setrlimit(RLIMIT_NPROC, &limit);
	WORKS(new_s_context(-1, 0, NPROC), "a context with nproc");
	made = fork_all(16);
	check(made == 4 && errno == EAGAIN, "five processes in all, and even root has no more (%d)", made);
	for (round = 0; round < 200; round++) {
		pid_t child = fork();

		if (!child)
			_exit(0);
		if (child < 0)
			break;
		waitpid(child, NULL, 0);
	}
	check(round == 200, "who is reaped no longer counts");
}

/* A limit of processes is not left by going on to other contexts, nor by asking for a higher one. */
static void limit_stays(void *argument)
{
	struct rlimit limit = { 5, 5 }, more = { 64, 64 }, less = { 3, 3 };
	int told[2], ready[2], status = -1;
	char byte;

	(void)argument;
	if (pipe(told) || pipe(ready))
		return;
	setrlimit(RLIMIT_NPROC, &limit);
	WORKS(new_s_context(-1, 0, NPROC), "a context with nproc");
	setrlimit(RLIMIT_NPROC, &more);
	WORKS(new_s_context(-2, 0, NPROC), "asking for nproc again");
	check(fork_all(16) == 4, "doesn't raise the limit");
	if (!fork()) {
		close(told[1]);
		_exit(new_s_context(-1, 0, 0) < 0 || write(ready[1], "r", 1) != 1 || read(told[0], &byte, 1));
	}
	close(ready[1]);
	check(read(ready[0], &byte, 1) == 1 && fork_all(16) == 3, "who has gone on to a fresh context still counts");
	close(told[1]);
	wait(&status);
	check(!status, "it had gone on");
	check(fork_all(16) == 4, "until it has ended");
	WORKS(new_s_context(-1, 0, 0), "go on");
	check(fork_all(16) == 4, "to a fresh context, with the limit of the one before");
	WORKS(new_s_context(-1, 0, 0), "and on again");
	check(fork_all(16) == 4, "which is still that one's");
	setrlimit(RLIMIT_NPROC, &less);
	WORKS(new_s_context(-2, 0, NPROC), "a limit in it");
	check(fork_all(16) == 2, "the lower one of both holds");
	DENIED(new_s_context(-1, 0, 0), EPERM, "a second limit isn't left behind");
}

struct target {
	int context;
	pid_t process;
};

/* As an administrator ends a process of a guest: from within its context. */
static void end_in(void *argument)
{
	struct target *target = argument;

	check(new_s_context(target->context, 0, 0) == target->context, "root joins a context that exists");
	WORKS(kill(target->process, SIGKILL), "and ends its processes");
}

void test_contexts(void)
{
	int context;

	check(!strcmp(status_of(0, "s_context"), "0"), "the machine boots in context 0");
	check(!strcmp(status_of(0, "ipv4root"), "0"), "with no addresses set");
	outsider = waiting(0, &context);
	setpgid(outsider, outsider);
	check(listed(outsider) && !stat_of(outsider), "context 0 sees its own");
	in_child(in_fresh, NULL);
	in_child(root_in_context, NULL);
	in_child(viewer, NULL);
	in_child(threads, NULL);
	in_child(flags, NULL);
	in_child(private, NULL);
	in_child(ceiling, NULL);
	in_child(signals_by_file, NULL);
	in_child(nproc, NULL);
	in_child(limit_stays, NULL);
	check(children_of_init() > 0, "context 0 sees children of process 1");
	WORKS(listen_to_processes(), "and hears of processes");
	check(!kill(outsider, 0), "who was outside is still there");
	check(!getpriority(PRIO_PROCESS, outsider), "with its priority");
	kill(outsider, SIGKILL);
	waitpid(outsider, NULL, 0);

	pid_t inside = waiting(-1, &context);
	does_not_see("context 0", inside);
	in_child(end_in, &(struct target){ context, inside });
	waitpid(inside, NULL, 0);
}
