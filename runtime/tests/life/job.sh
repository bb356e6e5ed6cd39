# The life of the eBPF provider, in a machine of its own. Each step prints `ok NAME` or `FAILED NAME: why`.
# Needs VKERNEL and WHAT (whole, no-lsm or lockdown).
pins=/sys/fs/bpf/vserver
place=/run/place

# expect NAME STATUS WORDS COMMAND...: its exit status, and words in what it says (none: -).
expect() {
    name=$1 status=$2 words=$3
    shift 3
    said=$("$@" 2>&1)
    got=$?
    if [ "$got" != "$status" ]; then
        echo "FAILED $name: status $got: $said"
    elif [ "$words" != - ] && ! printf '%s\n' "$said" | grep -qF -e "$words"; then
        echo "FAILED $name: no \`$words' in: $said"
    else
        echo "ok $name"
    fi
}

# 2: refused, and the content is what it was.
write() {
    sh -c "echo changed >>$place/file" && return 0
    [ "$(cat $place/file)" = content ] && return 2
}
sealed() { expect "$1" 2 "Operation not permitted" write; }
nothing_pinned() { ! [ -e $pins ]; }
vkernel() { "$VKERNEL" "$@"; }
as_nobody() { setpriv --reuid 65534 --regid 65534 --clear-groups "$VKERNEL" "$@"; }

modprobe loop
modprobe ext4
mkdir -p $place
truncate -s 64M /run/image
mkfs.ext4 -q /run/image
mount -o loop /run/image $place
echo content >$place/file
chattr +AS $place/file
export VSERVERS=$place

case $WHAT in
no-lsm)
    expect "asleep: told" 4 "not among the active" vkernel load link-invert
    expect "asleep: nothing left" 0 - nothing_pinned
    umount /sys/kernel/security
    expect "asleep: found out without the list" 4 "does not answer" vkernel load link-invert
    expect "asleep: nothing left again" 0 - nothing_pinned
    exit 0
    ;;
lockdown)
    expect "lockdown: loads" 0 "watches the file system" vkernel load link-invert
    sealed "lockdown: sealed"
    exit 0
    ;;
esac

expect "others may not load" 4 "run it as root" as_nobody load link-invert
expect "root of a namespace may not load" 4 "outside containers" unshare -Ur "$VKERNEL" load link-invert
expect "nothing is left of either" 0 - nothing_pinned
expect "a scope that can't be is refused" 4 "no UUID" vkernel load link-invert --scope /proc
expect "and nothing is left" 0 - nothing_pinned

expect "loads" 0 "link-invert: loaded" vkernel load link-invert
sealed "sealed"
expect "enforced, says root" 0 "link-invert enforced by bpf" vkernel status link-invert
expect "enforced, says anybody" 0 "link-invert enforced by bpf" as_nobody status link-invert
expect "loads once" 0 "already loaded" vkernel load link-invert
expect "scope is listed" 0 "$place is in the scope" vkernel scope list
umount $place
mount -o loop /run/image $place
sealed "sealed after a remount"

expect "another process is waited for" 5 "another process" flock $pins "$VKERNEL" reload link-invert

# While programs are exchanged, somebody tries all the time.
(for _ in $(seq 200); do write >/dev/null 2>&1; [ $? = 2 ] || echo "FAILED attack"; done; echo "ok attack") &
for _ in 1 2 3; do vkernel reload --quiet link-invert || echo "FAILED reload under attack"; done
wait
expect "reload keeps the scope" 0 "$place is in the scope" vkernel scope list

mv $pins/link_invert $pins/link_invert-new
expect "a cut-off load is told" 1 "was cut off" vkernel status link-invert
expect "a cut-off load is no protection" 1 "link-invert inactive" vkernel status link-invert
expect "a cut-off load is cleared" 0 "link-invert: loaded" vkernel load link-invert
sealed "sealed after a cut-off load"

rm $pins/link_invert/file_open
expect "a lost program is told" 1 "programs left" vkernel status link-invert
expect "a lost program is not loaded over" 4 "vkernel reload" vkernel load link-invert
expect "a lost program comes back" 0 "1 feature reloaded" vkernel reload link-invert
sealed "sealed after a lost program"

rm $pins/link_invert/version
ln -s "0 0123456789abcdef 12" $pins/link_invert/version
expect "an older version is told" 4 "another version" vkernel load link-invert
expect "an older version is no protection" 1 "link-invert inactive" vkernel status link-invert
expect "an older version is replaced" 0 "1 feature reloaded" vkernel reload
sealed "sealed after an upgrade"

mkdir -p $place/some/guests/.store/objects/ab
echo object >$place/some/guests/.store/objects/ab/object
chattr +AS $place/some/guests/.store/objects/ab/object
expect "a sealed store holds the programs" 1 "holds sealed objects" vkernel unload
expect "so it does where it is not configured" 1 "holds sealed objects" env VSERVERS=/nowhere "$VKERNEL" unload
expect "a sealed store holds the scope" 1 "holds sealed objects" vkernel scope remove $place
sealed "sealed all the same"
expect "unloads by force" 0 "link-invert: unloaded" vkernel unload --force
expect "nothing is left of it" 0 - nothing_pinned
expect "not loaded, so not unloaded" 1 "is not loaded" vkernel unload link-invert
expect "writable without programs" 0 - write

# A process elsewhere, looked at from a fresh context: prctl(VS_PRCTL, VS_PRCTL_ENTER, VS_CTX_FRESH, 0, 0).
sleep 1000 &
elsewhere=$!
from_a_context() { perl -e 'syscall(157, 0x56535831, 1, -1, 0, 0); exec "cat", "/proc/$ARGV[0]/status"' $elsewhere; }

expect "loads beside contexts" 0 "contexts: loaded" vkernel load link-invert contexts
expect "one program for opens" 1 - test -e $pins/contexts/file_open
expect "elsewhere is hidden" 1 "No such file" from_a_context
expect "link-invert goes alone" 0 "link-invert: unloaded" vkernel unload --force link-invert
expect "contexts have their own program then" 0 - test -e $pins/contexts/file_open
expect "elsewhere is hidden all the same" 1 "No such file" from_a_context
expect "link-invert comes back" 0 "link-invert: loaded" vkernel load link-invert
expect "one program for opens again" 1 - test -e $pins/contexts/file_open
expect "elsewhere is hidden again" 1 "No such file" from_a_context
rm $pins/link_invert/file_open
expect "contexts that are let down are told" 1 "link-invert's, is gone" vkernel status contexts
expect "and help themselves" 0 "1 feature reloaded" vkernel reload contexts
expect "by a program of their own" 0 "enforced by bpf" vkernel status contexts
expect "elsewhere is hidden even then" 1 "No such file" from_a_context
expect "link-invert is mended" 0 "1 feature reloaded" vkernel reload link-invert
perl -e '
    syscall(157, 0x56535831, 1, -1, 0, 0);
    open my $in, ">", "/run/in";
    while (!-e "/run/look") { select undef, undef, undef, 0.1 }
    exec "cat", "/proc/$ARGV[0]/status"' $elsewhere >/run/seen 2>&1 &
guest=$!
until [ -e /run/in ]; do sleep 0.1; done
expect "a running guest holds contexts" 1 "1 running tasks rely on contexts" vkernel unload contexts
expect "reloads under a running guest" 0 "2 features reloaded" vkernel reload
touch /run/look
wait $guest
expect "a guest stays in its context" 0 "No such file" cat /run/seen
expect "both go" 0 "2 features unloaded" vkernel unload --force
expect "nothing is left of both" 0 - nothing_pinned
expect "elsewhere shows without programs" 0 "State:" from_a_context
kill $elsewhere

# A table of tasks for 256 of them, and room for more processes than that.
limit=/proc/sys/kernel/threads-max
before=$(cat $limit)
echo 256 >$limit
expect "a small table" 0 "contexts: loaded" vkernel load contexts
echo "$before" >$limit
crowd() {
    perl -e '
        pipe(my $told, my $tell);
        my $host = fork;
        if (!$host) { close $tell; <$told>; my $child = fork; exit(defined $child ? 0 : 1) }
        syscall(157, 0x56535831, 1, -1, 0, 0);
        my @children;
        while (@children < 1000) {
            my $child = fork;
            last unless defined $child;
            if (!$child) { close $tell; sleep 1000; exit }
            push @children, $child;
        }
        my $refused = $!{EAGAIN} ? 1 : 0;
        print $tell "now\n";
        close $tell;
        waitpid $host, 0;
        my $host_forks = $? == 0;
        kill 9, @children;
        1 while wait != -1;
        # The kernel forgets a task a little later than its parent.
        my $again;
        for (1 .. 100) { last if defined($again = fork); select undef, undef, undef, 0.1 }
        exit 0 if defined $again && !$again;
        print "refused $refused after ", scalar @children, ", host $host_forks, again ", defined $again, "\n";
        exit !($refused && @children > 100 && @children < 256 && $host_forks && defined $again);'
}
expect "a full table refuses forks, but not the host's" 0 "refused 1" crowd
expect "the small table goes" 0 "1 feature unloaded" vkernel unload --force contexts
