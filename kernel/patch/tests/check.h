/* SPDX-License-Identifier: MIT OR Apache-2.0 */
/* One line for each assertion; the counts are shared with all children. */
#ifndef CHECK_H
#define CHECK_H

#include <errno.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/types.h>

/* Prints "ok" or "not ok" with the text, and errno where it failed. */
void check(int ok, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* The call failed, with this errno. */
#define DENIED(call, error, ...) \
	do { \
		errno = 0; \
		long result_ = (long)(call); \
		check(result_ == -1 && errno == (error), __VA_ARGS__); \
	} while (0)

/* The call succeeded. */
#define WORKS(call, ...) \
	do { \
		errno = 0; \
		long result_ = (long)(call); \
		check(result_ >= 0, __VA_ARGS__); \
	} while (0)

/* Runs the function in a child and waits; a child that dies is a failure. */
void in_child(void (*function)(void *), void *argument);

/* Forks until it may not, or there are so many, and ends them all; how many there were, and the error. */
int fork_all(int most);

/* What /proc/PID/status says, 0 for the caller; empty where there is no such line. */
const char *status_of(pid_t pid, const char *name);

long new_s_context(int32_t ctx, uint64_t remove, uint32_t flags);
long set_ipv4root(const uint32_t *addrs, uint32_t count, uint32_t broadcast);

enum { LOCK = 1, SCHED = 2, NPROC = 4, PRIVATE = 8, FAKEINIT = 16 };

int write_file(const char *path, const char *text);

/* Immutable and link-invert, which ext4 has; and the pair of flags that stands for them under honour_tag. */
#define LINK_INVERT_FL 0x08000000u
#define SEAL (FS_IMMUTABLE_FL | LINK_INVERT_FL)
#define TAG (FS_NOATIME_FL | FS_SYNC_FL)

unsigned get_flags(const char *path);
int set_flags(const char *path, unsigned clear, unsigned set);

void test_seals(void);
void test_contexts(void);
void test_guests(void);
void test_addresses(void);

/* Looks at what the power cut of the round before has left; and, unless it is the last, comes to the next. */
void test_crash(int round, int is_last);

#endif
