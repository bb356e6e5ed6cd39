//! fs-verity as the seal, on a kernel that has it and nothing better.
#![allow(clippy::disallowed_methods)] // the disk and the script are the test's own

use fixtures::vm::{Kernel, Vm};
use fixtures::{need, require_root};

/// Two guests that share two files and differ in one. Each line that fails ends the job with its number.
const JOB: &str = r#"
set -eu
fail() { echo "line $1: $2"; exit 1; }
is() { [ "$1" = "$2" ] || fail "$3" "'$1' is not '$2'"; }
mkfs.ext4 -q -O verity /dev/vda; mkdir /run/disk; mount /dev/vda /run/disk; cd /run/disk
for guest in g0 g1; do
    mkdir -p $guest/usr/bin $guest/etc
    seq 1 3000 >$guest/usr/bin/tool; seq 5 9000 >$guest/usr/bin/other; echo $guest >$guest/usr/bin/own
    touch -d @1000000000 $guest/usr/bin/*; chmod 755 $guest/usr/bin/*
done
sleep 0.1
$VUNIFY --json --store /run/disk/.store ./g0 ./g1 >/run/vm/first || fail 1 "vunify: $?"
grep -q '"seal":"verity"' /run/vm/first || fail 2 "another seal: $(tail -n 1 /run/vm/first)"
[ "$(stat -c %h g0/usr/bin/tool)" = 3 ] || fail 3 "not shared: $(cat /run/vm/first)"
is "$(stat -c %i g0/usr/bin/tool)" "$(stat -c %i g1/usr/bin/tool)" 4
(echo x >>g0/usr/bin/tool) 2>/dev/null && fail 5 "written"
truncate -s 0 g0/usr/bin/tool 2>/dev/null && fail 6 "truncated"
(: 1<>g0/usr/bin/other) 2>/dev/null && fail 7 "opened for writing"
echo x >>g0/usr/bin/own || fail 8 "what is private can't be written"
# Names are free: one guest replaces, the other keeps.
seq 1 7 >g0/usr/bin/new; mv g0/usr/bin/new g0/usr/bin/tool
is "$(seq 1 3000 | cksum)" "$(cksum <g1/usr/bin/tool)" 9
rm g1/usr/bin/other
is "$(seq 5 9000 | cksum)" "$(cksum <g0/usr/bin/other)" 10
$VUNIFY --quiet --store /run/disk/.store ./g0 ./g1 || fail 11 "again: $?"
$VUNIFY --quiet --store /run/disk/.store --undo ./g0 ./g1 || fail 12 "undo: $?"
echo more >>g0/usr/bin/other || fail 13 "still sealed"
echo more >>g1/usr/bin/tool || fail 14 "still sealed"
is "$( (seq 1 3000; echo more) | cksum)" "$(cksum <g1/usr/bin/tool)" 15
# A guest's own (FS_IOC_ENABLE_VERITY, SHA-256, blocks of 1024) is not spread, nor lost, where another seal is used.
for guest in h0 h1; do
    mkdir -p $guest/usr/bin $guest/etc; seq 3 8000 >$guest/usr/bin/signed; seq 1 9 >$guest/usr/bin/plain
done
how='my $how = pack "L4 Q L2 Q x88", 1, 1, 1024, 0, 0, 0, 0, 0; open F, "<", shift; ioctl F, 0x40806685, $how or die "fs-verity: $!"'
perl -e "$how" h0/usr/bin/signed || fail 18 "no fs-verity"
touch -d @1000000000 h?/usr/bin/*; sleep 0.1
$VUNIFY --quiet --noflags --store /run/disk/.other ./h0 ./h1 || fail 18 "another seal: $?"
is "$(stat -c %h h?/usr/bin/plain h?/usr/bin/signed | xargs)" "3 3 1 1" 19
$VUNIFY --store /run/disk/.other --explain ./h0/usr/bin/signed | grep -q fs-verity || fail 20 "not explained"
# A file system without the feature has nothing to offer.
mkfs.ext4 -q -O ^verity /dev/vdb; mkdir /run/plain; mount /dev/vdb /run/plain; cd /run/plain
mkdir -p g0/usr g0/etc g1/usr g1/etc
code=0; $VUNIFY --quiet --store /run/plain/.store ./g0 ./g1 2>/dev/null || code=$?
is "$code" 4 16
[ ! -e .store ] || fail 17 "a store was made"
"#;

#[test]
fn verity_protects_and_undo_copies() {
    need!("verity", require_root());
    let kernel = need!("verity", Kernel::stock("6.12"));
    let share = tempfile::tempdir().unwrap();
    let disk = |name: &str| {
        let disk = share.path().join(name);
        std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        disk
    };
    let vm = Vm { disks: vec![disk("verity"), disk("plain")], ..Vm::new(kernel) };
    let job = format!("VUNIFY={}\n{JOB}", env!("CARGO_BIN_EXE_vunify"));
    let done = vm.run(share.path(), &job).unwrap();
    assert_eq!(done.status, 0, "{}", done.output);
}
