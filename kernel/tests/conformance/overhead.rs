//! What the programs cost: instructions of common calls with them and without.
//!
//! The machine's clock counts instructions, so that the figures depend on kernel and programs alone and
//! not on the machine that the suite runs on.

use std::fmt::Write as _;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, IntoRawFd};
use std::path::Path;
use std::time::Instant;

use fixtures::vm::Vm;
use kernel::bpf::{Object, objects};
use kernel::{Protection, Seal};

use crate::agent;
use crate::raw;

/// What `open` may cost more with programs loaded, as a ratio.
const LIMIT: f64 = 1.03;
/// Many and short, so that some are not disturbed by anything else that the kernel does.
const ROUNDS: usize = 20;

/// What is measured, and how often a round does it.
const CALLS: &[(&str, usize, fn())] = &[
    ("open and close for reading", 100, || open_and_close(FILE, libc::O_RDONLY)),
    ("the same of a sealed file", 100, || open_and_close(SEALED, libc::O_RDONLY)),
    ("open and close for writing", 100, || open_and_close(FILE, libc::O_RDWR)),
    ("stat", 100, || {
        std::fs::metadata(FILE).expect("stat");
    }),
    ("read of 4 KiB", 100, || {
        let mut page = [0u8; 4096];
        READER.with(|file| {
            raw::call(libc::SYS_pread64, &[raw::num(file), raw::into(&mut page), page.len(), 0])
                .expect("read")
        });
    }),
    ("fork and exit", 10, || {
        raw::wait(raw::fork(|| 0));
    }),
    ("kill of itself with signal 0", 100, || {
        raw::call(libc::SYS_kill, &[std::process::id() as usize, 0]).expect("kill");
    }),
    ("connect, UDP", 100, || {
        let kinds = [libc::AF_INET as usize, libc::SOCK_DGRAM as usize, 0];
        let socket = raw::call(libc::SYS_socket, &kinds).map(raw::owned).expect("socket");
        // `struct sockaddr_in`: family, port 9, 127.0.0.1
        let address = crate::bytes![libc::AF_INET as u16, 9u16.to_be(), 0x0100_007F_u32, 0u64];
        raw::call(libc::SYS_connect, &[raw::num(&socket), raw::at(&address[..]), address.len()])
            .expect("connect");
    }),
    ("connect, TCP", 10, || {
        LISTENER.with(|(listener, port)| {
            let here = TcpStream::connect(("127.0.0.1", *port)).expect("connect");
            let (there, _) = listener.accept().expect("accept");
            assert!(here.as_raw_fd() != there.as_raw_fd());
        });
    }),
];

const FILE: &str = "/run/conformance/ext4/plain";
const SEALED: &str = "/run/conformance/ext4/sealed";

/// These two calls and no other: dropping a descriptor asks first whether it is open, in a build for tests.
fn open_and_close(path: &str, flags: i32) {
    let fd = raw::open(path, flags).expect("open").into_raw_fd();
    raw::call(libc::SYS_close, &[fd as usize]).expect("close");
}

thread_local! {
    static READER: std::fs::File = std::fs::File::open(FILE).expect("open");
    static LISTENER: (TcpListener, u16) = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let port = listener.local_addr().expect("address").port();
        (listener, port)
    };
}

/// The least that a call took in any round, in instructions. Each round makes all calls: what disturbs one for a
/// while does not disturb all of its rounds.
fn measure() -> Vec<u128> {
    let time = |&(_, times, call): &(&str, usize, fn())| {
        let start = Instant::now();
        (0..times).for_each(|_| call());
        start.elapsed().as_nanos() / times as u128
    };
    let mut least = vec![u128::MAX; CALLS.len()];
    for _ in 0..ROUNDS {
        least.iter_mut().zip(CALLS).for_each(|(least, call)| *least = time(call).min(*least));
    }
    least
}

/// Runs in the machine and prints `call<TAB>without<TAB>with link-invert<TAB>with all`. With one more word nothing is
/// loaded, and the figures are the same.
#[allow(clippy::print_stdout)] // its output is its result
pub(crate) fn agent() -> Result<(), String> {
    agent::prepare()?;
    for path in [FILE, SEALED] {
        std::fs::write(path, [0; 4096]).map_err(|error| error.to_string())?;
        // What waits to be written makes a close cheaper, until it has been.
        std::fs::File::open(path).and_then(|file| file.sync_all()).map_err(|error| error.to_string())?;
    }
    let off = measure();
    if std::env::args().nth(2).is_some() {
        CALLS.iter().zip(off).for_each(|((name, ..), off)| println!("{name}\t{off}\t{off}\t{off}"));
        return Ok(());
    }
    load(&[&objects::LINK_INVERT])?;
    let sealed = kernel::File::from(raw::open(SEALED, libc::O_RDONLY).map_err(crate::case::spell)?);
    kernel::Real.seal(&sealed, Seal::Bpf).map_err(crate::case::spell)?;
    let on = measure();
    load(objects::ALL)?;
    let all = measure();
    for ((((name, _, _), off), on), all) in CALLS.iter().zip(off).zip(on).zip(all) {
        println!("{name}\t{off}\t{on}\t{all}");
    }
    Ok(())
}

/// In a child: what loading leaves in memory would make every later fork dearer.
fn load(wanted: &[&'static Object]) -> Result<(), String> {
    match raw::in_child(120, || agent::load_programs(wanted).err().unwrap_or_default()) {
        raw::Ended::Said(fault) if fault.is_empty() => Ok(()),
        ended => Err(format!("loading: {ended:?}")),
    }
}

/// A measured call.
#[derive(Clone, Debug)]
pub(crate) struct Cost {
    kernel: String,
    call: String,
    off: f64,
    /// With link-invert.
    on: f64,
    /// With contexts and IPv4 roots besides.
    all: f64,
}

impl Cost {
    /// Takes the least of two measurements, as [`measure`] does of its rounds.
    pub(crate) fn lower(&mut self, other: &Self) {
        self.off = self.off.min(other.off);
        self.on = self.on.min(other.on);
        self.all = self.all.min(other.all);
    }
}

/// Boots the machine, whose clock must count instructions, and measures; `bare` of the kernel alone.
pub(crate) fn costs(vm: &Vm, share: &Path, kernel: &str, bare: bool) -> Result<Vec<Cost>, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let job = format!("exec {} overhead {}", program.display(), if bare { "bare" } else { "" });
    let done = vm.run(share, &job).map_err(|error| error.to_string())?;
    let parse = |line: &str| {
        let mut fields = line.split('\t');
        let call = fields.next()?.to_owned();
        let mut number = || fields.next()?.parse().ok();
        Some(Cost { kernel: kernel.to_owned(), call, off: number()?, on: number()?, all: number()? })
    };
    let costs: Vec<_> = done.output.lines().filter_map(parse).collect();
    if done.status == 0 && costs.len() == CALLS.len() {
        return Ok(costs);
    }
    Err(format!("{kernel}: measuring ended with {}:\n{}\n{}", done.status, done.output, done.console))
}

/// What a patched kernel costs on which nothing of the patch is used, beside one without the option.
pub(crate) fn render_unused(off: &[Cost], on: &[Cost]) -> String {
    let mut text =
        "| call | without the option | with it, unused | ratio |\n|---|---:|---:|---:|\n".to_owned();
    for (off, on) in off.iter().zip(on) {
        writeln!(text, "| {} | {} | {} | {:.3} |", off.call, off.off, on.off, on.off / off.off).ok();
    }
    text
}

/// The heading of the section that `render` makes.
pub(crate) const HEADING: &str = "## overhead";

/// The section of the file.
pub(crate) fn render(costs: &[Cost]) -> String {
    let mut text = format!(
        "{HEADING}\n\nInstructions of a call on ext4 without the programs, with link-invert, and with contexts and IPv4\n\
         roots besides; user and kernel together.\n\n\
         | kernel | call | without | link-invert | ratio | all | ratio |\n|---|---|---:|---:|---:|---:|---:|\n"
    );
    for Cost { kernel, call, off, on, all } in costs {
        let (ratio, both) = (on / off, all / off);
        writeln!(text, "| {kernel} | {call} | {off} | {on} | {ratio:.3} | {all} | {both:.3} |").ok();
    }
    text
}

/// Opens that programs make dearer than they may.
pub(crate) fn too_dear(costs: &[Cost]) -> Vec<String> {
    let is_open = |cost: &&Cost| cost.call.contains("open") || cost.call.contains("sealed");
    let dear = costs.iter().filter(is_open).filter(|cost| cost.on.max(cost.all) / cost.off > LIMIT);
    dear.map(|cost| format!("{cost:?}: more than {LIMIT}")).collect()
}
