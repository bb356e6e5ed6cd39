// SPDX-License-Identifier: MIT OR Apache-2.0
/* The first process of a virtual machine: runs all tests and powers off. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static struct { int passed, failed; } *counts;

void check(int ok, const char *format, ...)
{
	int error = errno;
	char text[256];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	__atomic_add_fetch(ok ? &counts->passed : &counts->failed, 1, __ATOMIC_SEQ_CST);
	if (ok)
		dprintf(1, "ok - %s\n", text);
	else
		dprintf(1, "not ok - %s (%s)\n", text, error ? strerror(error) : "no errno");
}

void in_child(void (*function)(void *), void *argument)
{
	int status = -1;
	pid_t child = fork();

	if (!child) {
		function(argument);
		_exit(0);
	}
	waitpid(child, &status, 0);
	if (status)
		check(0, "a child ended with status %x", status);
}

int fork_all(int most)
{
	pid_t children[64];
	int made = 0, count, error;

	while (made < most && made < 64) {
		pid_t child = fork();

		if (!child) {
			pause();
			_exit(0);
		}
		if (child < 0)
			break;
		children[made++] = child;
	}
	error = errno;
	for (count = made; made; made--) {
		kill(children[made - 1], SIGKILL);
		waitpid(children[made - 1], NULL, 0);
	}
	errno = error;
	return count;
}

const char *status_of(pid_t pid, const char *name)
{
	static char line[512];
	char path[64];
	FILE *file;
	size_t length = strlen(name);

	snprintf(path, sizeof(path), pid ? "/proc/%d/status" : "/proc/self/status", pid);
	file = fopen(path, "r");
	while (file && fgets(line, sizeof(line), file)) {
		if (!strncmp(line, name, length) && line[length] == ':') {
			fclose(file);
			line[strcspn(line, "\n")] = 0;
			return line + length + 2;
		}
	}
	if (file)
		fclose(file);
	return "";
}

static long new_s_context_number, set_ipv4root_number;

long new_s_context(int32_t ctx, uint64_t remove, uint32_t flags)
{
	return syscall(new_s_context_number, ctx, remove, flags);
}

long set_ipv4root(const uint32_t *addrs, uint32_t count, uint32_t broadcast)
{
	return syscall(set_ipv4root_number, addrs, count, broadcast);
}

/* The kernel is asked for the numbers, as programs should; at once, as there may be no /proc later. */
static void find_numbers(void)
{
	new_s_context_number = strtol(status_of(0, "__NR_new_s_context"), NULL, 10);
	set_ipv4root_number = strtol(status_of(0, "__NR_set_ipv4root"), NULL, 10);
	check(new_s_context_number > 0 && strstr(status_of(0, "__NR_new_s_context"), "rev1"),
	      "the number and revision of new_s_context");
	check(set_ipv4root_number > 0 && strstr(status_of(0, "__NR_set_ipv4root"), "rev1"),
	      "the number and revision of set_ipv4root");
}

int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	ssize_t wrote = fd < 0 ? -1 : write(fd, text, strlen(text));

	if (fd >= 0)
		close(fd);
	return wrote == (ssize_t)strlen(text) ? 0 : -1;
}

unsigned get_flags(const char *path)
{
	unsigned flags = 0;
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	ioctl(fd, FS_IOC_GETFLAGS, &flags);
	close(fd);
	return flags;
}

int set_flags(const char *path, unsigned clear, unsigned set)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), result = -1, error;
	unsigned flags;

	if (fd < 0)
		return -1;
	if (!ioctl(fd, FS_IOC_GETFLAGS, &flags)) {
		flags = (flags & ~clear) | set;
		result = ioctl(fd, FS_IOC_SETFLAGS, &flags);
	}
	error = errno;
	close(fd);
	errno = error;
	return result;
}

static void set_up(void)
{
	mkdir("/proc", 0755);
	mkdir("/dev", 0755);
	mkdir("/tmp", 0777);
	mount("proc", "/proc", "proc", 0, NULL);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mkdir("/dev/pts", 0755);
	mount("devpts", "/dev/pts", "devpts", 0, "ptmxmode=666");
	mount("tmp", "/tmp", "tmpfs", 0, NULL);
	chmod("/tmp", 01777);
	counts = mmap(NULL, sizeof(*counts), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
}

static void run(void (*tests)(void))
{
	int status;
	pid_t child = fork();

	if (!child) {
		tests();
		_exit(0);
	}
	waitpid(child, &status, 0);
	check(!status, "the tests came to their end");
}

/* The kernel hands what it doesn't know of its command line on, as variables. */
static void one_crash(void)
{
	test_crash(atoi(getenv("crash")), getenv("last") != NULL);
}

int main(void)
{
	int fd;

	set_up();
	fd = open("/dev/console", O_RDWR);
	if (fd >= 0) {
		dup2(fd, 0);
		dup2(fd, 1);
		dup2(fd, 2);
	}
	find_numbers();
	if (getenv("crash")) {
		run(one_crash);
	} else {
		run(test_seals);
		run(test_contexts);
		run(test_guests);
		run(test_addresses);
	}
	dprintf(1, "RESULT: %d passed, %d failed\n", counts->passed, counts->failed);
	if (!getenv("crash"))
		sync();
	/* QEMU's isa-debug-exit ends it with twice the value and one: 33 is success. */
	if (!iopl(3))
		outl(counts->failed || !counts->passed ? 1 : 16, 0xf4);
	reboot(RB_POWER_OFF);
	return 1;
}
