/* SPDX-License-Identifier: GPL-2.0-only OR MIT OR Apache-2.0 */
/*
 * What programs here and their callers in user space agree on. Mirrored by kernel/src/bpf/abi.rs; a test there
 * reads this file and compares.
 *
 * Calls. An LSM hook can refuse a call but not complete it, so a call that our programs answer comes back as an
 * error whose number is VS_ANSWER plus 11 bits of payload: far above any errno of Linux, and below the 4095
 * that the kernel takes for an error. Any other errno means what it always does; EINVAL from prctl and ENOTTY
 * from ioctl mean that no program of ours is loaded.
 *
 *   prctl(VS_PRCTL, VS_PRCTL_VERSION, feature, 0, 0)  answers VS_ABI, if that feature is loaded
 *   prctl(VS_PRCTL, VS_PRCTL_ENTER, context, removed capabilities, flags)
 *       context: VS_CTX_FRESH, VS_CTX_KEEP or a number; answers 0.
 *       EPERM: locked, or a number asked for by somebody who may not; EBUSY: the caller has several threads.
 *       A 64-bit set of capabilities is one argument; 32-bit callers are refused with EINVAL.
 *   prctl(VS_PRCTL, VS_PRCTL_GET, field, part, 0)     answers bits 11 * part and up of the caller's own field
 *
 *   ioctl(any file, VS_IOC_SCOPE_ASK)     answers VS_ABI << 1 | whether its file system is in link-invert's scope
 *   ioctl(any file, VS_IOC_SCOPE_ADD)     puts its file system into the scope; answers 0. EPERM: only context
 *                                         0 with CAP_LINUX_IMMUTABLE; EOPNOTSUPP: the file system has no UUID
 *   ioctl(any file, VS_IOC_SCOPE_REMOVE)  takes it out again; answers 0
 *
 *   setsockopt(any IPv4 socket, VS_SOL, VS_SO_SET_ROOT, struct vs_root)  gives the calling thread its addresses,
 *       once; EPERM: it has some; EBUSY: the caller has several threads; EINVAL: none or too many, or 0.0.0.0
 *       or 255.255.255.255 among them; ENOMEM: the table of tasks is full. These hooks can complete a call, so
 *       success is 0. 32-bit callers are not heard.
 *   getsockopt(any IPv4 socket, VS_SOL, VS_SO_GET_ROOT, struct vs_root)  the caller's own; count 0 for none.
 *   getsockopt(any IPv4 socket, VS_SOL, VS_SO_GET_ABI, unsigned int)     answers VS_ABI
 *   ENOPROTOOPT from either: not loaded.
 */
#ifndef VSERVER_ABI_H
#define VSERVER_ABI_H

#define VS_ABI 1
#define VS_ANSWER 1024
#define VS_ANSWER_BITS 11

#define VS_PRCTL 0x56535831
#define VS_PRCTL_VERSION 0
#define VS_PRCTL_ENTER 1
#define VS_PRCTL_GET 2

/* Features, for VS_PRCTL_VERSION. */
#define VS_LINK_INVERT 1
#define VS_CONTEXTS 2

/* Fields, for VS_PRCTL_GET; 32 bits each but for the last. */
#define VS_GET_CONTEXT 0
#define VS_GET_FLAGS 1
#define VS_GET_INIT_PID 2
#define VS_GET_REMOVED 3

#define VS_CTX_FRESH (-1)
#define VS_CTX_KEEP (-2)

#define VS_FLAG_LOCK 1
#define VS_FLAG_SCHED 2
#define VS_FLAG_NPROC 4
#define VS_FLAG_PRIVATE 8
#define VS_FLAG_FAKEINIT 16

/* Of a type that no driver has, and a size that no structure has; there is no argument. */
#define VS_IOC_SCOPE_ASK 0x1653d600
#define VS_IOC_SCOPE_ADD 0x1653d601
#define VS_IOC_SCOPE_REMOVE 0x1653d602

#define VS_SOL 0x5653
#define VS_SO_SET_ROOT 1
#define VS_SO_GET_ROOT 2
#define VS_SO_GET_ABI 3
#define VS_ROOT_MAX 16

/* Addresses are big-endian, as everywhere on the wire. */
struct vs_root {
	unsigned int count;
	unsigned int broadcast;
	unsigned int address[VS_ROOT_MAX];
};

#endif
