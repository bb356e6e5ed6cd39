// SPDX-License-Identifier: GPL-2.0-only
/*
 * Contexts: groups of processes that see, signal and trace each other only, with a ceiling of capabilities.
 *
 * A task's context is in the map `tasks`, which a fork copies (or fails) and the end of a task clears; who has no
 * entry is in context 0. What belongs to a context as a whole is in `contexts`, from its first task to its last.
 *
 * Who may reach whom:
 *
 *   - a context reaches itself, and nothing else; context 0 is no better;
 *   - context 1 sees all, and does nothing to others;
 *   - the host's process 1 is seen from everywhere, touched from context 0 only, and itself reaches all.
 */
#include "vserver.h"

VS_LICENSE;

#define FLAGS_ALL (VS_FLAG_LOCK | VS_FLAG_SCHED | VS_FLAG_NPROC | VS_FLAG_PRIVATE | VS_FLAG_FAKEINIT)

/*
 * Fresh contexts are numbered from here up. Smaller numbers are for guests whose number is in their
 * configuration: nobody can be there before root has sent somebody.
 */
#define FIRST_FRESH 0x10000
#define LAST_NUMBER 0x7fffffff
/* How often a number that is taken, or that somebody else was quicker with, is tried again. */
#define TRIES 16

/* asm-generic/resource.h, linux/ptrace.h, linux/magic.h, linux/fs.h, linux/pid.h */
#define RLIMIT_NPROC 6
#define BPF_FS_MAGIC 0xcafe4a11
#define PTRACE_MODE_ATTACH 2
#define PIDTYPE_TGID 1
#define ATTR_MODE 1
#define ATTR_UID 2
#define ATTR_GID 4

/* linux/sched.h */
#define CLONE_INTO_CGROUP (1ull << 33)

/* linux/fcntl.h, asm-generic/fcntl.h, asm-generic/ioctls.h, asm-generic/sockios.h */
#define F_SETFL 4
#define F_SETOWN 8
#define F_SETOWN_EX 15
#define F_SETLEASE 1024
#define F_NOTIFY 1026
#define FASYNC 020000
#define FIOASYNC 0x5452
#define FIOSETOWN 0x8901
#define SIOCSPGRP 0x8902

/* linux/ipc.h, linux/shm.h, linux/msg.h, linux/sem.h: they ask about all objects, not about one. */
#define IPC_INFO 3
#define MSG_INFO 12
#define SHM_INFO 14
#define SEM_INFO 19

VS_TASKS_MAP;

#include "proc.h"

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct rlimit {
	unsigned long rlim_cur;
	unsigned long rlim_max;
};

struct signal_struct {
	int nr_threads;
	struct rlimit rlim[16];
	struct pid *pids[4];
};

/* On x86. */
struct thread_info {
	__u32 status;
};

struct task_struct___more {
	struct thread_info thread_info;
	struct signal_struct *signal;
	struct fs_struct *fs;
	struct nsproxy *nsproxy;
};

struct vfsmount {
	struct dentry *mnt_root;
};

struct mount {
	struct mount *mnt_parent;
	struct dentry *mnt_mountpoint;
	struct vfsmount mnt;
};

struct path {
	struct vfsmount *mnt;
	struct dentry *dentry;
};

struct fs_struct {
	struct path root;
};

struct pid_namespace {
	struct task_struct *child_reaper;
	struct pid_namespace *parent;
};

struct nsproxy {
	struct pid_namespace *pid_ns_for_children;
};

struct iattr {
	__u32 ia_valid;
};

struct hw_perf_event {
	struct task_struct *target;
};

struct perf_event {
	struct hw_perf_event hw;
	struct perf_event *parent;
};

/* Its own piece of memory from Linux 6.12 on, a part of struct file before. */
struct fown_struct {
	struct file *file;
	struct pid *pid;
};

struct file___before_6_12 {
	struct fown_struct f_owner;
};

struct file___from_6_12 {
	struct fown_struct *f_owner;
};

#pragma clang attribute pop

/* A number for each PID namespace that a process is in; each is 16 bytes. */
#define SIZE_OF_UPID 16
#define LEVELS 32

/* A context, from its first task to its last. */
struct vs_context {
	__u32 held;	/* tasks that are in it, or are counted in it */
	__u32 limit;	/* how many there may be, under VS_FLAG_NPROC; 0 for any number */
	__u32 flags;	/* VS_FLAG_... */
	__u32 init_pid; /* under VS_FLAG_FAKEINIT */
};

/* There is a task for each, so that it can't be filled before `tasks`. */
VS_MAP(contexts, VS_MAP_HASH, VS_NO_PREALLOC, 32768, __u32, struct vs_context);
/* The number of the last fresh context. */
VS_MAP(last_fresh, VS_MAP_ARRAY, 0, 1, __u32, __u32);

/* A System V object that was not made in context 0. */
struct vs_ipc {
	__u32 context;
	__u32 account;
};

/*
 * Those objects, by their address. Each IPC namespace may have thousands, and a guest that may make namespaces
 * has any number of those: so there is a share for each account, at most. Context 0 takes none of the table.
 */
VS_MAP(ipc, VS_MAP_HASH, VS_NO_PREALLOC, 262144, __u64, struct vs_ipc);
#define IPC_SHARE 4096
/* How many each has. Numbers that an administrator gives have a count of their own, up to here. */
#define ACCOUNTS 65536
VS_MAP(ipc_counts, VS_MAP_ARRAY, 0, ACCOUNTS, __u32, __u32);
/* The one that all contexts have in common that were not made by an administrator. */
#define ACCOUNT_OF_USERS (ACCOUNTS - 1)

/* Files, by their addresses, whose signals go where context 0 has said. */
VS_MAP(directed, VS_MAP_HASH, VS_NO_PREALLOC, 262144, __u64, __u32);

/* ---- how long a context lives ---------------------------------------------------------------- */

VS_INLINE void release(__u32 number)
{
	struct vs_context *context = vs_map_lookup(&contexts, &number);

	if (!context)
		return;
	/* Nobody holds it any more, and nobody can begin to: see join(). */
	if (__sync_fetch_and_add(&context->held, -1) == 1)
		vs_map_delete(&contexts, &number);
}

/* For a new task of a context that the caller holds. */
VS_INLINE int hold(__u32 number)
{
	struct vs_context *context = vs_map_lookup(&contexts, &number);
	__u32 before;

	if (!context)
		return 0;
	before = __sync_fetch_and_add(&context->held, 1);
	if (context->flags & VS_FLAG_NPROC && context->limit != 0 && before >= context->limit) {
		__sync_fetch_and_add(&context->held, -1);
		return -EAGAIN;
	}
	return 0;
}

/*
 * For a task from elsewhere: into a context that somebody holds, or that is made so. Those who are there are in
 * control groups of their own, and not to be moved about: they share, or they don't.
 */
VS_INLINE int join(__u32 number, __u32 flags)
{
	struct vs_context new = { .held = 1 };

	for (int i = 0; i < TRIES; i++) {
		struct vs_context *context = vs_map_lookup(&contexts, &number);
		__u32 held;

		if (!context) {
			if (vs_map_update(&contexts, &number, &new, VS_NOEXIST) == 0)
				return 0;
			continue;
		}
		if (context->flags & VS_FLAG_PRIVATE)
			return -EPERM;
		if (flags & ~context->flags & VS_FLAG_SCHED)
			return -EPERM;
		held = context->held;
		/* From 0 it does not come back: who let it go is about to delete it. */
		if (held != 0 && __sync_val_compare_and_swap(&context->held, held, held + 1) == held)
			return 0;
	}
	return -EAGAIN;
}

/* A context that nobody is in. Answers its number, or 0. */
VS_INLINE __u32 make_fresh(void)
{
	struct vs_context new = { .held = 1 };
	__u32 zero = 0;
	__u32 *last = vs_map_lookup(&last_fresh, &zero);

	if (!last)
		return 0;
	for (int i = 0; i < TRIES; i++) {
		__u32 number = FIRST_FRESH + __sync_fetch_and_add(last, 1) % (LAST_NUMBER - FIRST_FRESH);

		if (vs_map_update(&contexts, &number, &new, VS_NOEXIST) == 0)
			return number;
	}
	return 0;
}

SEC("lsm/task_alloc")
int task_alloc(__u64 *ctx)
{
	struct task_struct *parent = vs_current();
	struct vs_task *from = vs_task_of(parent);
	struct vs_task entry;
	__u64 task = ctx[0];

	if (!from)
		return 0;
	if (ctx[1] & CLONE_INTO_CGROUP && is_barred())
		return -EPERM;
	if (vs_map_lookup(&tasks, &task))
		return 0;
	entry = *from;
	entry.tgid = 0;
	if (hold(entry.context) != 0)
		return -EAGAIN;
	if (hold(entry.counted) != 0) {
		release(entry.context);
		return -EAGAIN;
	}
	if (vs_map_update(&tasks, &task, &entry, VS_NOEXIST) != 0) {
		release(entry.context);
		release(entry.counted);
		return -EAGAIN;
	}
	return 0;
}

/* From here on a task has its number. */
SEC("raw_tp/task_newtask")
int task_newtask(__u64 *ctx)
{
	__u64 task = ctx[0];
	struct vs_task *entry = vs_map_lookup(&tasks, &task);

	if (entry)
		vs_probe_read_kernel(&entry->tgid, sizeof(entry->tgid),
				     (void *)(task + vs_offset(((struct task_struct *)0)->tgid)));
	return 0;
}

VS_NO_PROGRAM("raw_tp/task_newtask", task_newtask__blind);

/* Somebody looks it up in /proc: there a number is told that could not be read when the task was made. */
SEC("lsm/task_to_inode")
int task_to_inode(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct vs_task *entry = vs_task_of(task);

	if (entry && entry->tgid == 0)
		entry->tgid = task->tgid;
	return 0;
}

SEC("lsm/task_free")
int task_free(__u64 *ctx)
{
	__u64 task = ctx[0];
	struct vs_task *entry = vs_map_lookup(&tasks, &task);
	__u32 context, counted;

	if (!entry)
		return 0;
	context = entry->context;
	counted = entry->counted;
	if (vs_map_delete(&tasks, &task) != 0)
		return 0;
	release(context);
	release(counted);
	return 0;
}

/* ---- the call -------------------------------------------------------------------------------- */

/* CAP_SYS_ADMIN, under the ceiling. */
VS_INLINE int is_administrator(struct task_struct *task, __u64 removed)
{
	if (removed & CAP_BIT(CAP_SYS_ADMIN))
		return 0;
	return vs_capable(task, CAP_SYS_ADMIN);
}

/* Whether the call came by the 32-bit entry, which cuts a set of capabilities in half. */
VS_INLINE int is_compat(struct task_struct *task)
{
	struct task_struct___more *more = (void *)task;

	if (!vs_field_exists(more->thread_info.status))
		return 0;
	return more->thread_info.status & 2; /* TS_COMPAT */
}

/* The caller's limit of processes, as a number of tasks; 0 for any. */
VS_INLINE __u32 limit_of(struct task_struct *task)
{
	struct task_struct___more *more = (void *)task;
	unsigned long limit = more->signal->rlim[RLIMIT_NPROC].rlim_cur;

	if (limit > LAST_NUMBER)
		return 0;
	return limit == 0 ? 1 : limit;
}

/* Adds properties to the caller's context, and what it has then to its entry. */
VS_INLINE void settle(struct task_struct *task, struct vs_task *entry, __u32 flags)
{
	__u32 number = entry->context;
	struct vs_context *context = vs_map_lookup(&contexts, &number);

	if (!context)
		return;
	/* Once: who comes later does not raise it. */
	if (flags & VS_FLAG_NPROC && !(context->flags & VS_FLAG_NPROC))
		context->limit = limit_of(task);
	if (flags & VS_FLAG_FAKEINIT)
		context->init_pid = task->tgid;
	if (flags)
		__sync_fetch_and_or(&context->flags, flags);
	entry->init_pid = context->init_pid;
}

/*
 * Properties of a context that others are in: for its administrator, or who is alone in it. A user could take
 * all the others' room, shut the host's root out, or shut the others in. To share takes who is alone, see join().
 */
VS_INLINE int may_settle(struct task_struct *task, struct vs_task *entry, __u32 flags)
{
	__u32 number = entry->context;
	struct vs_context *context;

	if (!flags)
		return 1;
	if (number == 0)
		return 0;
	context = vs_map_lookup(&contexts, &number);
	if (!context)
		return 0;
	if (context->held == 1)
		return 1;
	return !(flags & ~context->flags & VS_FLAG_SCHED) && is_administrator(task, entry->removed);
}

/* Out of where it is, into another context. */
VS_INLINE int move(struct task_struct *task, struct vs_task *entry, __s64 which, __u32 flags)
{
	__u32 from = entry->context;
	struct vs_context *old = vs_map_lookup(&contexts, &from);

	if (old && old->flags & VS_FLAG_LOCK)
		return -EPERM;
	if (which == VS_CTX_FRESH) {
		int is_limited = old && old->flags & VS_FLAG_NPROC;

		/* A task is counted where it came from, once: a limit is not left by leaving the context. */
		if (is_limited && entry->counted != 0)
			return -EPERM;
		entry->context = make_fresh();
		if (entry->context == 0)
			return -EAGAIN;
		if (is_limited)
			entry->counted = from;
		else
			release(from);
	} else {
		int error;

		if (from != 0 || !is_administrator(task, entry->removed))
			return -EPERM;
		if (which < 1 || which > LAST_NUMBER)
			return -EINVAL;
		error = join(which, flags);
		if (error != 0)
			return error;
		entry->context = which;
	}
	/* What goes on from there to further contexts has no share more. */
	if (from == 0)
		entry->account = is_administrator(task, entry->removed) ? entry->context : ACCOUNT_OF_USERS;
	return 0;
}

VS_INLINE int shares(__u32 number)
{
	struct vs_context *context = vs_map_lookup(&contexts, &number);

	return context && context->flags & VS_FLAG_SCHED;
}

VS_INLINE int change(struct task_struct *task, struct vs_task *entry, __s64 which, __u64 remove, __u32 flags)
{
	struct vs_task next = *entry;

	if (which == VS_CTX_KEEP) {
		if (!may_settle(task, &next, flags))
			return -EPERM;
	} else {
		int is_sharing = shares(entry->context);
		int error = move(task, &next, which, flags);

		if (error != 0)
			return error;
		/* It is in the control group still, which whoever comes there by the number is to join. */
		if (is_sharing)
			flags |= VS_FLAG_SCHED;
	}
	settle(task, &next, flags);
	/* In place, which can't fail; the context last, so that nobody is there without its ceiling. */
	entry->removed |= remove;
	entry->tgid = task->tgid;
	entry->account = next.account;
	entry->init_pid = next.init_pid;
	entry->counted = next.counted;
	vs_barrier();
	entry->context = next.context;
	return 0;
}

VS_INLINE int enter(struct task_struct *task, __s64 which, __u64 remove, __u64 flags)
{
	struct task_struct___more *more = (void *)task;
	struct vs_task *entry = vs_task_of(task);
	struct vs_task none = {};
	__u64 key = (__u64)task;
	int is_new = 0;
	int error;

	if (flags & ~(__u64)FLAGS_ALL || is_compat(task))
		return -EINVAL;
	/* The other threads would stay behind. */
	if (more->signal->nr_threads != 1)
		return -EBUSY;
	if (!entry) {
		/* First, so that nothing has to be undone. */
		if (vs_map_update(&tasks, &key, &none, VS_NOEXIST) != 0)
			return -ENOMEM;
		is_new = 1;
		entry = vs_task_of(task);
		if (!entry)
			return -ENOMEM;
	}
	error = change(task, entry, which, remove, flags);
	if (error == 0)
		return -VS_ANSWER;
	if (is_new)
		vs_map_delete(&tasks, &key);
	if (error == -EPERM)
		return -EPERM;
	if (error == -EINVAL)
		return -EINVAL;
	return -EAGAIN;
}

/* Properties as they are now: those of the whole context may have been added by others. */
VS_INLINE __u64 field(struct vs_task *entry, __u64 which)
{
	struct vs_context *context;
	__u32 number;

	if (!entry)
		return 0;
	if (which == VS_GET_CONTEXT)
		return entry->context;
	if (which == VS_GET_REMOVED)
		return entry->removed;
	number = entry->context;
	context = vs_map_lookup(&contexts, &number);
	if (!context)
		return 0;
	return which == VS_GET_FLAGS ? context->flags : context->init_pid;
}

SEC("lsm/task_prctl")
int task_prctl(__u64 *ctx)
{
	struct task_struct *task = vs_current();

	if ((__u32)ctx[0] != VS_PRCTL)
		return 0;
	if (ctx[1] == VS_PRCTL_VERSION && ctx[2] == VS_CONTEXTS)
		return -(VS_ANSWER + VS_ABI);
	if (ctx[1] == VS_PRCTL_ENTER)
		return enter(task, ctx[2], ctx[3], ctx[4]);
	if (ctx[1] == VS_PRCTL_GET && ctx[2] <= VS_GET_REMOVED && ctx[3] <= 63 / VS_ANSWER_BITS) {
		__u64 value = field(vs_task_of(task), ctx[2]) >> (ctx[3] * VS_ANSWER_BITS);

		return -VS_ANSWER - (int)(value & ((1 << VS_ANSWER_BITS) - 1));
	}
	return 0;
}

/* ---- other processes ------------------------------------------------------------------------- */

VS_INLINE int may_touch(struct task_struct *other)
{
	struct task_struct *task = vs_current();

	return context_of(task) == context_of(other) || is_host_init(task);
}

VS_INLINE int may_see(struct task_struct *other)
{
	return own_context() == 1 || is_host_init(other) || may_touch(other);
}

VS_INLINE int touch(__u64 other)
{
	if (!may_touch((void *)other))
		return -EPERM;
	return 0;
}

VS_INLINE int see(__u64 other)
{
	if (!may_see((void *)other))
		return -EPERM;
	return 0;
}

/*
 * Signals that a process sends; those of the kernel (of a terminal, to a parent) are not asked about. With
 * credentials given the sender is not at hand: a USB request ends, and tells who made it. They are read past the
 * verifier, which takes them for always given, and drops a comparison.
 */
SEC("lsm/task_kill")
int task_kill(__u64 *ctx)
{
	__u64 credentials = 0;

	if (may_touch((void *)ctx[0]))
		return 0;
	vs_probe_read_kernel(&credentials, sizeof(credentials), &ctx[3]);
	if (credentials)
		return 0;
	return -EPERM;
}

SEC("lsm/task_kill")
int task_kill__blind(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/ptrace_access_check")
int ptrace_access_check(__u64 *ctx)
{
	if (!(ctx[1] & PTRACE_MODE_ATTACH) && own_context() == 1)
		return 0;
	return touch(ctx[0]);
}

SEC("lsm/ptrace_traceme")
int ptrace_traceme(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_setnice")
int task_setnice(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_setscheduler")
int task_setscheduler(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_setioprio")
int task_setioprio(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_setrlimit")
int task_setrlimit(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_setpgid")
int task_setpgid(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_movememory")
int task_movememory(__u64 *ctx)
{
	return touch(ctx[0]);
}

SEC("lsm/task_getscheduler")
int task_getscheduler(__u64 *ctx)
{
	return see(ctx[0]);
}

SEC("lsm/task_getioprio")
int task_getioprio(__u64 *ctx)
{
	return see(ctx[0]);
}

SEC("lsm/task_getpgid")
int task_getpgid(__u64 *ctx)
{
	return see(ctx[0]);
}

SEC("lsm/task_getsid")
int task_getsid(__u64 *ctx)
{
	return see(ctx[0]);
}

/*
 * Watching by the performance counters, which CAP_PERFMON allows of any process; without a process it is about
 * all on a processor. What a fork inherits was judged before, and its process is not in its context yet.
 */
SEC("lsm/perf_event_alloc")
int perf_event_alloc(__u64 *ctx)
{
	struct perf_event *event = (void *)ctx[0];
	struct task_struct *target;

	if (event->parent)
		return 0;
	target = event->hw.target;
	if (target)
		return see((__u64)target);
	if (own_context() > 1)
		return -EPERM;
	return 0;
}

/* ---- /proc and control groups ---------------------------------------------------------------- */

SEC("lsm/file_open")
int file_open(__u64 *ctx)
{
	struct file *file = (void *)ctx[0];

	if (writes_to_groups(file))
		return -EPERM;
	return open_of_proc(file);
}

SEC("lsm/file_open")
int file_open__blind(__u64 *ctx)
{
	if (writes_to_groups((void *)ctx[0]))
		return -EPERM;
	return 0;
}

VS_INLINE int look(struct inode *inode)
{
	struct pid *pid;

	if (!inode || inode->i_sb->s_magic != PROC_SUPER_MAGIC)
		return 0;
	pid = pid_of(inode);
	if (pid && is_hidden(pid))
		return -ENOENT;
	return 0;
}

SEC("lsm/inode_getattr")
int inode_getattr(__u64 *ctx)
{
	struct path *path = (void *)ctx[0];

	return look(path->dentry->d_inode);
}

/* /proc/PID/exe, cwd and the like, which would answer EACCES. */
SEC("lsm/inode_readlink")
int inode_readlink(__u64 *ctx)
{
	struct dentry *dentry = (void *)ctx[0];

	return look(dentry->d_inode);
}

SEC("lsm/inode_follow_link")
int inode_follow_link(__u64 *ctx)
{
	return look((void *)ctx[1]);
}

VS_INLINE int set_attributes(struct dentry *dentry, struct iattr *wanted)
{
	struct inode *inode = dentry->d_inode;

	if (!inode)
		return 0;
	if (is_of_groups(inode))
		return is_barred() ? -EPERM : 0;
	if (inode->i_sb->s_magic != PROC_SUPER_MAGIC)
		return 0;
	if (wanted->ia_valid & (ATTR_MODE | ATTR_UID | ATTR_GID) && is_barred())
		return -EPERM;
	return 0;
}

SEC("lsm/inode_setattr")
int inode_setattr__args2(__u64 *ctx)
{
	return set_attributes((void *)ctx[0], (void *)ctx[1]);
}

SEC("lsm/inode_setattr")
int inode_setattr__args3(__u64 *ctx)
{
	return set_attributes((void *)ctx[1], (void *)ctx[2]);
}

VS_INLINE int set_extended_attribute(struct dentry *dentry)
{
	struct inode *inode = dentry->d_inode;

	return inode && is_of_groups(inode) && is_barred() ? -EPERM : 0;
}

SEC("lsm/inode_setxattr")
int inode_setxattr(__u64 *ctx)
{
	return set_extended_attribute((void *)ctx[1]);
}

SEC("lsm/inode_removexattr")
int inode_removexattr(__u64 *ctx)
{
	return set_extended_attribute((void *)ctx[1]);
}

/* Each takes of the host's memory, and there are 65,535 at most. */
SEC("lsm/inode_mkdir")
int inode_mkdir(__u64 *ctx)
{
	return is_of_groups((struct inode *)ctx[0]) && is_barred() ? -EPERM : 0;
}

/* Where helpers may not read the kernel's memory, nothing is hidden in /proc: a PID namespace has to. */
VS_NO_PROGRAM("lsm/inode_getattr", inode_getattr__blind);
VS_NO_PROGRAM("lsm/inode_readlink", inode_readlink__blind);
VS_NO_PROGRAM("lsm/inode_follow_link", inode_follow_link__blind);

/* ---- the ceiling ----------------------------------------------------------------------------- */

/* Whatever the credentials say: those of a setuid program, of file capabilities, of a user namespace. */
SEC("lsm/capable")
int capable(__u64 *ctx)
{
	struct task_struct *task = vs_current();
	struct vs_task *entry = vs_task_of(task);

	if (entry && entry->removed >> (ctx[2] & 63) & 1)
		return -EPERM;
	return 0;
}

/* It would hold there, too; but what else of the kernel opens up to a namespace's root is no guest's business. */
SEC("lsm/userns_create")
int userns_create(__u64 *ctx)
{
	struct task_struct *task = vs_current();
	struct vs_task *entry = vs_task_of(task);

	if (entry && entry->removed != 0)
		return -EPERM;
	return 0;
}

/* With bpf(2) the maps here could be changed. */
SEC("lsm/bpf")
int bpf(__u64 *ctx)
{
	if (own_context() != 0)
		return -EPERM;
	return 0;
}

/* What is pinned goes with its last name: the programs themselves do. Nor does a control group of the host's go. */
VS_INLINE int kept_in(struct inode *dir)
{
	if (dir->i_sb->s_magic == BPF_FS_MAGIC && own_context() != 0)
		return -EPERM;
	return is_of_groups(dir) && is_barred() ? -EPERM : 0;
}

SEC("lsm/inode_unlink")
int inode_unlink(__u64 *ctx)
{
	return kept_in((struct inode *)ctx[0]);
}

SEC("lsm/inode_rmdir")
int inode_rmdir(__u64 *ctx)
{
	return kept_in((struct inode *)ctx[0]);
}

SEC("lsm/inode_rename")
int inode_rename(__u64 *ctx)
{
	return kept_in((struct inode *)ctx[0]);
}

/* ---- the root -------------------------------------------------------------------------------- */

/* Mounts that may lie between a root and the first of its namespace. */
#define MOUNTS_BELOW 16

VS_INLINE __u64 pointer_at(__u64 address)
{
	__u64 value = 0;

	vs_probe_read_kernel(&value, sizeof(value), (void *)address);
	return value;
}

/* The root of the host's process 1. */
VS_INLINE __u64 host_root(struct task_struct *task)
{
	struct task_struct___more *more = (void *)task;
	struct pid_namespace *space = more->nsproxy->pid_ns_for_children;
	struct task_struct___more *init;

	for (int i = 0; i < LEVELS; i++) {
		if (!space->parent)
			break;
		space = space->parent;
	}
	init = (void *)space->child_reaper;
	return (__u64)init->fs->root.dentry;
}

/*
 * Whether nothing of the host's is above the root of a task: nothing at all is, or the mount namespace that it
 * is in has another root than the host.
 */
VS_INLINE int is_held(struct task_struct *task)
{
	struct task_struct___more *more = (void *)task;
	struct mount *none = NULL;
	__u64 dentry = (__u64)more->fs->root.dentry;
	__u64 at = (__u64)more->fs->root.mnt - vs_offset(none->mnt);
	__u64 root_of_namespace = 0;
	int is_top = 1;

	for (int i = 0; i < MOUNTS_BELOW; i++) {
		__u64 parent = pointer_at(at + vs_offset(none->mnt_parent));
		__u64 root = pointer_at(at + vs_offset(none->mnt.mnt_root));

		if (dentry != root)
			is_top = 0;
		if (parent == at)
			return is_top || (root_of_namespace && root_of_namespace != host_root(task));
		root_of_namespace = root;
		dentry = pointer_at(at + vs_offset(none->mnt_mountpoint));
		at = parent;
	}
	return 0;
}

/*
 * Who moves its root down keeps what it has open, and its working directory, above it, and climbs from there past
 * the old root, which holds nobody any more. So a guest moves its root only where that leads nowhere. Elsewhere its
 * root is just another directory of the host, and the climb would end in the host's.
 */
SEC("lsm/path_chroot")
int path_chroot(__u64 *ctx)
{
	if (own_context() != 0 && !is_held(vs_current()))
		return -EPERM;
	return 0;
}

/* Where helpers may not read the kernel's memory, nobody knows. */
SEC("lsm/path_chroot")
int path_chroot__blind(__u64 *ctx)
{
	if (own_context() != 0)
		return -EPERM;
	return 0;
}

/* ---- signals from files ---------------------------------------------------------------------- */

/*
 * In a guest a process names itself, and nobody else: not even in its own context, for what names a process by an
 * address can change after it was looked at, and to know it by its number would take a kfunc. So files need no
 * notes of who named whom that would have to be cleared away at every close. What context 0 names is noted where
 * it may be somebody else, and gets signals in context 0 only. A note that outlasts its file is cleared as
 * soon as another file has its address and an owner.
 */
VS_INLINE int direct(struct file *file, int is_self)
{
	__u64 key = (__u64)file;
	__u32 one = 1;

	if (is_self) {
		vs_map_delete(&directed, &key);
		return 0;
	}
	if (own_context() != 0)
		return -EPERM;
	if (vs_map_update(&directed, &key, &one, VS_ANY) != 0)
		return -ENOMEM;
	return 0;
}

/* The caller becomes the owner, if there is none yet. */
VS_INLINE int become_owner(struct file *file)
{
	struct file___before_6_12 *before = (void *)file;
	struct file___from_6_12 *from = (void *)file;
	struct fown_struct *owner = NULL;
	__u64 key = (__u64)file;

	if (vs_field_exists(owner->file)) {
		owner = from->f_owner;
		if (owner && owner->pid)
			return 0;
	} else if (before->f_owner.pid) {
		return 0;
	}
	vs_map_delete(&directed, &key);
	return 0;
}

/* The number of the caller's process in its own PID namespace. */
VS_INLINE int own_number(void)
{
	struct task_struct___more *more = (void *)vs_current();
	struct pid *pid = more->signal->pids[PIDTYPE_TGID];
	struct pid *none = NULL;
	__u64 at;
	int number = 0;

	if (!pid || pid->level >= LEVELS)
		return 0;
	at = (__u64)pid + vs_offset(none->numbers[0].nr) + pid->level * SIZE_OF_UPID;
	vs_probe_read_kernel(&number, sizeof(number), (void *)at);
	return number;
}

VS_INLINE int any_fcntl(__u64 *ctx, int self)
{
	struct file *file = (void *)ctx[0];
	__u32 command = ctx[1];
	__s32 owner = ctx[2];

	if (command == F_SETOWN)
		return direct(file, owner == 0 || owner == self);
	if (command == F_SETOWN_EX)
		return direct(file, 0);
	if (command == F_SETLEASE || command == F_NOTIFY || (command == F_SETFL && owner & FASYNC))
		return become_owner(file);
	return 0;
}

SEC("lsm/file_fcntl")
int file_fcntl(__u64 *ctx)
{
	if ((__u32)ctx[1] == F_SETOWN)
		return any_fcntl(ctx, own_number());
	return any_fcntl(ctx, 0);
}

/* Where helpers may not read the kernel's memory, guests name nobody. */
SEC("lsm/file_fcntl")
int file_fcntl__blind(__u64 *ctx)
{
	return any_fcntl(ctx, 0);
}

VS_INLINE int any_ioctl(__u64 file, __u32 command)
{
	if (command == FIOSETOWN || command == SIOCSPGRP)
		return direct((void *)file, 0);
	if (command == FIOASYNC)
		return become_owner((void *)file);
	return 0;
}

SEC("lsm/file_ioctl")
int file_ioctl(__u64 *ctx)
{
	return any_ioctl(ctx[0], ctx[1]);
}

SEC("lsm/file_ioctl_compat")
int file_ioctl_compat(__u64 *ctx)
{
	return any_ioctl(ctx[0], ctx[1]);
}

SEC("lsm/file_send_sigiotask")
int file_send_sigiotask(__u64 *ctx)
{
	struct task_struct *task = (void *)ctx[0];
	struct fown_struct *owner = (void *)ctx[1];
	struct file___before_6_12 *none = NULL;
	__u64 key;

	if (vs_field_exists(owner->file))
		key = (__u64)owner->file;
	else
		key = (__u64)owner - vs_offset(none->f_owner);
	if (vs_map_lookup(&directed, &key) && context_of(task) != 0)
		return -EPERM;
	return 0;
}

/* ---- System V IPC ---------------------------------------------------------------------------- */

/* Whoever it is that ends it: the last of its users, or of its namespace, or the kernel a moment later. */
VS_INLINE int free_ipc(__u64 object)
{
	struct vs_ipc *note = vs_map_lookup(&ipc, &object);
	__u32 account, *count;

	if (!note)
		return 0;
	account = note->account;
	if (vs_map_delete(&ipc, &object) != 0)
		return 0;
	count = vs_map_lookup(&ipc_counts, &account);
	if (count)
		__sync_fetch_and_add(count, -1);
	return 0;
}

/* Not noted would be context 0's, so no room is no object. */
VS_INLINE int make_ipc(__u64 object)
{
	struct vs_task *entry = vs_task_of(vs_current());
	struct vs_ipc note;
	__u32 *count;

	/* By the programs that a reload is about to replace, or of an object that was here before. */
	free_ipc(object);
	if (!entry || entry->context == 0)
		return 0;
	note.context = entry->context;
	note.account = entry->account % ACCOUNTS;
	count = vs_map_lookup(&ipc_counts, &note.account);
	if (!count)
		return -ENOMEM;
	if (__sync_fetch_and_add(count, 1) >= IPC_SHARE) {
		__sync_fetch_and_add(count, -1);
		return -ENOSPC;
	}
	if (vs_map_update(&ipc, &object, &note, VS_NOEXIST) != 0) {
		__sync_fetch_and_add(count, -1);
		return -ENOMEM;
	}
	return 0;
}

VS_INLINE int use_ipc(__u64 object)
{
	struct vs_ipc *note = vs_map_lookup(&ipc, &object);

	if ((note ? note->context : 0) != own_context())
		return -EACCES;
	return 0;
}

SEC("lsm/shm_alloc_security")
int shm_alloc_security(__u64 *ctx)
{
	return make_ipc(ctx[0]);
}

SEC("lsm/sem_alloc_security")
int sem_alloc_security(__u64 *ctx)
{
	return make_ipc(ctx[0]);
}

SEC("lsm/msg_queue_alloc_security")
int msg_queue_alloc_security(__u64 *ctx)
{
	return make_ipc(ctx[0]);
}

SEC("lsm/shm_free_security")
int shm_free_security(__u64 *ctx)
{
	return free_ipc(ctx[0]);
}

SEC("lsm/sem_free_security")
int sem_free_security(__u64 *ctx)
{
	return free_ipc(ctx[0]);
}

SEC("lsm/msg_queue_free_security")
int msg_queue_free_security(__u64 *ctx)
{
	return free_ipc(ctx[0]);
}

/* By key or by number, to read or to write. */
SEC("lsm/ipc_permission")
int ipc_permission(__u64 *ctx)
{
	return use_ipc(ctx[0]);
}

/* To remove and to change; there is no object where it is about all of them. */
SEC("lsm/shm_shmctl")
int shm_shmctl(__u64 *ctx)
{
	if ((__u32)ctx[1] == IPC_INFO || (__u32)ctx[1] == SHM_INFO)
		return 0;
	return use_ipc(ctx[0]);
}

SEC("lsm/sem_semctl")
int sem_semctl(__u64 *ctx)
{
	if ((__u32)ctx[1] == IPC_INFO || (__u32)ctx[1] == SEM_INFO)
		return 0;
	return use_ipc(ctx[0]);
}

SEC("lsm/msg_queue_msgctl")
int msg_queue_msgctl(__u64 *ctx)
{
	if ((__u32)ctx[1] == IPC_INFO || (__u32)ctx[1] == MSG_INFO)
		return 0;
	return use_ipc(ctx[0]);
}
