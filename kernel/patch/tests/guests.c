// SPDX-License-Identifier: MIT OR Apache-2.0
/* What a guest has for itself: IPC, terminals, limits, a process 1, its own copies; and its walls. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/sched.h>
#include <mqueue.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/mount.h>
#include <sys/msg.h>
#include <sys/resource.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"

#define KEY 0x5eed

static int segment;

static void ipc_apart(void *argument)
{
	(void)argument;
	new_s_context(20, 0, 0);
	DENIED(shmget(KEY, 4096, 0600), ENOENT, "the key of a segment outside means nothing");
	errno = 0;
	check(shmat(segment, NULL, 0) == (void *)-1, "nor does its number");
	DENIED(shmctl(segment, IPC_RMID, NULL), EINVAL, "nor can it be removed");
	WORKS(shmget(KEY, 4096, IPC_CREAT | IPC_EXCL | 0600), "the key is free here");
	WORKS(semget(KEY, 1, IPC_CREAT | IPC_EXCL | 0600), "for semaphores too");
	WORKS(msgget(KEY, IPC_CREAT | IPC_EXCL | 0600), "and for queues");
}

static void ipc_together(void *argument)
{
	(void)argument;
	new_s_context(20, 0, 0);
	WORKS(shmget(KEY, 4096, 0600), "who joins a context finds its segments");
}

static void ipc(void)
{
	int hold[2];
	char byte;
	pid_t holder;

	segment = shmget(KEY, 4096, IPC_CREAT | 0600);
	if (pipe(hold))
		return;
	holder = fork();
	if (!holder) {
		close(hold[1]);
		new_s_context(20, 0, 0);
		_exit(read(hold[0], &byte, 1) != 0);
	}
	close(hold[0]);
	usleep(200000);
	in_child(ipc_apart, NULL);
	in_child(ipc_together, NULL);
	WORKS(shmctl(segment, IPC_RMID, NULL), "the segment outside is still there");
	close(hold[1]);
	waitpid(holder, NULL, 0);
}

static char terminal[64];

static int names(const char *path, const char *name)
{
	DIR *dir = opendir(path);
	struct dirent *entry;
	int found = 0;

	while (dir && (entry = readdir(dir)))
		found |= !strcmp(entry->d_name, name);
	if (dir)
		closedir(dir);
	return found;
}

static void terminals_apart(void *argument)
{
	char own[64];
	struct stat st;
	int fd;

	(void)argument;
	new_s_context(-1, 0, 0);
	check(!names("/dev/pts", strrchr(terminal, '/') + 1), "a terminal outside isn't listed");
	DENIED(stat(terminal, &st), ENOENT, "a terminal outside: stat");
	DENIED(open(terminal, O_RDWR | O_NOCTTY), ENOENT, "a terminal outside: open");
	fd = posix_openpt(O_RDWR | O_NOCTTY);
	check(fd >= 0 && !unlockpt(fd) && !ptsname_r(fd, own, sizeof(own)), "a terminal of its own");
	check(names("/dev/pts", strrchr(own, '/') + 1), "is listed");
	WORKS(open(own, O_RDWR | O_NOCTTY), "and can be opened");
}

static void terminals(void)
{
	int fd = posix_openpt(O_RDWR | O_NOCTTY);
	struct stat st;

	check(fd >= 0 && !unlockpt(fd) && !ptsname_r(fd, terminal, sizeof(terminal)), "a terminal in context 0");
	in_child(terminals_apart, NULL);
	check(!stat(terminal, &st) && names("/dev/pts", strrchr(terminal, '/') + 1), "it is there in context 0");
	close(fd);
}

static void climb(void *argument)
{
	struct stat st;

	(void)argument;
	/* The launcher passes the barrier in context 0. */
	if (chdir("/tmp/vservers/guest/home/user") || chroot("/tmp/vservers/guest"))
		check(0, "go into the guest");
	new_s_context(-1, 0, 0);
	/* The classic way out of chroot: the present directory is outside of the new root. */
	mkdir("x", 0755);
	WORKS(chroot("x"), "chroot is allowed");
	DENIED(chdir("../../../.."), EACCES, "the barrier: chdir, four levels at once");
	WORKS(chdir("../.."), "up to the guest's root");
	DENIED(chdir(".."), EACCES, "the barrier: chdir");
	DENIED(stat("../../etc", &st), EACCES, "the barrier: stat through it");
	DENIED(open("../", O_RDONLY | O_DIRECTORY), EACCES, "the barrier: open");
	DENIED(open("../other/file", O_RDONLY), EACCES, "the barrier: another guest's file");
}

static void own_closed_directory(void *argument)
{
	(void)argument;
	new_s_context(-1, 0, 0);
	mkdir("/tmp/closed", 0700);
	if (chown("/tmp/closed", 5, 5) || chmod("/tmp/closed", 0))
		check(0, "a directory of another user");
	WORKS(chdir("/tmp/closed"), "a directory of mode 0 that isn't root's is no barrier");
}

static void barrier(void)
{
	mkdir("/tmp/vservers", 0755);
	mkdir("/tmp/vservers/guest", 0755);
	mkdir("/tmp/vservers/guest/home", 0755);
	mkdir("/tmp/vservers/guest/home/user", 0755);
	mkdir("/tmp/vservers/other", 0755);
	write_file("/tmp/vservers/other/file", "secret");
	chmod("/tmp/vservers", 0);
	WORKS(chdir("/tmp/vservers/guest"), "context 0 passes the barrier");
	if (chdir("/"))
		return;
	in_child(own_closed_directory, NULL);
	in_child(climb, NULL);
}

static void limited_user(void *context)
{
	struct rlimit limit = { 8, 8 };

	if (context)
		new_s_context(*(int *)context, 0, 0);
	setrlimit(RLIMIT_NPROC, &limit);
	if (setresuid(2000, 2000, 2000))
		check(0, "become a user");
	check(fork_all(16) == 7, "a user has as many processes in a context as its limit, whoever runs elsewhere");
}

static void multiplied(void *argument)
{
	struct rlimit limit = { 8, 8 };
	pid_t child;
	int status;

	(void)argument;
	setrlimit(RLIMIT_NPROC, &limit);
	if (setresuid(2001, 2001, 2001))
		check(0, "become a user");
	child = fork();
	if (!child) {
		new_s_context(-1, 0, 0);
		_exit(fork_all(16));
	}
	waitpid(child, &status, 0);
	check(WEXITSTATUS(status) == 6, "contexts don't multiply a user's limit (%d)", WEXITSTATUS(status));
}

static void limits(void)
{
	int hold[2], i;
	char byte;

	/* The same user, seven times, in context 0. */
	if (pipe(hold))
		return;
	for (i = 0; i < 7; i++) {
		if (!fork()) {
			close(hold[1]);
			setresuid(2000, 2000, 2000);
			_exit(read(hold[0], &byte, 1) != 0);
		}
	}
	close(hold[0]);
	usleep(200000);
	in_child(limited_user, &(int){ 21 });
	close(hold[1]);
	while (i--)
		wait(NULL);
	in_child(multiplied, NULL);
}

static int result[2];

static void orphan_of(void)
{
	pid_t middle = fork();

	if (!middle) {
		if (!fork()) {
			char report[64];

			usleep(300000);
			snprintf(report, sizeof(report), "%d %d\n", getppid(), kill(1, 0));
			if (write(result[1], report, strlen(report)) < 0)
				_exit(1);
			_exit(0);
		}
		_exit(0);
	}
	waitpid(middle, NULL, 0);
}

static volatile sig_atomic_t hangups;

static void on_hangup(int signal)
{
	hangups += signal == SIGHUP;
}

static void fake_init(void *argument)
{
	char path[64], text[64] = "";
	pid_t own = getpid(), child, reaped;
	int status;

	(void)argument;
	signal(SIGHUP, on_hangup);
	WORKS(new_s_context(-1, 0, FAKEINIT), "a context with a process 1");
	check(getpid() == 1, "getpid is 1");
	check(getppid() == 0, "it has no parent");
	snprintf(path, sizeof(path), "%d", own);
	check(!strcmp(status_of(0, "initpid"), path), "initpid tells which it is (%s)", status_of(0, "initpid"));
	check(!names("/proc", path) && names("/proc", "1"), "it isn't listed; process 1 is");
	DENIED(new_s_context(-2, 0, FAKEINIT), EPERM, "there is one process 1");
	child = fork();
	if (!child) {
		check(getppid() == 1, "its children have parent 1");
		check(getpid() != 1, "and numbers of their own");
		WORKS(kill(1, SIGHUP), "they signal it by 1");
		_exit(0);
	}
	waitpid(child, NULL, 0);
	check(hangups == 1, "and it gets the signal");
	check(raise(SIGHUP) == 0 && hangups == 2, "it signals itself by 1");
	child = fork();
	if (!child) {
		check(kill(-1, SIGHUP) == -1 && errno == ESRCH, "kill -1 by its child spares it");
		_exit(0);
	}
	waitpid(child, NULL, 0);
	if (pipe(result))
		return;
	orphan_of();
	reaped = wait(&status);
	check(reaped > 0 && reaped != child, "an orphan comes to it");
	if (read(result[0], text, sizeof(text) - 1) > 0)
		check(!strcmp(text, "1 0\n"), "and its parent is 1, which it may signal");
}

/* A process 1 below the parent that then ends: it must not become its own parent. */
static void child_of_the_dead(void *argument)
{
	int done[2];
	char byte = 1;

	(void)argument;
	if (pipe(done))
		return;
	new_s_context(-1, 0, 0);
	if (!fork()) {
		if (!fork()) {
			new_s_context(-2, 0, FAKEINIT);
			usleep(200000);
			byte = getppid() == 0;
			if (write(done[1], &byte, 1) != 1)
				_exit(1);
			_exit(0);
		}
		usleep(50000);
		_exit(0);
	}
	check(read(done[0], &byte, 1) == 1 && byte == 1, "a process 1 outlives its parent");
	while (wait(NULL) > 0)
		;
}

static char group_of_process[128];

static const char *autogroup(void)
{
	FILE *file = fopen("/proc/self/autogroup", "r");

	group_of_process[0] = 0;
	if (file) {
		if (!fgets(group_of_process, sizeof(group_of_process), file))
			group_of_process[0] = 0;
		fclose(file);
	}
	return group_of_process;
}

static void sched(void *argument)
{
	char first[128];
	int status;
	pid_t child;

	(void)argument;
	setsid();
	snprintf(first, sizeof(first), "%s", autogroup());
	WORKS(new_s_context(22, 0, SCHED), "a context with sched");
	check(strcmp(first, autogroup()), "it has a group of its own");
	snprintf(first, sizeof(first), "%s", autogroup());
	child = fork();
	if (!child) {
		setsid();
		_exit(strcmp(first, autogroup()) != 0);
	}
	waitpid(child, &status, 0);
	check(!status, "a new session stays in it");
	check(write_file("/proc/self/autogroup", "5") == 0, "root of the machine changes its weight");
	WORKS(new_s_context(-2, 1ull << 21, 0), "without CAP_SYS_ADMIN");
	DENIED(write_file("/proc/self/autogroup", "6"), EPERM, "no member does");
	snprintf(first, sizeof(first), "%s", autogroup());
	WORKS(new_s_context(-1, 0, 0), "a fresh context from there");
	check(!strcmp(status_of(0, "ctxflags"), "2"), "has the flag");
	check(!strcmp(first, autogroup()), "and stays in the group");
	child = fork();
	if (!child) {
		setsid();
		_exit(strcmp(first, autogroup()) != 0);
	}
	waitpid(child, &status, 0);
	check(!status, "so does a new session there");
}

#define GROUPS "/tmp/groups"

/* Forks into a control group: what clone3(2) returns to the parent. */
static long fork_into(const char *group)
{
	struct clone_args how = { .flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD };
	int fd = open(group, O_PATH | O_DIRECTORY);
	long pid;

	how.cgroup = (uint64_t)fd;
	pid = syscall(SYS_clone3, &how, sizeof(how));
	if (!pid)
		_exit(0);
	if (pid > 0)
		waitpid((pid_t)pid, NULL, 0);
	close(fd);
	return pid;
}

static void control_groups(void *argument)
{
	(void)argument;
	mkdir(GROUPS, 0755);
	if (mount("groups", GROUPS, "cgroup2", 0, NULL) || mkdir(GROUPS "/service", 0755))
		check(0, "mount control groups");
	new_s_context(-1, 0, 0);
	WORKS(open(GROUPS "/cgroup.procs", O_WRONLY), "root in a context moves itself into a control group");
	WORKS(fork_into(GROUPS "/service"), "and starts a child in one");
	new_s_context(-2, 1ull << 21, 0);
	WORKS(open(GROUPS "/cgroup.procs", O_RDONLY), "without CAP_SYS_ADMIN it reads of them");
	DENIED(open(GROUPS "/cgroup.procs", O_WRONLY), EPERM, "and moves nobody");
	DENIED(open(GROUPS "/service/cgroup.freeze", O_WRONLY), EPERM, "nor stops one");
	DENIED(mkdir(GROUPS "/service/more", 0755), EPERM, "nor makes one");
	DENIED(rmdir(GROUPS "/service"), EPERM, "nor removes one");
	DENIED(chmod(GROUPS "/cgroup.procs", 0666), EPERM, "nor changes the mode of its files");
	DENIED(chown(GROUPS "/service", 1, 1), EPERM, "nor the owner of one");
	DENIED(setxattr(GROUPS "/service", "user.delegate", "1", 1, 0), EPERM, "nor its attributes");
	DENIED(fork_into(GROUPS "/service"), EPERM, "nor starts a child in one");
}

static void no_copies(void *argument)
{
	(void)argument;
	new_s_context(-1, 1ull << 9, 0);
	DENIED(open("guest/f", O_RDWR | O_APPEND), EPERM, "without the sysctl a guest gets no copy");
}

static void write_shared(void *argument)
{
	char path[32];
	int fd;

	(void)argument;
	new_s_context(-1, 1ull << 9, 0);
	fd = open("guest/f", O_RDWR | O_APPEND);
	check(fd >= 0, "a guest opens a sealed file for writing");
	check(write(fd, "more", 4) == 4, "and writes");
	close(fd);
	fd = open("guest/g", O_RDONLY);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	DENIED(open(path, O_WRONLY), EPERM, "a descriptor is no name to put a copy at");
	close(fd);
	write_file("guest/mounted", "");
	if (unshare(CLONE_NEWNS) || mount("guest/g", "guest/mounted", NULL, MS_BIND, NULL))
		check(0, "mount a sealed file");
	DENIED(open("guest/mounted", O_WRONLY), EPERM, "nor is the place where it is mounted");
	/* Opened and not written to, so that the copy is as it was made. */
	WORKS(open("guest/h", O_WRONLY), "another name");
	if (setresuid(3000, 3000, 3000))
		return;
	DENIED(open("guest/g", O_WRONLY), EACCES, "a user who may not write to it gets no copy");
}

static void own_copies(const char *device, const char *type, unsigned seal)
{
	struct stat shared, copy, other;
	struct timespec times[2] = { { 1000, 1 }, { 2000, 2 } };
	char text[32] = "", value[16] = "";
	const char *place = seal == TAG ? "/mnt/cow/tag" : "/mnt/cow/own";
	int fd;

	mkdir("/mnt/cow", 0755);
	if (mount(device, "/mnt/cow", type, 0, NULL) || mkdir(place, 0755) || chdir(place)) {
		check(0, "mount %s", type);
		return;
	}
	write_file("/proc/sys/fs/vserver/honour_tag", seal == TAG ? "1" : "0");
	mkdir("guest", 0755);
	write_file("f", "shared");
	setxattr("f", "user.kept", "yes", 3, 0);
	setxattr("f", "trusted.kept", "yes", 3, 0);
	if (chown("f", 12, 34) || chmod("f", 04755) || utimensat(AT_FDCWD, "f", times, 0) || link("f", "guest/f") ||
	    link("f", "guest/g") || link("f", "guest/h"))
		check(0, "prepare a shared file");
	WORKS(set_flags("f", 0, seal), "seal it on %s", type);
	stat("f", &shared);
	in_child(no_copies, NULL);
	write_file("/proc/sys/fs/vserver/copy_on_write", "1");
	DENIED(open("guest/g", O_WRONLY), EPERM, "context 0 gets no copy");
	in_child(write_shared, NULL);
	stat("guest/f", &copy);
	stat("guest/g", &other);
	check(copy.st_ino != shared.st_ino && copy.st_nlink == 1, "the name leads to a copy");
	check(other.st_ino == shared.st_ino, "other names don't");
	stat("f", &other);
	check(other.st_size == 6 && other.st_nlink == shared.st_nlink - 2, "the shared file is as it was");
	check(copy.st_uid == 12 && copy.st_gid == 34 && copy.st_size == 10, "owner and size");
	stat("guest/h", &other);
	check(other.st_ino != shared.st_ino && other.st_mode == shared.st_mode, "mode, set-id bits too (%o)", other.st_mode);
	check(other.st_mtim.tv_sec == 2000 && other.st_mtim.tv_nsec == 2, "times");
	fd = open("guest/f", O_RDONLY);
	check(read(fd, text, sizeof(text) - 1) == 10 && !strcmp(text, "sharedmore"), "content (%s)", text);
	close(fd);
	check(getxattr("guest/f", "user.kept", value, sizeof(value)) == 3, "user attributes");
	check(getxattr("guest/f", "trusted.kept", value, sizeof(value)) == 3, "trusted attributes");
	check(!names("guest", ".copy"), "no other name is left");
	fd = open("guest/f", O_RDWR);
	check(fd >= 0, "the copy is not sealed");
	close(fd);
	write_file("/proc/sys/fs/vserver/copy_on_write", "0");
	write_file("/proc/sys/fs/vserver/honour_tag", "0");
	if (!chdir("/"))
		umount("/mnt/cow");
}

void test_guests(void)
{
	ipc();
	terminals();
	barrier();
	limits();
	in_child(fake_init, NULL);
	in_child(child_of_the_dead, NULL);
	in_child(sched, NULL);
	in_child(control_groups, NULL);
	if (rmdir(GROUPS "/service") || umount(GROUPS))
		check(0, "unmount control groups");
	own_copies("/dev/vda", "ext4", SEAL);
	own_copies("/dev/vda", "ext4", TAG);
	own_copies("/dev/vdb", "xfs", TAG);
	own_copies("/dev/vdc", "btrfs", TAG);
}
