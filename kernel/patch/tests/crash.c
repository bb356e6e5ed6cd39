// SPDX-License-Identifier: MIT OR Apache-2.0
/* The power fails while guests get copies of sealed files: every name reads what it always read. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "check.h"

#define FILES 48
#define SIZE_MAX_OF_FILES 200000

static const struct disk {
	const char *name, *device;
	int keeps_earlier; /* making a copy durable makes those before it durable too */
} disks[] = {
	{ "ext4", "/dev/vda", 1 },
	{ "xfs", "/dev/vdb", 1 },
	{ "btrfs", "/dev/vdc", 0 },
};

static unsigned char expected[SIZE_MAX_OF_FILES], found[SIZE_MAX_OF_FILES + 1];

static const char *name_of(int number)
{
	static char name[16];

	snprintf(name, sizeof(name), "file%d", number);
	return name;
}

/* The empty one, small ones, and such as have many blocks. */
static size_t content_of(int number)
{
	size_t size = (size_t)number * (size_t)number * 1237 % SIZE_MAX_OF_FILES, at;

	for (at = 0; at < size; at++)
		expected[at] = (unsigned char)((size_t)number * 31 + at / 13);
	return size;
}

static mode_t mode_of(int number)
{
	return number % 2 ? 04755 : 0640;
}

/* With a second name, as shared files have: the end of an inode with the tag would make all before it durable. */
static int make_sealed(int number)
{
	char shared[32];
	const struct timespec times[2] = { { 900000000 + number, 0 }, { 800000000 + number, 7 } };
	size_t size = content_of(number);
	int fd = open(name_of(number), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600), result;

	result = fd < 0 || write(fd, expected, size) != (ssize_t)size ||
		 fsetxattr(fd, "user.number", &number, sizeof(number), 0) ||
		 fchown(fd, 1000 + (uid_t)number, 50) || fchmod(fd, mode_of(number)) || futimens(fd, times);
	close(fd);
	snprintf(shared, sizeof(shared), "../shared/%d", number);
	unlink(shared);
	return result || link(name_of(number), shared) || set_flags(shared, 0, TAG);
}

/* Whether the file is as make_sealed() left it, seal aside. */
static int is_as_made(int number)
{
	size_t size = content_of(number);
	int fd = open(name_of(number), O_RDONLY | O_CLOEXEC), value = -1;
	struct stat is;

	if (fd < 0 || fstat(fd, &is) || fgetxattr(fd, "user.number", &value, sizeof(value)) != sizeof(value))
		return 0;
	ssize_t length = read(fd, found, sizeof(found));

	close(fd);
	return value == number && is.st_uid == 1000 + (uid_t)number && is.st_gid == 50 &&
	       (is.st_mode & 07777) == mode_of(number) && is.st_mtim.tv_sec == 800000000 + number &&
	       is.st_mtim.tv_nsec == 7 && is.st_size == (off_t)size && length == (ssize_t)size &&
	       !memcmp(expected, found, size);
}

/* What the last power cut left, which goes. */
static void verify(const struct disk *disk, int round)
{
	int number, whole = 0, copies = 0, others = 0;
	DIR *directory = opendir(".");
	struct dirent *entry;

	for (number = 0; number < FILES; number++) {
		whole += is_as_made(number);
		copies += (get_flags(name_of(number)) & TAG) != TAG;
	}
	while ((entry = readdir(directory)))
		others += strncmp(entry->d_name, "file", 4) && entry->d_name[0] != '.';
	rewinddir(directory);
	while ((entry = readdir(directory))) {
		others += !strncmp(entry->d_name, ".copy-", 6);
		unlink(entry->d_name);
	}
	closedir(directory);
	check(whole == FILES, "%s, round %d: every name reads what it always read (%d of %d)", disk->name, round, whole,
	      FILES);
	check(others <= 1, "%s, round %d: one name more at most (%d)", disk->name, round, others);
	check(!disk->keeps_earlier || (copies > 0 && copies < FILES),
	      "%s, round %d: the power failed in the midst (%d copies)", disk->name, round, copies);
}

static void open_all(atomic_int *opened)
{
	int number;

	if (new_s_context(-1, 0, 0) < 0)
		_exit(1);
	for (number = 0; number < FILES; number++) {
		int fd = open(name_of(number), O_RDWR | O_CLOEXEC);

		if (fd < 0)
			_exit(1);
		close(fd);
		atomic_fetch_add(opened, 1);
	}
	pause();
}

/* In the directory for this, on the disk. */
static int go_to(const struct disk *disk)
{
	char where[64];

	snprintf(where, sizeof(where), "/mnt/%s", disk->name);
	mkdir("/mnt", 0755);
	mkdir(where, 0755);
	return mount(disk->device, where, disk->name, 0, NULL) || chdir(where) ||
	       ((mkdir("crash", 0755) || mkdir("shared", 0755)) && errno != EEXIST) || chdir("crash");
}

/* Comes back in the midst of the copies, at the latest three milliseconds after one of them. */
static void make_copies(const struct disk *disk, int round)
{
	atomic_int *opened = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct timespec rest = { 0, (long)(round * 7919 % 30) * 100000 };
	int number, made = 0, ended = 0, fd;

	for (number = 0; number < FILES; number++)
		made += !make_sealed(number);
	check(made == FILES, "%s, round %d: make %d sealed files (%d)", disk->name, round, FILES, made);
	sync();
	if (!fork())
		open_all(opened);
	while (!ended && atomic_load(opened) < 3 + round * 5 % 30)
		ended = waitpid(-1, NULL, WNOHANG);
	check(!ended, "%s, round %d: a guest opens them for writing", disk->name, round);
	/* Somebody makes another file durable, and with it what the journal has of all names so far. */
	fd = open("../unrelated", O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
	check(write(fd, "x", 1) == 1 && !fsync(fd), "%s, round %d: sync another file", disk->name, round);
	nanosleep(&rest, NULL);
}

void test_crash(int round, int is_last)
{
	const struct disk *before = &disks[(round + 2) % 3], *now = &disks[round % 3];

	write_file("/proc/sys/fs/vserver/honour_tag", "1");
	write_file("/proc/sys/fs/vserver/copy_on_write", "1");
	if (round) {
		check(!go_to(before), "%s, round %d: mount", before->name, round);
		verify(before, round - 1);
	}
	if (!is_last) {
		check(!go_to(now), "%s, round %d: mount", now->name, round);
		make_copies(now, round);
	}
}
