/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What of /proc and of control groups a context may open, and what programs of several objects ask of tasks. Use
 * after VS_TASKS_MAP.
 */
#ifndef VSERVER_PROC_H
#define VSERVER_PROC_H

/* linux/magic.h, linux/fs.h, linux/pid.h */
#define PROC_SUPER_MAGIC 0x9fa0
#define CGROUP_SUPER_MAGIC 0x27e0eb
#define CGROUP2_SUPER_MAGIC 0x63677270
#define FMODE_WRITE 2
#define PIDTYPE_PID 0

#define CAP_BIT(capability) (1ull << (capability))
#define vs_offset(field) __builtin_preserve_field_info(field, 0)

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

struct hlist_node {
	struct hlist_node *next;
};

struct hlist_head {
	struct hlist_node *first;
};

struct upid {
	int nr;
};

struct pid {
	__u32 level;
	struct hlist_head tasks[4];
	struct upid numbers[1];
};

struct task_struct___linked {
	struct hlist_node pid_links[4];
};

struct proc_inode {
	struct pid *pid;
	struct inode vfs_inode;
};

#pragma clang attribute pop

VS_INLINE __u32 context_of(struct task_struct *task)
{
	struct vs_task *entry = vs_task_of(task);

	return entry ? entry->context : 0;
}

VS_INLINE __u32 own_context(void)
{
	struct task_struct *task = vs_current();

	return context_of(task);
}

VS_INLINE int is_host_init(struct task_struct *task)
{
	return task->tgid == 1;
}

/*
 * What stands around an inode of procfs can't be reached by following pointers. A process that is gone hides
 * nothing: procfs itself then has nothing to tell.
 */
VS_INLINE struct pid *pid_of(struct inode *inode)
{
	struct proc_inode *none = NULL;
	__u64 around = (__u64)inode - vs_offset(none->vfs_inode);
	struct pid *pid = NULL;

	vs_probe_read_kernel(&pid, sizeof(pid), (void *)(around + vs_offset(none->pid)));
	return pid;
}

/* 0 for the caller's own; -EPERM for what is there to be looked at, as process 1; -ENOENT for what is not there. */
VS_INLINE int reach_of(struct pid *pid)
{
	struct task_struct *task = vs_current();
	struct task_struct___linked *linked = NULL;
	struct pid *none = NULL;
	__u32 own = context_of(task);
	struct vs_task *entry;
	__u64 first = 0;
	int number = 0;

	if (is_host_init(task))
		return 0;
	vs_probe_read_kernel(&first, sizeof(first), (void *)((__u64)pid + vs_offset(none->tasks[PIDTYPE_PID])));
	if (!first)
		return 0;
	entry = vs_task_of(first - vs_offset(linked->pid_links[PIDTYPE_PID]));
	if ((entry ? entry->context : 0) == own)
		return 0;
	if (own != 1) {
		vs_probe_read_kernel(&number, sizeof(number),
				     (void *)((__u64)pid + vs_offset(none->numbers[0].nr)));
		if (number != 1)
			return -ENOENT;
	}
	return -EPERM;
}

VS_INLINE int is_hidden(struct pid *pid)
{
	return reach_of(pid) == -ENOENT;
}

/* The host's own settings, its power switch and the like: for those under whose ceiling it could be mounted. */
VS_INLINE int is_barred(void)
{
	struct task_struct *task = vs_current();
	struct vs_task *entry = vs_task_of(task);

	return entry && entry->removed & CAP_BIT(CAP_SYS_ADMIN);
}

/* A process of elsewhere is not there; settings are not to be written. */
VS_INLINE int open_of_proc(struct file *file)
{
	struct inode *inode = file->f_inode;
	struct pid *pid;

	if (inode->i_sb->s_magic != PROC_SUPER_MAGIC)
		return 0;
	pid = pid_of(inode);
	if (pid) {
		int reach = reach_of(pid);

		return reach == -EPERM && !(file->f_mode & FMODE_WRITE) ? 0 : reach;
	}
	if (file->f_mode & FMODE_WRITE && is_barred())
		return -EPERM;
	return 0;
}

VS_INLINE int is_of_groups(struct inode *inode)
{
	unsigned long magic = inode->i_sb->s_magic;

	return magic == CGROUP2_SUPER_MAGIC || magic == CGROUP_SUPER_MAGIC;
}

/*
 * Control groups are the host's own, too. Who may not mount them may still find them mounted, and as root it could
 * write itself into another one, or its own another weight.
 */
VS_INLINE int writes_to_groups(struct file *file)
{
	return file->f_mode & FMODE_WRITE && is_of_groups(file->f_inode) && is_barred();
}

#endif
