// SPDX-License-Identifier: MIT OR Apache-2.0
/* Link-invert: what nobody can change, and what everybody can replace. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/io_uring.h>
#include <linux/magic.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/uio.h>
#include <sys/vfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "check.h"

#define CAP_LINUX_IMMUTABLE 9
#define EXT4_IOC_SETVERSION _IOW('f', 4, long)
#define EXT4_IOC_MIGRATE _IO('f', 9)

static const char *file_system;
static int tag_is_on;

/* As FS_IOC_SETFLAGS, by the interface that came from xfs. */
static int set_xflags(const char *path, unsigned clear, unsigned set, unsigned project)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), result = -1, error;
	struct fsxattr attr;

	if (!ioctl(fd, FS_IOC_FSGETXATTR, &attr)) {
		attr.fsx_xflags = (attr.fsx_xflags & ~clear) | set;
		attr.fsx_projid = project;
		result = ioctl(fd, FS_IOC_FSSETXATTR, &attr);
	}
	error = errno;
	close(fd);
	errno = error;
	return result;
}

static int open_close(const char *path, int flags)
{
	int fd = open(path, flags | O_CLOEXEC, 0600);

	if (fd >= 0)
		close(fd);
	return fd;
}

static int open_by_handle(const char *path, int flags)
{
	char space[sizeof(struct file_handle) + MAX_HANDLE_SZ];
	struct file_handle *handle = (void *)space;
	int mount_id, dir = open(".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), fd, error;

	handle->handle_bytes = MAX_HANDLE_SZ;
	fd = name_to_handle_at(AT_FDCWD, path, handle, &mount_id, 0);
	if (!fd)
		fd = open_by_handle_at(dir, handle, flags | O_CLOEXEC);
	error = errno;
	close(dir);
	if (fd >= 0)
		close(fd);
	errno = error;
	return fd;
}

/* IORING_OP_OPENAT for writing; the result as open(2) would give it. */
static int uring_open(const char *path)
{
	struct io_uring_params params = {};
	int ring = (int)syscall(__NR_io_uring_setup, 4, &params), result = -1;
	char *sq, *cq;
	struct io_uring_sqe *sqes;

	if (ring < 0)
		return -1;
	sq = mmap(NULL, params.sq_off.array + 16, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, params.cq_off.cqes + 8 * sizeof(struct io_uring_cqe), PROT_READ | PROT_WRITE,
		  MAP_SHARED, ring, IORING_OFF_CQ_RING);
	sqes = mmap(NULL, 4 * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(sqes, 0, sizeof(*sqes));
	sqes->opcode = IORING_OP_OPENAT;
	sqes->fd = AT_FDCWD;
	sqes->addr = (uintptr_t)path;
	sqes->open_flags = O_WRONLY;
	((unsigned *)(sq + params.sq_off.array))[0] = 0;
	__atomic_store_n((unsigned *)(sq + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(__NR_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) == 1)
		result = ((struct io_uring_cqe *)(cq + params.cq_off.cqes))->res;
	close(ring);
	if (result < 0) {
		errno = -result;
		return -1;
	}
	close(result);
	return 0;
}

static int clone_into(const char *path, const char *from)
{
	int to = open(path, O_RDONLY | O_CLOEXEC), source = open(from, O_RDONLY | O_CLOEXEC);
	int result = ioctl(to, FICLONE, source), error = errno;

	close(to);
	close(source);
	errno = error;
	return result;
}

static int dedupe_into(const char *path, const char *from)
{
	struct { struct file_dedupe_range range; struct file_dedupe_range_info info; } request = {};
	int to = open(path, O_RDONLY | O_CLOEXEC), source = open(from, O_RDONLY | O_CLOEXEC), result;

	request.range.src_length = 4096;
	request.range.dest_count = 1;
	request.info.dest_fd = to;
	result = ioctl(source, FIDEDUPERANGE, &request);
	if (!result)
		result = request.info.status;
	close(to);
	close(source);
	if (result < 0)
		errno = -result;
	return result < 0 ? -1 : result;
}

static int ioctl_of(const char *path, unsigned long request, long value)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), result = ioctl(fd, request, &value), error = errno;

	close(fd);
	errno = error;
	return result;
}

static struct stat before;

static void remember(const char *path)
{
	stat(path, &before);
}

static int same(const char *path)
{
	struct stat now;
	char text[16] = "";
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = read(fd, text, sizeof(text) - 1);

	close(fd);
	stat(path, &now);
	return got == 7 && !strcmp(text, "content") && now.st_mode == before.st_mode &&
	       now.st_uid == before.st_uid && now.st_mtime == before.st_mtime && now.st_size == before.st_size;
}

/* Everything that would change the file "f", which is sealed. */
static void cannot_change(const char *who)
{
	struct timespec times[2] = { { 1, 0 }, { 1, 0 } };

	remember("f");
	DENIED(open_close("f", O_WRONLY), EPERM, "%s %s: open for writing", file_system, who);
	DENIED(open_close("f", O_RDWR), EPERM, "%s %s: open for both", file_system, who);
	DENIED(open_close("f", O_WRONLY | O_APPEND), EPERM, "%s %s: open to append", file_system, who);
	DENIED(open_close("f", O_RDONLY | O_TRUNC), EPERM, "%s %s: open to truncate", file_system, who);
	DENIED(open_close("f", O_RDWR | O_CREAT), EPERM, "%s %s: open with O_CREAT", file_system, who);
	DENIED(open_close("/proc/self/cwd/f", O_WRONLY), EPERM, "%s %s: open through /proc", file_system, who);
	DENIED(open_by_handle("f", O_WRONLY), EPERM, "%s %s: open by handle", file_system, who);
	DENIED(uring_open("f"), EPERM, "%s %s: open by io_uring", file_system, who);
	DENIED(truncate("f", 1), EPERM, "%s %s: truncate", file_system, who);
	DENIED(chmod("f", 0777), EPERM, "%s %s: chmod", file_system, who);
	DENIED(chown("f", 7, 7), EPERM, "%s %s: chown", file_system, who);
	DENIED(utimensat(AT_FDCWD, "f", times, 0), EPERM, "%s %s: set times", file_system, who);
	DENIED(utimensat(AT_FDCWD, "f", NULL, 0), EPERM, "%s %s: touch", file_system, who);
	DENIED(setxattr("f", "user.a", "b", 1, 0), EPERM, "%s %s: set an attribute", file_system, who);
	DENIED(setxattr("f", "trusted.a", "b", 1, 0), EPERM, "%s %s: set a trusted attribute", file_system, who);
	DENIED(removexattr("f", "user.was"), EPERM, "%s %s: remove an attribute", file_system, who);
	DENIED(removexattr("f", "system.posix_acl_access"), EPERM, "%s %s: remove the ACL", file_system, who);
	DENIED(setxattr("f", "security.capability", "\1\0\0\2\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0", 20, 0), EPERM,
	       "%s %s: set file capabilities", file_system, who);
	errno = 0;
	check(clone_into("f", "other") == -1, "%s %s: clone into it", file_system, who);
	errno = 0;
	check(dedupe_into("f", "other") != 0, "%s %s: deduplicate into it", file_system, who);
	if (!strcmp(file_system, "ext4")) {
		DENIED(ioctl_of("f", EXT4_IOC_MIGRATE, 0), EPERM, "%s %s: EXT4_IOC_MIGRATE", file_system, who);
		errno = 0;
		check(ioctl_of("f", EXT4_IOC_SETVERSION, 5) == -1, "%s %s: EXT4_IOC_SETVERSION", file_system, who);
	}
	check(same("f"), "%s %s: it is as it was", file_system, who);
	WORKS(open_close("f", O_RDONLY), "%s %s: it can be read", file_system, who);
}

static void cannot_unseal(const char *who)
{
	static const unsigned of_seals[] = { FS_NOATIME_FL, FS_SYNC_FL, FS_IMMUTABLE_FL, LINK_INVERT_FL };
	unsigned flags = get_flags("f");

	DENIED(set_flags("f", ~0u, FS_EXTENT_FL & flags), EPERM, "%s %s: clear all flags", file_system, who);
	for (unsigned i = 0; i < sizeof(of_seals) / sizeof(of_seals[0]); i++)
		if (flags & of_seals[i])
			DENIED(set_flags("f", of_seals[i], 0), EPERM, "%s %s: clear flag %x", file_system, who,
			       of_seals[i]);
	DENIED(set_flags("f", 0, FS_NODUMP_FL), EPERM, "%s %s: set another flag", file_system, who);
	DENIED(set_xflags("f", FS_XFLAG_SYNC | FS_XFLAG_IMMUTABLE, 0, 0), EPERM, "%s %s: clear by FSSETXATTR",
	       file_system, who);
	errno = 0;
	check(set_xflags("f", 0, FS_XFLAG_NODUMP, 0) == -1, "%s %s: set another by FSSETXATTR", file_system, who);
	check(get_flags("f") == flags, "%s %s: flags are as they were", file_system, who);
}

/* All that a package manager does to the names of a file. */
static void can_replace(const char *who)
{
	WORKS(link("f", "f.link"), "%s %s: link", file_system, who);
	WORKS(rename("f.link", "f.moved"), "%s %s: rename", file_system, who);
	write_file("new", "new");
	WORKS(rename("new", "f.moved"), "%s %s: rename over", file_system, who);
	WORKS(link("f", "f.link"), "%s %s: link again", file_system, who);
	WORKS(syscall(__NR_renameat2, AT_FDCWD, "f.link", AT_FDCWD, "f.moved", 2), "%s %s: exchange", file_system, who);
	WORKS(unlink("f.moved"), "%s %s: unlink", file_system, who);
	unlink("f.link");
}

static void make_file(void)
{
	static const char acl[] = "\2\0\0\0\1\0\6\0\377\377\377\377\2\0\4\0\1\0\0\0\4\0\4\0\377\377\377\377"
				  "\20\0\4\0\377\377\377\377\40\0\4\0\377\377\377\377";

	unlink("f");
	unlink("other");
	write_file("f", "content");
	setxattr("f", "user.was", "here", 4, 0);
	setxattr("f", "system.posix_acl_access", acl, sizeof(acl) - 1, 0);
	write_file("other", "another");
}

static void as_guest(void *argument)
{
	(void)argument;
	WORKS(new_s_context(-1, 0, 0), "%s: enter a context with all capabilities", file_system);
	cannot_change("root of a guest");
	cannot_unseal("root of a guest");
	can_replace("root of a guest");
	write_file("mine", "mine");
	if (strcmp(file_system, "ext4") == 0) {
		DENIED(set_flags("mine", 0, SEAL), EPERM, "%s root of a guest: can't seal", file_system);
		DENIED(set_flags("mine", 0, LINK_INVERT_FL), EPERM, "%s root of a guest: can't invert", file_system);
	}
	if (tag_is_on)
		DENIED(set_flags("mine", 0, TAG), EPERM, "%s root of a guest: can't tag", file_system);
	unlink("mine");
}

static void as_weak_root(void *argument)
{
	(void)argument;
	new_s_context(-2, 1ull << CAP_LINUX_IMMUTABLE, 0);
	cannot_unseal("root without CAP_LINUX_IMMUTABLE");
}

static void busy(unsigned flags, const char *what)
{
	int fd = open("f", O_RDWR | O_CLOEXEC);
	char *map;

	DENIED(set_flags("f", 0, flags), ETXTBSY, "%s: %s while open for writing", file_system, what);
	map = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	DENIED(set_flags("f", 0, flags), ETXTBSY, "%s: %s while mapped for writing", file_system, what);
	munmap(map, 4096);
	WORKS(set_flags("f", 0, flags), "%s: %s once it is closed", file_system, what);
}

static void seal_of(unsigned flags, const char *what, const char *device)
{
	char where[64];

	make_file();
	busy(flags, what);
	check((get_flags("f") & flags) == flags, "%s: %s reads back", file_system, what);
	cannot_change("administrator");
	can_replace("administrator");
	in_child(as_weak_root, NULL);
	in_child(as_guest, NULL);

	snprintf(where, sizeof(where), "/mnt/%s", file_system);
	if (chdir("/") || umount(where) || mount(device, where, file_system, 0, NULL) || chdir(where))
		check(0, "%s: mount again", file_system);
	check((get_flags("f") & flags) == flags, "%s: %s outlives a mount", file_system, what);
	DENIED(open_close("f", O_WRONLY), EPERM, "%s: %s holds after a mount", file_system, what);
	WORKS(set_flags("f", flags, 0), "%s: the administrator takes the %s off", file_system, what);
	WORKS(open_close("f", O_WRONLY), "%s: and can write", file_system);
	unlink("f");
}

/* Immutable alone, and link-invert alone: names are fixed, as immutable XOR invert is. */
static void exclusive_or(void)
{
	make_file();
	WORKS(set_flags("f", 0, FS_IMMUTABLE_FL), "%s: immutable", file_system);
	DENIED(unlink("f"), EPERM, "%s: immutable: unlink", file_system);
	DENIED(link("f", "g"), EPERM, "%s: immutable: link", file_system);
	DENIED(rename("f", "g"), EPERM, "%s: immutable: rename", file_system);
	WORKS(set_flags("f", FS_IMMUTABLE_FL, 0), "%s: not immutable", file_system);
	if (strcmp(file_system, "ext4")) {
		DENIED(set_flags("f", 0, SEAL), EOPNOTSUPP, "%s: has no link-invert flag", file_system);
		return;
	}
	WORKS(set_flags("f", 0, LINK_INVERT_FL), "%s: link-invert alone", file_system);
	DENIED(unlink("f"), EPERM, "%s: link-invert alone: unlink", file_system);
	DENIED(link("f", "g"), EPERM, "%s: link-invert alone: link", file_system);
	WORKS(open_close("f", O_WRONLY), "%s: link-invert alone: write", file_system);
	WORKS(set_flags("f", LINK_INVERT_FL, 0), "%s: link-invert off", file_system);
}

static void overlay(void)
{
	mkdir("lower", 0755);
	mkdir("upper", 0755);
	mkdir("work", 0755);
	mkdir("merged", 0755);
	write_file("lower/f", "content");
	set_flags("lower/f", 0, TAG);
	if (mount("o", "merged", "overlay", 0, "lowerdir=lower,upperdir=upper,workdir=work")) {
		check(0, "%s: mount an overlay", file_system);
		return;
	}
	DENIED(open_close("merged/f", O_WRONLY), EPERM, "%s: overlay: write to a tagged file", file_system);
	WORKS(rename("merged/f", "merged/g"), "%s: overlay: rename it", file_system);
	WORKS(unlink("merged/g"), "%s: overlay: unlink it", file_system);
	umount("merged");
	WORKS(open_close("lower/f", O_RDONLY), "%s: overlay: the lower file is there", file_system);
}

/* Attributes of a directory come to what is made in it, but no file is sealed from birth. */
static void inherited(void)
{
	int fd;

	mkdir("strict", 0755);
	set_flags("strict", 0, TAG);
	fd = open("strict/f", O_WRONLY | O_CREAT, 0600);
	check(write(fd, "new", 3) == 3, "%s: a file in a tagged directory can be written", file_system);
	close(fd);
	WORKS(open_close("strict/f", O_WRONLY), "%s: and opened again", file_system);
	fd = open("strict", O_TMPFILE | O_RDWR, 0600);
	check(write(fd, "new", 3) == 3, "%s: so can one without a name", file_system);
	close(fd);
	check((get_flags("strict/f") & TAG) != TAG, "%s: it doesn't have the tag", file_system);
}

static void without_the_sysctl(void)
{
	make_file();
	WORKS(set_flags("f", 0, TAG), "%s: both attributes without the sysctl", file_system);
	WORKS(open_close("f", O_WRONLY), "%s: without the sysctl they are no tag", file_system);
	unlink("f");
}

static void on(const char *name, const char *device)
{
	char where[64];

	file_system = name;
	snprintf(where, sizeof(where), "/mnt/%s", name);
	mkdir("/mnt", 0755);
	mkdir(where, 0755);
	if (mount(device, where, name, 0, NULL) || chdir(where)) {
		check(0, "mount %s", name);
		return;
	}
	write_file("/proc/sys/fs/vserver/honour_tag", "0");
	exclusive_or();
	without_the_sysctl();
	if (!strcmp(name, "ext4"))
		seal_of(SEAL, "seal", device);
	WORKS(write_file("/proc/sys/fs/vserver/honour_tag", "1"), "%s: switch the tag on", name);
	tag_is_on = 1;
	seal_of(TAG, "tag", device);
	tag_is_on = 0;
	overlay();
	inherited();
	write_file("/proc/sys/fs/vserver/honour_tag", "0");
	if (chdir("/"))
		return;
	umount(where);
}

void test_seals(void)
{
	on("ext4", "/dev/vda");
	on("xfs", "/dev/vdb");
	on("btrfs", "/dev/vdc");
}
