//! What root of a guest can't do to the host and to other guests, and what it can at home.

use kernel::Errno;

use crate::bytes;
use crate::case::{Ready, Res, Stop};
use crate::raw::{self, HERE, at, call, num, text};
use crate::stage::ContextLaw;

/// The patch says that there is no such process; where hooks can only refuse, they refuse.
const HIDDEN: &[Errno] = &[Errno::SRCH, Errno::PERM];
const UNSEEN: &[Errno] = &[Errno::NOENT, Errno::SRCH];
const BARRED: &[Errno] = &[Errno::ACCESS, Errno::PERM, Errno::INVAL, Errno::IDRM];
const UNABLE: &[Errno] = &[Errno::PERM, Errno::ACCESS];

pub(crate) const CONTEXTS: &[ContextLaw] = &[
    ContextLaw::denied("/proc/PID/status of the host", UNSEEN, |s| see(s.host, "status")),
    ContextLaw::denied("/proc/PID/status of another context", UNSEEN, |s| see(s.other, "status")),
    ContextLaw::denied("/proc/PID/cmdline", UNSEEN, |s| see(s.host, "cmdline")),
    ContextLaw::denied("/proc/PID/maps", UNSEEN, |s| see(s.host, "maps")),
    ContextLaw::denied("/proc/PID/mem", UNSEEN, |s| see(s.host, "mem")),
    ContextLaw::denied("/proc/PID/root", UNSEEN, |s| see(s.host, "root/etc/hostname")),
    ContextLaw::denied("/proc/PID/ns/mnt", UNSEEN, |s| see(s.host, "ns/mnt")),
    ContextLaw::denied("/proc/PID/task/PID/status", UNSEEN, |s| {
        see(s.host, &format!("task/{}/status", s.host))
    }),
    ContextLaw::denied("stat of /proc/PID", UNSEEN, |s| {
        Ok(std::fs::metadata(format!("/proc/{}", s.host)).map(drop)?)
    }),
    ContextLaw::denied("names in /proc", UNSEEN, |s| {
        let names = std::fs::read_dir("/proc").ready()?.flatten();
        let foreign = [s.host.to_string(), s.other.to_string()];
        let seen = names.filter(|name| foreign.iter().any(|pid| *pid.as_str() == name.file_name())).count();
        if seen == 0 { Err(Errno::NOENT.into()) } else { Ok(()) }
    }),
    ContextLaw::denied("kill with signal 0", HIDDEN, |s| kill(s.host(), 0)),
    ContextLaw::denied("kill of the host's", HIDDEN, |s| kill(s.host(), libc::SIGKILL)),
    ContextLaw::denied("kill of another context's", HIDDEN, |s| kill(s.other(), libc::SIGKILL)),
    ContextLaw::denied("kill of a process group", HIDDEN, |s| kill(s.host().wrapping_neg(), libc::SIGKILL)),
    ContextLaw::denied(crate::stage::KILL_ALL, HIDDEN, |_| {
        // It says yes, too, where each process was refused; that nobody was ended is looked at afterwards.
        kill(usize::MAX, libc::SIGKILL).ok();
        Err(Errno::PERM.into())
    }),
    ContextLaw::denied("tkill", HIDDEN, |s| done(libc::SYS_tkill, &[s.host(), 9])),
    ContextLaw::denied("tgkill", HIDDEN, |s| done(libc::SYS_tgkill, &[s.host(), s.host(), 9])),
    ContextLaw::denied("rt_sigqueueinfo", HIDDEN, |s| {
        let info =
            bytes![9i32, 0i32, -1i32, 0u32, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64];
        done(libc::SYS_rt_sigqueueinfo, &[s.host(), 9, at(&info[..])])
    }),
    ContextLaw::denied("pidfd_open", HIDDEN, |s| done(libc::SYS_pidfd_open, &[s.host(), 0])),
    ContextLaw::denied("pidfd_send_signal with a descriptor from before", HIDDEN, |s| {
        done(libc::SYS_pidfd_send_signal, &[num(&s.pidfd), 9, 0, 0])
    }),
    ContextLaw::denied("pidfd_getfd with a descriptor from before", HIDDEN, |s| {
        done(libc::SYS_pidfd_getfd, &[num(&s.pidfd), 0, 0])
    }),
    ContextLaw::denied("setns with a descriptor from before", HIDDEN, |s| {
        done(libc::SYS_setns, &[num(&s.pidfd), libc::CLONE_NEWNET as usize])
    }),
    ContextLaw::denied("ptrace attach", HIDDEN, |s| {
        done(libc::SYS_ptrace, &[libc::PTRACE_ATTACH as usize, s.host(), 0, 0])
    }),
    ContextLaw::denied("ptrace seize", HIDDEN, |s| {
        done(libc::SYS_ptrace, &[libc::PTRACE_SEIZE as usize, s.other(), 0, 0])
    }),
    ContextLaw::denied("process_vm_readv", HIDDEN, |s| {
        let (mut buffer, here) = ([0u8; 8], 0u64);
        let (local, remote) = ([raw::into(&mut buffer), 8], [at(&here), 8]);
        done(libc::SYS_process_vm_readv, &[s.host(), at(&local), 1, at(&remote), 1, 0])
    }),
    ContextLaw::denied("process_vm_writev", HIDDEN, |s| {
        let (buffer, mut here) = ([0u8; 8], 0u64);
        let (local, remote) = ([at(&buffer), 8], [raw::into(&mut here), 8]);
        done(libc::SYS_process_vm_writev, &[s.host(), at(&local), 1, at(&remote), 1, 0])
    }),
    ContextLaw::denied("kcmp", HIDDEN, |s| done(libc::SYS_kcmp, &[s.host(), s.other(), 0, 0, 0])),
    ContextLaw::denied("getpgid", HIDDEN, |s| done(libc::SYS_getpgid, &[s.host()])),
    ContextLaw::denied("getsid", HIDDEN, |s| done(libc::SYS_getsid, &[s.host()])),
    ContextLaw::denied("getpriority", HIDDEN, |s| done(libc::SYS_getpriority, &[0, s.host()])),
    ContextLaw::denied("setpriority", HIDDEN, |s| done(libc::SYS_setpriority, &[0, s.host(), 5])),
    ContextLaw::denied("ioprio_get", HIDDEN, |s| done(libc::SYS_ioprio_get, &[1, s.host()])),
    ContextLaw::denied("ioprio_set", HIDDEN, |s| done(libc::SYS_ioprio_set, &[1, s.host(), 0x4007])),
    ContextLaw::denied("sched_getscheduler", HIDDEN, |s| done(libc::SYS_sched_getscheduler, &[s.host()])),
    ContextLaw::denied("sched_setscheduler", HIDDEN, |s| {
        done(libc::SYS_sched_setscheduler, &[s.host(), libc::SCHED_BATCH as usize, at(&0u32)])
    }),
    ContextLaw::denied("sched_setaffinity", HIDDEN, |s| {
        done(libc::SYS_sched_setaffinity, &[s.host(), 8, at(&1u64)])
    }),
    ContextLaw::denied("sched_getaffinity", HIDDEN, |s| {
        let mut mask = [0u64; 16];
        done(libc::SYS_sched_getaffinity, &[s.host(), 128, raw::into(&mut mask)])
    }),
    ContextLaw::denied("prlimit", HIDDEN, |s| {
        let mut limit = [0u64; 2];
        done(libc::SYS_prlimit64, &[s.host(), libc::RLIMIT_NOFILE as usize, 0, raw::into(&mut limit)])
    }),
    ContextLaw::denied("migrate_pages", HIDDEN, |s| {
        done(libc::SYS_migrate_pages, &[s.host(), 2, at(&1u64), at(&1u64)])
    }),
    ContextLaw::denied("move_pages", HIDDEN, |s| done(libc::SYS_move_pages, &[s.host(), 0, 0, 0, 0, 0])),
    ContextLaw::denied("shmat", BARRED, |s| done(libc::SYS_shmat, &[s.ipc[0], 0, 0])),
    ContextLaw::denied("shmctl(IPC_RMID)", BARRED, |s| done(libc::SYS_shmctl, &[s.ipc[0], 0, 0])),
    ContextLaw::denied("semctl(SETVAL)", BARRED, |s| done(libc::SYS_semctl, &[s.ipc[1], 0, 16, 1])),
    ContextLaw::denied("semctl(IPC_RMID)", BARRED, |s| done(libc::SYS_semctl, &[s.ipc[1], 0, 0, 0])),
    ContextLaw::denied("msgsnd", BARRED, |s| done(libc::SYS_msgsnd, &[s.ipc[2], at(&[1u64, 2]), 8, 0o4000])),
    ContextLaw::denied("msgctl(IPC_RMID)", BARRED, |s| done(libc::SYS_msgctl, &[s.ipc[2], 0, 0])),
    ContextLaw::allowed("a child of its own: seen, signalled and waited for", |_| {
        let child = raw::fork(|| {
            call(libc::SYS_pause, &[]).ok();
            0
        });
        std::fs::metadata(format!("/proc/{child}"))?;
        kill(child as usize, libc::SIGKILL)?;
        let status = raw::wait(child);
        if libc::WIFSIGNALED(status) { Ok(()) } else { Err(Stop::Wrong("not killed".into())) }
    }),
    ContextLaw::allowed("/proc/self and process 1 seen", |_| {
        std::fs::metadata("/proc/self/status")?;
        Ok(std::fs::metadata("/proc/1").map(drop)?)
    }),
    ContextLaw::allowed("System V objects of its own", |_| {
        let id = call(libc::SYS_shmget, &[0, 4096, 0o1600])?;
        done(libc::SYS_shmat, &[id, 0, 0])?;
        done(libc::SYS_shmctl, &[id, 0, 0])
    }),
];

pub(crate) const ATTACK: &[ContextLaw] = &[
    ContextLaw::denied("mount", UNABLE, |_| mount_here()),
    ContextLaw::denied("mount in namespaces of its own", UNABLE, |_| {
        super::open::user_namespace().or_else(refused_is_well)?;
        done(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize])?;
        mount_here()
    }),
    ContextLaw::denied("umount", UNABLE, |_| {
        let place = text("/proc");
        done(libc::SYS_umount2, &[at(place.as_bytes_with_nul()), libc::MNT_DETACH as usize])
    }),
    ContextLaw::denied("a device node", UNABLE, |_| {
        let path = text("/run/device");
        let made = call(libc::SYS_mknodat, &[HERE, at(path.as_bytes_with_nul()), 0o20_600, 0x101]);
        std::fs::remove_file("/run/device").ok();
        Ok(made.map(drop)?)
    }),
    ContextLaw::denied("bpf(BPF_MAP_CREATE)", UNABLE, |_| {
        let attributes = bytes![1u32, 4u32, 4u32, 1u32, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64, 0u64];
        done(libc::SYS_bpf, &[0, at(&attributes[..]), attributes.len()])
    }),
    ContextLaw::denied("perf_event_open", UNABLE, |_| {
        let attributes = bytes![1u32, 112u32, 0u64, 0u64, 0u64, 0u64, 0u64];
        let mut attributes = attributes;
        attributes.resize(112, 0);
        done(libc::SYS_perf_event_open, &[at(&attributes[..]), usize::MAX, 0, usize::MAX, 0])
    }),
    ContextLaw::denied("init_module", UNABLE, |_| {
        unable_unless(libc::SYS_init_module, &[0, 0, 0], Errno::NOEXEC)
    }),
    ContextLaw::denied("delete_module", UNABLE, |_| {
        let name = text("no_such_module");
        unable_unless(libc::SYS_delete_module, &[at(name.as_bytes_with_nul()), 0o4000], Errno::NOENT)
    }),
    ContextLaw::denied("kexec_load", UNABLE, |_| done(libc::SYS_kexec_load, &[0, 0, 0, 0])),
    ContextLaw::denied("swapon", UNABLE, |_| {
        let path = text("/bin/true");
        unable_unless(libc::SYS_swapon, &[at(path.as_bytes_with_nul()), 0], Errno::INVAL)
    }),
    ContextLaw::denied("clock_settime", UNABLE, |_| {
        let mut now = [0u64; 2];
        call(libc::SYS_clock_gettime, &[0, raw::into(&mut now)]).ready()?;
        done(libc::SYS_clock_settime, &[0, at(&now)])
    }),
    ContextLaw::denied("adjtimex", UNABLE, |_| {
        let mut request = vec![0u8; 208];
        request[0] = 2; // ADJ_FREQUENCY
        done(libc::SYS_adjtimex, &[raw::into(&mut request[..])])
    }),
    ContextLaw::denied("sethostname", UNABLE, |_| done(libc::SYS_sethostname, &[at(b"x"), 1])),
    ContextLaw::denied("the kernel's log cleared", UNABLE, |_| done(libc::SYS_syslog, &[5, 0, 0])),
    ContextLaw::denied("iopl", UNABLE, |_| done(libc::SYS_iopl, &[3])),
    ContextLaw::denied("/dev/mem", UNABLE, |_| {
        std::fs::metadata("/dev/mem").ready()?;
        Ok(raw::open("/dev/mem", libc::O_RDWR).map(drop)?)
    }),
    ContextLaw::denied("open_by_handle_at", UNABLE, |_| {
        let (mut handle, mut mount) = (vec![0u8; 136], [0u8; 4]);
        handle[0] = 128;
        let root = raw::open("/run/conformance/ext4", libc::O_RDONLY).ready()?;
        let found = text("/run/conformance/ext4");
        call(
            libc::SYS_name_to_handle_at,
            &[HERE, at(found.as_bytes_with_nul()), raw::into(&mut handle[..]), raw::into(&mut mount), 0],
        )
        .ready()?;
        done(libc::SYS_open_by_handle_at, &[num(&root), at(&handle[..]), 0])
    }),
    ContextLaw::denied("new mount namespace", UNABLE, |_| {
        done(libc::SYS_unshare, &[libc::CLONE_NEWNS as usize])
    }),
    ContextLaw::denied("pivot_root", UNABLE, |_| {
        let place = text("/run");
        let place = at(place.as_bytes_with_nul());
        unable_unless(libc::SYS_pivot_root, &[place, place], Errno::BUSY)
    }),
    ContextLaw::denied("acct", UNABLE, |_| done(libc::SYS_acct, &[0])),
    ContextLaw::denied("a hard limit raised", UNABLE, |_| {
        done(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, at(&[16u64, 16]), 0]).ready()?;
        done(libc::SYS_prlimit64, &[0, libc::RLIMIT_NOFILE as usize, at(&[16u64, 64]), 0])
    }),
    ContextLaw::denied("real-time scheduling", UNABLE, |_| {
        done(libc::SYS_sched_setscheduler, &[0, libc::SCHED_FIFO as usize, at(&1u32)])
    }),
    ContextLaw::denied("a negative nice value", UNABLE, |_| {
        done(libc::SYS_setpriority, &[0, 0, (-5i64) as usize])
    }),
    ContextLaw::denied("a network interface changed", UNABLE, |_| {
        let socket = call(libc::SYS_socket, &[libc::AF_INET as usize, libc::SOCK_DGRAM as usize, 0])
            .map(raw::owned)
            .ready()?;
        let mut request = vec![0u8; 40];
        request[..2].copy_from_slice(b"lo");
        request[16] = 1; // up
        Ok(raw::ioctl(&socket, libc::SIOCSIFFLAGS as u32, &mut request).map(drop)?)
    }),
    ContextLaw::denied("a raw packet socket", UNABLE, |_| {
        done(libc::SYS_socket, &[libc::AF_PACKET as usize, libc::SOCK_RAW as usize, 0])
    }),
    ContextLaw::denied("capabilities back by capset", UNABLE, |_| {
        let header = [0x2008_0522_u32, 0];
        let all = [u32::MAX, u32::MAX, 0, 0x1ff, 0x1ff, 0];
        done(libc::SYS_capset, &[at(&header), at(&all)])?;
        mount_here()
    }),
    ContextLaw::denied("capabilities back by executing as root", UNABLE, |_| {
        let done =
            std::process::Command::new("busybox").args(["mount", "-t", "tmpfs", "x", "/mnt"]).status()?;
        if done.success() { Ok(()) } else { Err(Errno::PERM.into()) }
    }),
    ContextLaw::denied("process 1's root", UNABLE, |_| Ok(std::fs::metadata("/proc/1/root/etc").map(drop)?)),
    ContextLaw::denied("kernel.core_pattern written", UNABLE, |_| {
        let path = "/proc/sys/kernel/core_pattern";
        let now = std::fs::read(path).ready()?;
        Ok(std::fs::write(path, now)?)
    }),
    ContextLaw::denied("sysrq by /proc", &[Errno::PERM, Errno::ACCESS, Errno::NOENT], |_| {
        Ok(raw::open("/proc/sysrq-trigger", libc::O_WRONLY).map(drop)?)
    }),
    ContextLaw::denied("a seal lifted with every capability a guest can have", UNABLE, |_| {
        // Sealed by the laws of files, which come before.
        let left =
            ["bpf", "patch", "none"].map(|who| raw::open(format!("/run/conformance/ext4/left-{who}"), 0));
        let file = left.into_iter().find_map(Result::ok).ok_or(Errno::NOENT).ready()?;
        let now = super::ioctls::flags(&file)?;
        Ok(raw::ioctl(&file, super::numbers::SETFLAGS, &mut bytes![u64::from(now & !0x98)]).map(drop)?)
    }),
];

fn see(pid: i32, what: &str) -> Res {
    Ok(raw::open(format!("/proc/{pid}/{what}"), libc::O_RDONLY).map(drop)?)
}

fn done(number: i64, arguments: &[usize]) -> Res {
    Ok(call(number, arguments).map(drop)?)
}

fn kill(pid: usize, signal: i32) -> Res {
    done(libc::SYS_kill, &[pid, signal as usize])
}

fn mount_here() -> Res {
    Ok(super::open::mount("tmpfs".as_ref(), "/mnt".as_ref(), "tmpfs", 0, "")?)
}

/// A call that may not be done even by those who are able: they get `able` as the answer.
fn unable_unless(number: i64, arguments: &[usize], able: Errno) -> Res {
    match call(number, arguments) {
        Err(errno) if errno == able || errno == Errno::FAULT => Ok(()),
        other => Ok(other.map(drop)?),
    }
}

/// That the way is barred already is as good.
fn refused_is_well(stop: Stop) -> Res {
    match stop {
        Stop::Setup(_) => Err(Errno::PERM.into()),
        other => Err(other),
    }
}
