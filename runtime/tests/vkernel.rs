//! `vkernel` on the machine that the tests run on, whatever that machine permits: what it refuses it refuses
//! wholly, with a reason, a cure and the documented status. That it enforces what it says is for the conformance
//! suite, which boots kernels for it.

#![allow(clippy::unwrap_used)] // a test's helpers fail with it

use std::process::{Command, Output};

use fixtures::skip::{Skip, require_root};

fn vkernel(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vkernel")).args(args).output().unwrap()
}

/// Runs a shell script as root of namespaces of its own, where it mounts what it likes.
fn sandboxed(script: &str) -> Output {
    let path = env!("CARGO_BIN_EXE_vkernel");
    Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-euc", script, path])
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn events(output: &Output) -> Vec<serde_json::Value> {
    text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Whether this kernel takes LSM programs from us: then nothing here is refused.
fn require_refusal() -> Result<(), Skip> {
    require_root()?;
    let status = vkernel(&["status", "--json", "link-invert"]);
    let first = &events(&status)[0];
    // A host on which somebody uses it must be left alone.
    if first["loaded"] == true { Err(Skip::kernel("link-invert is loaded on this host")) } else { Ok(()) }
}

#[test]
fn status_says_all_of_each_feature() {
    let output = vkernel(&["status", "--json"]);
    let events = events(&output);
    let missing = events.iter().any(|event| event["type"] == "feature" && event["verdict"] != "enforced");
    assert_eq!(output.status.code(), Some(i32::from(missing)), "{}", text(&output.stderr));
    let features: Vec<&str> = events.iter().filter_map(|event| event["feature"].as_str()).collect();
    assert_eq!(features, ["link-invert", "contexts", "ipv4root"]);
    for event in events.iter().filter(|event| event["type"] == "feature") {
        for field in ["enforces", "leaves_open", "cure"] {
            assert!(!event[field].as_str().unwrap().is_empty(), "{field}: {event}");
        }
        let word = event["verdict"].as_str().unwrap();
        assert_eq!(word == "enforced", event["provider"].is_string(), "{event}");
        assert_eq!(word == "enforced", event["why"] == "", "{event}");
    }
}

#[test]
fn a_wrong_command_line_is_told() {
    for args in [&["load", "link"][..], &["load", "--scope", "/nowhere/at/all"], &["scope", "add"], &["x"]] {
        let output = vkernel(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
    }
    let told = |args: &[&str]| text(&vkernel(args).stderr);
    for args in [&["load", "--scope", "/nowhere"][..], &["scope", "add", "/nowhere"]] {
        let told = told(args);
        assert!(told.starts_with("vkernel: /nowhere: there is no such directory: name one"), "{told}");
    }
    assert!(told(&["load", "link"]).contains("[possible values: link-invert, contexts, ipv4root]"));
    assert!(told(&["status", "--wait"]).contains("unexpected argument '--wait'"));
}

#[test]
fn others_than_root_are_refused() {
    const NAME: &str = "others_than_root_are_refused";
    fixtures::need!(NAME, require_root());
    let script = "exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$0\" load link-invert --scope /";
    let output = sandboxed(script);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("run it as root"), "{}", text(&output.stderr));
}

#[test]
fn without_a_bpf_file_system_the_cure_is_named() {
    const NAME: &str = "without_a_bpf_file_system_the_cure_is_named";
    fixtures::need!(NAME, require_root());
    let output = sandboxed("mount -t tmpfs none /sys/fs/bpf; exec \"$0\" load link-invert --scope /");
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("mount -t bpf bpf"), "{}", text(&output.stderr));
    let output = sandboxed("mount -t tmpfs none /sys/fs/bpf; exec \"$0\" unload");
    assert!(!text(&output.stderr).contains("vkernel load"), "{}", text(&output.stderr));
    for mount in ["tmpfs", "bpf"] {
        let output = sandboxed(&format!("mount -t {mount} none /sys/fs/bpf; exec \"$0\" scope list"));
        assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
        assert!(text(&output.stderr).contains("link-invert is not loaded"), "{}", text(&output.stderr));
    }
}

#[test]
fn without_types_the_cure_is_named() {
    const NAME: &str = "without_types_the_cure_is_named";
    fixtures::need!(NAME, require_root());
    let script = "mount -t tmpfs none /sys/kernel; exec \"$0\" load link-invert --scope /";
    let output = sandboxed(script);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("CONFIG_DEBUG_INFO_BTF"), "{}", text(&output.stderr));
}

#[test]
fn types_that_are_damaged_load_nothing() {
    const NAME: &str = "types_that_are_damaged_load_nothing";
    fixtures::need!(NAME, require_root());
    let script = "mount -t bpf none /sys/fs/bpf; mount -t tmpfs none /sys/kernel; mkdir /sys/kernel/btf
        head -c 4096 /dev/urandom > /sys/kernel/btf/vmlinux
        set +e; \"$0\" load link-invert --scope /; status=$?
        find /sys/fs/bpf -name 'vserver*' -o -name 'link*'; exit $status";
    let output = sandboxed(script);
    assert_eq!(output.status.code(), Some(4), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("is not understood"), "{}", text(&output.stderr));
    assert!(!text(&output.stdout).contains("/sys/fs/bpf"), "{}", text(&output.stdout));
}

/// Where the kernel refuses LSM programs, or never asks them, the refusal is told from all others, and nothing is
/// left: neither a pin nor a program.
#[test]
fn a_refused_load_leaves_nothing_behind() {
    const NAME: &str = "a_refused_load_leaves_nothing_behind";
    fixtures::need!(NAME, require_refusal());
    let script = "mount -t bpf none /sys/fs/bpf
        set +e; \"$0\" load link-invert --scope \"${TMPDIR:-/tmp}\"; status=$?
        [ $status != 0 ] || \"$0\" unload --force >&2
        find /sys/fs/bpf -name 'vserver*' -o -name 'link*'; exit $status";
    let output = sandboxed(script);
    let (out, errors) = (text(&output.stdout), text(&output.stderr));
    if output.status.code() == Some(0) {
        fixtures::skip!(NAME, "kernel: it loads LSM programs, so that nothing is refused");
    }
    assert_eq!(output.status.code(), Some(4), "{out}{errors}");
    let known = ["refuses programs of this type", "among the active security modules", "has no hook"];
    assert!(known.iter().any(|words| errors.contains(words)), "{errors}");
    assert!(!out.contains("/sys/fs/bpf"), "{out}");
}

/// What a load that was killed has left is told, and cleared away by the next one, whatever comes of that.
#[test]
fn what_a_killed_load_left_is_told_and_cleared() {
    const NAME: &str = "what_a_killed_load_left_is_told_and_cleared";
    fixtures::need!(NAME, require_refusal());
    let script = "mount -t bpf none /sys/fs/bpf
        mkdir -p /sys/fs/bpf/vserver/maps /sys/fs/bpf/vserver/link_invert-new
        \"$0\" status --json; set +e; \"$0\" load link-invert --scope \"${TMPDIR:-/tmp}\" >&2; \"$0\" unload --force >&2
        find /sys/fs/bpf -name 'vserver*' -o -name 'link*'; exit 0";
    let output = sandboxed(script);
    let out = text(&output.stdout);
    let warned = out.lines().filter(|line| line.starts_with('{') && line.contains("was cut off")).count();
    assert_eq!(warned, 1, "{out}{}", text(&output.stderr));
    assert!(!out.lines().any(|line| line.starts_with("/sys/fs/bpf")), "{out}{}", text(&output.stderr));
}

#[test]
fn reload_and_unload_of_nothing() {
    const NAME: &str = "reload_and_unload_of_nothing";
    fixtures::need!(NAME, require_refusal());
    for (command, code) in
        [("reload link-invert", 1), ("unload link-invert", 1), ("reload", 0), ("unload", 0)]
    {
        let script = format!("mount -t bpf none /sys/fs/bpf; exec \"$0\" {command}");
        let output = sandboxed(&script);
        assert_eq!(output.status.code(), Some(code), "{command}: {}", text(&output.stderr));
    }
}
