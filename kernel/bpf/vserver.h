/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What every program here needs: the fields of the kernel's structures that are looked at, the helpers that are
 * called, and what the programs share. Nothing is included, so that clang alone builds the objects.
 *
 * Rules for programs here, each learnt the hard way:
 *
 * - Offsets are the running kernel's (CO-RE): a structure below names only fields that are used, in any order,
 *   and a field that not every kernel has is guarded by vs_field_exists().
 * - Arguments are ctx[0], ctx[1], ...; where kernels differ in their number, write one program for each number
 *   and name them HOOK__args2 and HOOK__args3: the loader takes the one that fits. Hooks that a kernel may lack
 *   are listed with the object in kernel/src/bpf/objects.rs, and left out there.
 * - A hook that has nothing to say returns 0. Anything else, -ENOSYS from task_prctl included, keeps programs of
 *   other objects on that hook from being asked.
 * - A reload runs old and new programs side by side for a moment, on the same maps: be idempotent (a second
 *   task_alloc finds what the first one wrote and counts nothing again).
 * - An error is a constant returned under an `if`; `return -(condition)` becomes branch-free arithmetic that the
 *   verifier can't bound. Two neighbouring stores to the context need vs_barrier() between them.
 * - Never -ESRCH from task_kill: the kernel tries again for ever. -EPERM.
 * - No kfuncs, no ksyms. No vs_probe_read_kernel() where a pointer can be followed: lockdown=confidentiality
 *   refuses it, and makes the loader replace vs_probe_read_user() by something that is refused, too. A sleepable
 *   program (lsm.s) has vs_copy_from_user(); another one may come with a variant HOOK__blind that does without and
 *   is taken then.
 */
#ifndef VSERVER_H
#define VSERVER_H

#include "abi.h"

typedef unsigned char __u8;
typedef unsigned short __u16;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

#define NULL ((void *)0)
#define SEC(name) __attribute__((section(name), used))
#define VS_INLINE static inline __attribute__((always_inline))
/* A variant that does nothing. */
#define VS_NO_PROGRAM(section, name) \
	SEC(section) int name(__u64 *ctx) \
	{                                 \
		return 0;                 \
	}                                 \
	_Static_assert(1, "takes the semicolon")
#define VS_LICENSE char LICENSE[] SEC("license") = "GPL"
#define vs_barrier() __asm__ volatile("" ::: "memory")
#define vs_field_exists(field) __builtin_preserve_field_info(field, 2)

/* linux/errno.h */
#define EPERM 1
#define ENOENT 2
#define EINTR 4
#define E2BIG 7
#define EAGAIN 11
#define ENOMEM 12
#define EACCES 13
#define EFAULT 14
#define EBUSY 16
#define EINVAL 22
#define ENOTTY 25
#define ETXTBSY 26
#define ENOSPC 28
#define ENOSYS 38
#define EOPNOTSUPP 95

/* linux/capability.h */
#define CAP_LINUX_IMMUTABLE 9
#define CAP_NET_ADMIN 12
#define CAP_SYS_ADMIN 21

/* ---- the kernel's structures ---------------------------------------------------------------- */

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	__u8 b[16];
} uuid_t;

struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
	uuid_t s_uuid;
};

struct atomic {
	int counter;
};

struct inode {
	__u16 i_mode;
	__u32 i_flags;
	unsigned long i_ino;
	struct atomic i_writecount;
	struct super_block *i_sb;
};

struct dentry {
	struct inode *d_inode;
};

struct file {
	__u32 f_mode;
	__u32 f_flags;
	struct inode *f_inode;
};

struct vm_area_struct {
	unsigned long vm_flags;
	struct file *vm_file;
};

/* From Linux 6.17 on, what file_setattr(2) and its ioctls hand to the file system. */
struct file_kattr {
	__u32 flags;
};

struct user_namespace {
	int level;
};

/* One 64-bit number from Linux 6.3 on, two of 32 bits before; the first is the lower one in memory. */
struct vs_capabilities {
	__u32 low;
	__u32 high;
};

struct cred {
	struct vs_capabilities cap_effective;
	struct user_namespace *user_ns;
};

struct task_struct {
	int pid;
	int tgid;
	struct task_struct *group_leader;
	struct task_struct *real_parent;
	const struct cred *cred;
};

#pragma clang attribute pop

/* ---- helpers (uapi/linux/bpf.h has the numbers) --------------------------------------------- */

static void *(*const vs_map_lookup)(void *map, const void *key) = (void *)1;
static long (*const vs_map_update)(void *map, const void *key, const void *value, __u64 flags) = (void *)2;
static long (*const vs_map_delete)(void *map, const void *key) = (void *)3;
static __u64 (*const vs_ktime_ns)(void) = (void *)5;
static __u64 (*const vs_pid_tgid)(void) = (void *)14;
static __u64 (*const vs_uid_gid)(void) = (void *)15;
static long (*const vs_probe_read_user)(void *to, __u32 size, const void *from) = (void *)112;
static long (*const vs_probe_read_kernel)(void *to, __u32 size, const void *from) = (void *)113;
static long (*const vs_copy_from_user)(void *to, __u32 size, const void *from) = (void *)148;
static struct task_struct *(*const vs_current)(void) = (void *)158;
static long (*const vs_strncmp)(const char *a, __u32 size, const char *b) = (void *)182;

#define VS_ANY 0     /* BPF_ANY */
#define VS_NOEXIST 1 /* BPF_NOEXIST */

/* ---- maps ----------------------------------------------------------------------------------- */

#define VS_MAP_HASH 1
#define VS_MAP_ARRAY 2
#define VS_MAP_PERCPU_ARRAY 6
#define VS_NO_PREALLOC 1

#define vs_number(name, value) int(*name)[value]
#define vs_type(name, type) type *name

/* A map by this name is pinned at /sys/fs/bpf/vserver/maps/NAME and outlives programs and loaders. */
#define VS_MAP(map, kind, map_flags_, entries, key_, value_) \
	struct {                                             \
		vs_number(type, kind);                       \
		vs_number(map_flags, map_flags_);            \
		vs_number(max_entries, entries);             \
		vs_type(key, key_);                          \
		vs_type(value, value_);                      \
	} map SEC(".maps")

/*
 * Tasks in contexts, by the address of their task_struct. Filled in task_alloc and cleared in task_free by the
 * contexts object; a task without an entry is in context 0. Shared by all objects. The loader makes it as large
 * as the kernel's limit of threads, so that guests can't fill it.
 */
struct vs_task {
	__u32 context;
	__u32 account;	 /* whose share of what guests share it takes: of the context that it left context 0 for */
	__u64 removed;	 /* capabilities that no credentials of the context give */
	__u32 init_pid;	 /* what the context sees as process 1, as the host numbers it; 0 for none */
	__u32 tgid;	 /* its own process, as the host numbers it, so that user space finds it */
	__u32 counted;	 /* a context whose limit of processes holds for it, too, as it came from there; 0 for none */
	__u32 reserved;
};

#define VS_TASKS_MAP VS_MAP(tasks, VS_MAP_HASH, VS_NO_PREALLOC, 32768, __u64, struct vs_task)

/* Use after VS_TASKS_MAP. */
#define vs_task_of(task)                                           \
	({                                                         \
		__u64 vs_key = (__u64)(task);                      \
		(struct vs_task *)vs_map_lookup(&tasks, &vs_key);  \
	})

/* Whether a task's credentials, outside any user namespace, have one of the first 32 capabilities. */
VS_INLINE int vs_capable(struct task_struct *task, int capability)
{
	const struct cred *cred = task->cred;

	if (cred->user_ns->level != 0)
		return 0;
	return *(__u32 *)&cred->cap_effective >> capability & 1;
}

#endif
