// SPDX-License-Identifier: GPL-2.0-only
/*
 * Link-invert: a tagged file can't be changed by anybody, and can be linked, replaced and removed by everybody.
 *
 * The tag is a pair of native inode flags, no-atime and sync (chattr +A +S), on a regular file: two bits that
 * ext4, xfs and btrfs keep on disk and load into the inode, so that asking costs two loads and needs no map.
 * It means something only on file systems in the scope, which are known by their UUID: that outlasts
 * remounts, and device numbers don't.
 *
 * Only context 0 with CAP_LINUX_IMMUTABLE, outside user namespaces, sets and clears the tag.
 */
#include "vserver.h"

VS_LICENSE;

/* linux/stat.h, and linux/fs.h for an inode in memory */
#define S_IFMT 0170000
#define S_IFREG 0100000
#define S_SYNC (1 << 0)
#define S_NOATIME (1 << 1)
#define TAG (S_SYNC | S_NOATIME)
#define S_IMMUTABLE (1 << 3)
/* The same as FS_IOC_SETFLAGS and as FS_IOC_FSSETXATTR have them */
#define FS_TAG (0x00000008 | 0x00000080)
#define FS_IMMUTABLE 0x00000010
#define XFLAG_TAG (0x00000020 | 0x00000040)
#define XFLAG_IMMUTABLE 0x00000008

/* linux/fs.h, linux/mman.h, linux/mm.h */
#define MAY_WRITE 2
#define MAY_APPEND 8
#define PROT_WRITE 2
#define MAP_TYPE 0xf
#define MAP_SHARED 1
#define MAP_SHARED_VALIDATE 3
#define MAP_ANONYMOUS 0x20
#define VM_SHARED 8

/* linux/magic.h */
#define EXT4_MAGIC 0xef53
#define XFS_MAGIC 0x58465342

/*
 * ioctls by type and number: sizes and directions differ between 32 and 64 bits. Types are those of file
 * systems: 'f' and 'v' of ext2 and its heirs and of all, 'X' of xfs and of all, 0x94 of btrfs and of clones.
 */
#define KIND(type, number) ((type) << 8 | (number))
#define FS_IOC_GETFLAGS KIND('f', 1)
#define FS_IOC_SETFLAGS KIND('f', 2)
#define FS_IOC_FIEMAP KIND('f', 11)
#define EXT4_IOC_MOVE_EXT KIND('f', 15)
#define EXT4_IOC_GETFSUUID KIND('f', 44)
#define FS_IOC_MEASURE_VERITY KIND('f', 134)
#define FS_IOC_READ_VERITY_METADATA KIND('f', 135)
#define FS_IOC_GETVERSION KIND('v', 1)
#define FS_IOC_FSGETXATTR KIND('X', 31)
#define FS_IOC_FSSETXATTR KIND('X', 32)
#define XFS_IOC_DIOINFO KIND('X', 30)
#define XFS_IOC_GETBMAP KIND('X', 38)
#define XFS_IOC_GETBMAPX KIND('X', 56)
#define XFS_IOC_FSGEOMETRY_V1 KIND('X', 100)
#define XFS_IOC_PATH_TO_FSHANDLE KIND('X', 104)
#define XFS_IOC_PATH_TO_HANDLE KIND('X', 105)
#define XFS_IOC_FD_TO_HANDLE KIND('X', 106)
#define XFS_IOC_SWAPEXT KIND('X', 109)
#define FIFREEZE KIND('X', 119)
#define FITHAW KIND('X', 120)
#define FITRIM KIND('X', 121)
#define XFS_IOC_ATTRMULTI_BY_HANDLE KIND('X', 123)
#define XFS_IOC_FSGEOMETRY_V4 KIND('X', 124)
#define FS_IOC_SHUTDOWN KIND('X', 125)
#define XFS_IOC_FSGEOMETRY KIND('X', 126)
#define XFS_IOC_EXCHANGE_RANGE KIND('X', 129)
#define XFS_IOC_COMMIT_RANGE KIND('X', 131)
#define BTRFS_IOC_FS_INFO KIND(0x94, 31)
#define FIDEDUPERANGE KIND(0x94, 54)

/* A file system, with all its subvolumes. */
struct vs_filesystem {
	__u64 uuid[2];
	__u64 magic;
};

VS_MAP(scope, VS_MAP_HASH, 0, 256, struct vs_filesystem, __u32);
VS_TASKS_MAP;

#include "proc.h"

VS_INLINE void name_filesystem(struct inode *inode, struct vs_filesystem *filesystem)
{
	struct super_block *sb = inode->i_sb;

	filesystem->uuid[0] = *(__u64 *)&sb->s_uuid.b[0];
	filesystem->uuid[1] = *(__u64 *)&sb->s_uuid.b[8];
	filesystem->magic = sb->s_magic;
}

VS_INLINE int in_scope(struct inode *inode)
{
	struct vs_filesystem filesystem;

	name_filesystem(inode, &filesystem);
	return vs_map_lookup(&scope, &filesystem) != NULL;
}

VS_INLINE int is_tagged(struct inode *inode)
{
	if (!inode)
		return 0;
	if ((inode->i_flags & TAG) != TAG || (inode->i_mode & S_IFMT) != S_IFREG)
		return 0;
	return in_scope(inode);
}

/* Who may set and clear tags. */
VS_INLINE int is_administrator(void)
{
	struct task_struct *task = vs_current();
	struct vs_task *entry = vs_task_of(task);

	if (entry && entry->context != 0)
		return 0;
	return vs_capable(task, CAP_LINUX_IMMUTABLE);
}

/* ---- writing -------------------------------------------------------------------------------- */

/*
 * The rules for /proc and for control groups are those of contexts, which leave them to this program: a second one
 * would make every open dearer.
 */
SEC("lsm/file_open")
int file_open(__u64 *ctx)
{
	struct file *file = (void *)ctx[0];

	if (file->f_mode & FMODE_WRITE && (is_tagged(file->f_inode) || writes_to_groups(file)))
		return -EPERM;
	return open_of_proc(file);
}

SEC("lsm/file_open")
int file_open__blind(__u64 *ctx)
{
	struct file *file = (void *)ctx[0];

	if (file->f_mode & FMODE_WRITE && (is_tagged(file->f_inode) || writes_to_groups(file)))
		return -EPERM;
	return 0;
}

/*
 * Descriptors from before the tag: write in all its forms, io_uring, fallocate, clones; and extents that
 * FIDEDUPERANGE shares into a file without having it open for writing.
 */
SEC("lsm/file_permission")
int file_permission(__u64 *ctx)
{
	struct file *file = (void *)ctx[0];
	int mask = ctx[1];

	if (!(mask & (MAY_WRITE | MAY_APPEND)))
		return 0;
	if (is_tagged(file->f_inode))
		return -EPERM;
	return 0;
}

/*
 * A new shared mapping of such a descriptor. The file is only looked at where there must be one: kernels before
 * 6.12 take NULL for impossible here, and drop a check for it.
 */
SEC("lsm/mmap_file")
int mmap_file(__u64 *ctx)
{
	unsigned long protection = ctx[2];
	unsigned long flags = ctx[3];
	struct file *file;

	if (!(protection & PROT_WRITE) || flags & MAP_ANONYMOUS)
		return 0;
	if ((flags & MAP_TYPE) != MAP_SHARED && (flags & MAP_TYPE) != MAP_SHARED_VALIDATE)
		return 0;
	file = (void *)ctx[0];
	if (!file)
		return 0;
	if (is_tagged(file->f_inode))
		return -EPERM;
	return 0;
}

/* A shared mapping from before the tag that was for reading until now. */
SEC("lsm/file_mprotect")
int file_mprotect(__u64 *ctx)
{
	struct vm_area_struct *area = (void *)ctx[0];
	unsigned long protection = ctx[2];
	struct file *file;

	if (!(protection & PROT_WRITE) || !vs_field_exists(area->vm_flags))
		return 0;
	if (!(area->vm_flags & VM_SHARED))
		return 0;
	file = area->vm_file;
	if (!file)
		return 0;
	if (is_tagged(file->f_inode))
		return -EPERM;
	return 0;
}

/* ---- metadata ------------------------------------------------------------------------------- */

VS_INLINE int change(struct dentry *dentry)
{
	if (is_tagged(dentry->d_inode))
		return -EPERM;
	return 0;
}

/* truncate, chmod, chown, utimes */
SEC("lsm/inode_setattr")
int inode_setattr__args2(__u64 *ctx)
{
	return change((void *)ctx[0]);
}

SEC("lsm/inode_setattr")
int inode_setattr__args3(__u64 *ctx)
{
	return change((void *)ctx[1]);
}

SEC("lsm/inode_setxattr")
int inode_setxattr(__u64 *ctx)
{
	return change((void *)ctx[1]);
}

SEC("lsm/inode_removexattr")
int inode_removexattr(__u64 *ctx)
{
	return change((void *)ctx[1]);
}

/* Before Linux 6.2 an ACL is an xattr and nothing else. */
SEC("lsm/inode_set_acl")
int inode_set_acl(__u64 *ctx)
{
	return change((void *)ctx[1]);
}

SEC("lsm/inode_remove_acl")
int inode_remove_acl(__u64 *ctx)
{
	return change((void *)ctx[1]);
}

/* ---- inode flags, and what else ioctls do ---------------------------------------------------- */

/* What flags are asked for. */
struct wish {
	int tag;
	int immutable;
};

/*
 * Whether inode flags may become what is asked for. While a file is tagged, nothing but the tag changes, and
 * immutability, which only adds to it. A file that anybody has open or mapped for writing can't be tagged:
 * what is mapped asks no hook.
 */
VS_INLINE int set_flags(struct inode *inode, struct wish wish)
{
	if (is_tagged(inode)) {
		if (!is_administrator())
			return -EPERM;
		if (wish.tag && !wish.immutable && !(inode->i_flags & S_IMMUTABLE))
			return -EPERM;
		return 0;
	}
	if (!wish.tag || !in_scope(inode))
		return 0;
	if (!is_administrator())
		return -EPERM;
	if ((inode->i_mode & S_IFMT) == S_IFREG && inode->i_writecount.counter > 0)
		return -ETXTBSY;
	return 0;
}

/*
 * From Linux 6.17 on this sees what the file system will get. Before, file_ioctl looks at the caller's memory,
 * which another thread may change meanwhile: a guest can give a file of its own the tag so, which shuts out
 * nobody but the guest itself; taking it off does not depend on that memory.
 */
SEC("lsm/inode_file_setattr")
int inode_file_setattr(__u64 *ctx)
{
	struct dentry *dentry = (void *)ctx[0];
	struct file_kattr *wanted = (void *)ctx[1];
	struct inode *inode = dentry->d_inode;
	struct wish wish;

	if (!inode)
		return 0;
	wish.tag = (wanted->flags & FS_TAG) == FS_TAG;
	wish.immutable = wanted->flags & FS_IMMUTABLE;
	return set_flags(inode, wish);
}

/* Of the types of file systems, what changes nothing of the file. */
VS_INLINE int is_harmless(__u32 kind)
{
	switch (kind) {
	case FS_IOC_GETFLAGS:
	case FS_IOC_FIEMAP:
	case EXT4_IOC_GETFSUUID:
	case FS_IOC_MEASURE_VERITY:
	case FS_IOC_READ_VERITY_METADATA:
	case FS_IOC_GETVERSION:
	case FS_IOC_FSGETXATTR:
	case XFS_IOC_DIOINFO:
	case XFS_IOC_GETBMAP:
	case XFS_IOC_GETBMAPX:
	case XFS_IOC_FSGEOMETRY_V1:
	case XFS_IOC_FSGEOMETRY_V4:
	case XFS_IOC_FSGEOMETRY:
	case XFS_IOC_PATH_TO_FSHANDLE:
	case XFS_IOC_PATH_TO_HANDLE:
	case XFS_IOC_FD_TO_HANDLE:
	case FIFREEZE:
	case FITHAW:
	case FITRIM:
	case FS_IOC_SHUTDOWN:
	case BTRFS_IOC_FS_INFO:
	case FIDEDUPERANGE:
		return 1;
	default:
		return kind >> 8 != 'f' && kind >> 8 != 'v' && kind >> 8 != 'X' && kind >> 8 != 0x94;
	}
}

/* What reaches files other than the one it is called on, by number or handle, past all other hooks. */
VS_INLINE int reaches_others(struct inode *inode, __u32 kind)
{
	if (kind == EXT4_IOC_MOVE_EXT)
		return inode->i_sb->s_magic == EXT4_MAGIC && in_scope(inode);
	if (kind == XFS_IOC_SWAPEXT || kind == XFS_IOC_ATTRMULTI_BY_HANDLE || kind == XFS_IOC_EXCHANGE_RANGE ||
	    kind == XFS_IOC_COMMIT_RANGE)
		return inode->i_sb->s_magic == XFS_MAGIC && in_scope(inode);
	return 0;
}

VS_INLINE int change_scope(struct inode *inode, __u32 command)
{
	struct vs_filesystem filesystem;
	__u32 one = 1;

	if (!is_administrator())
		return -EPERM;
	name_filesystem(inode, &filesystem);
	if (command == VS_IOC_SCOPE_REMOVE) {
		vs_map_delete(&scope, &filesystem);
		return -VS_ANSWER;
	}
	if (filesystem.uuid[0] == 0 && filesystem.uuid[1] == 0)
		return -EOPNOTSUPP;
	if (vs_map_update(&scope, &filesystem, &one, VS_ANY) != 0)
		return -E2BIG;
	return -VS_ANSWER;
}

/* How the flags that the caller wants are read. */
enum { SLEEPING, ATOMICALLY, NOT_AT_ALL };

VS_INLINE int any_ioctl(struct file *file, __u32 command, const void *argument, int how)
{
	struct inode *inode = file->f_inode;
	__u32 kind = command & 0xffff;
	__u32 wanted = 0;
	long failed = 1;

	if (!inode)
		return 0;
	if (command == VS_IOC_SCOPE_ASK) {
		if (in_scope(inode))
			return -(VS_ANSWER + (VS_ABI << 1 | 1));
		return -(VS_ANSWER + (VS_ABI << 1));
	}
	if (command == VS_IOC_SCOPE_ADD || command == VS_IOC_SCOPE_REMOVE)
		return change_scope(inode, command);
	if (kind == FS_IOC_SETFLAGS || kind == FS_IOC_FSSETXATTR) {
		__u32 tag = kind == FS_IOC_SETFLAGS ? FS_TAG : XFLAG_TAG;
		__u32 immutable = kind == FS_IOC_SETFLAGS ? FS_IMMUTABLE : XFLAG_IMMUTABLE;
		struct wish wish;

		if (how == SLEEPING)
			failed = vs_copy_from_user(&wanted, sizeof(wanted), argument);
		else if (how == ATOMICALLY)
			failed = vs_probe_read_user(&wanted, sizeof(wanted), argument);
		/* Where it can't be read (overlayfs passes no address), the worst is assumed of all but administrators. */
		if (failed && !is_tagged(inode) && is_administrator())
			return 0;
		if (failed)
			wanted = tag;
		wish.tag = (wanted & tag) == tag;
		wish.immutable = wanted & immutable;
		return set_flags(inode, wish);
	}
	if (reaches_others(inode, kind))
		return -EPERM;
	if (!is_tagged(inode))
		return 0;
	if (!is_harmless(kind))
		return -EPERM;
	/*
	 * Overlayfs asks about the flags of a file that it copies up, with no address of anybody's. Told that
	 * there are none, it makes a copy without the tag, which its guest may change.
	 */
	if ((kind == FS_IOC_GETFLAGS || kind == FS_IOC_FSGETXATTR) && how != NOT_AT_ALL && !argument)
		return -ENOTTY;
	return 0;
}

SEC("lsm.s/file_ioctl")
int file_ioctl(__u64 *ctx)
{
	return any_ioctl((void *)ctx[0], ctx[1], (void *)ctx[2], SLEEPING);
}

/* Kernels without this hook ask file_ioctl for 32-bit callers, too. It may not sleep. */
SEC("lsm/file_ioctl_compat")
int file_ioctl_compat(__u64 *ctx)
{
	return any_ioctl((void *)ctx[0], ctx[1], (void *)(ctx[2] & 0xffffffff), ATOMICALLY);
}

/* Lockdown leaves no way to look without sleeping: 32-bit callers then change no flags but as administrators. */
SEC("lsm/file_ioctl_compat")
int file_ioctl_compat__blind(__u64 *ctx)
{
	return any_ioctl((void *)ctx[0], ctx[1], NULL, NOT_AT_ALL);
}

/* ---- is anybody there? ----------------------------------------------------------------------- */

SEC("lsm/task_prctl")
int task_prctl(__u64 *ctx)
{
	if ((__u32)ctx[0] == VS_PRCTL && ctx[1] == VS_PRCTL_VERSION && ctx[2] == VS_LINK_INVERT)
		return -(VS_ANSWER + VS_ABI);
	return 0;
}
