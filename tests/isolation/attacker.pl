# Played inside a clone, as root or as the web user: one attempt a line, and what the kernel says to it.
#
#   perl -e SCRIPT PID... -- PATH...     processes of the host, and files of it
#
# Perl is in every Debian, and has `syscall`. Prints `refused WHAT: ERRNO` for what was refused as expected, else
# `FAILED WHAT: ...`; `also` lines are for the reader.
use strict;
use warnings;
use Errno;
use Fcntl;
use POSIX ();

my ($n, @pids, @paths) = (0);
for (@ARGV) { if ($_ eq '--') { $n = 1 } elsif ($n) { push @paths, $_ } else { push @pids, $_ + 0 } }
my $root = $> == 0;
$| = 1;

# --- how an attempt is made ---
my %number = (
    mknod => 133, mount => 165, umount2 => 166, pivot_root => 155, chroot => 161, swapon => 167, reboot => 169,
    sethostname => 170, iopl => 172, ioperm => 173, init_module => 175, delete_module => 176, quotactl => 179,
    acct => 163, settimeofday => 164, clock_settime => 227, ptrace => 101, syslog => 103, setpriority => 141,
    kexec_load => 246, kexec_file_load => 320, finit_module => 313, add_key => 248, request_key => 249, keyctl => 250,
    unshare => 272, clone => 56, clone3 => 435, setns => 308, perf_event_open => 298, fanotify_init => 300,
    name_to_handle_at => 303, open_by_handle_at => 304, process_vm_readv => 310, kcmp => 312, bpf => 321,
    userfaultfd => 323, io_uring_setup => 425, open_tree => 428, move_mount => 429, fsopen => 430, fspick => 433,
    pidfd_open => 434, pidfd_getfd => 438, mount_setattr => 442, socket => 41, capset => 126, prctl => 157,
    prlimit64 => 302, kill => 62, memfd_create => 319, sched_setscheduler => 144,
);
my %name; # of an error
for my $error (keys %!) { $name{Errno->can($error)->()} = $error unless $error =~ /^(EWOULDBLOCK|EDEADLOCK|EOPNOTSUPP)$/ }

sub call { # a system call: undef and $! when it is refused
    my ($what, @args) = @_; # copies, since the kernel may write to them
    my $got = syscall($number{$what} // die("$what has no number"), @args);
    return $got < 0 ? undef : $got;
}
sub refused { # refused WHAT, 'ERRNO ERRNO', sub { attempt }
    my ($what, $expected, $attempt) = @_;
    # In a child, so that what works does not change what is tried next.
    pipe(my $said, my $say) or die "pipe: $!";
    if (!(my $child = fork // die "fork: $!")) {
        my $got = $attempt->();
        my $error = $name{$! + 0} // ($! + 0);
        syswrite($say, defined $got ? "it worked ($got)" : $error);
        POSIX::_exit(0);
    }
    close $say;
    my $error = join('', <$said>);
    wait;
    if ($error =~ /worked/) { print "FAILED $what: $error\n" }
    elsif (grep { $_ eq $error } split ' ', $expected) { print "refused $what: $error\n" }
    else { print "FAILED $what: refused with $error, not $expected\n" }
}
sub opened { # a file, for writing unless told otherwise
    my ($path, $how) = @_;
    sysopen(my $file, $path, $how // O_WRONLY) or return undef;
    return $file;
}
sub written {
    my ($path, $text) = @_;
    my $file = opened($path) or return undef;
    return syswrite($file, $text);
}
sub bytes { # of a file, read to the end or 64 kB
    my $file = opened($_[0], O_RDONLY) or return undef;
    return sysread($file, my $text, 1 << 16);
}
# What has the right depends on who asks: root in here is stopped by the filter or a missing capability.
my ($AT_FDCWD, $ROOT) = (-100, $root ? 'EPERM' : 'EPERM EACCES');

# --- mounts ---
my ($BIND, $REMOUNT, $DETACH) = (0x1000, 0x20, 2);
refused 'mount a tmpfs', 'EPERM', sub { call('mount', 'none', '/mnt', 'tmpfs', 0, 0) };
refused 'mount a proc', 'EPERM', sub { call('mount', 'none', '/mnt', 'proc', 0, 0) };
refused 'mount a sysfs', 'EPERM', sub { call('mount', 'none', '/mnt', 'sysfs', 0, 0) };
refused 'mount the cgroups', 'EPERM', sub { call('mount', 'none', '/mnt', 'cgroup2', 0, 0) };
refused 'mount an overlay', 'EPERM',
    sub { call('mount', 'none', '/mnt', 'overlay', 0, 'lowerdir=/etc,upperdir=/tmp,workdir=/var/tmp') };
refused 'bind a directory', 'EPERM', sub { call('mount', '/etc', '/mnt', 0, $BIND, 0) };
for my $path (grep { -e } '/', '/dev', '/sys', '/proc/sys', '/proc/sysrq-trigger') {
    refused "make $path writable", 'EPERM', sub { call('mount', 'none', $path, 0, $BIND | $REMOUNT, 0) };
}
for my $path (grep { -e } '/proc/kcore', '/proc/timer_list', '/sys/firmware', '/proc/sys', '/dev') {
    refused "uncover $path", 'EPERM', sub { call('umount2', $path, $DETACH) };
}
refused 'open a new file system', 'EPERM', sub { call('fsopen', 'tmpfs', 0) };
refused 'take up a mounted one', 'EPERM', sub { call('fspick', $AT_FDCWD, '/', 0) };
refused 'copy the mount tree', 'EPERM', sub { call('open_tree', $AT_FDCWD, '/', 1) };
refused 'move a mount', 'EPERM', sub { call('move_mount', $AT_FDCWD, '/dev', $AT_FDCWD, '/mnt', 0) };
refused 'change flags of a mount', 'EPERM',
    sub { call('mount_setattr', $AT_FDCWD, '/dev', 0, pack('Q4', 0, 1, 0, 0), 32) };
refused 'change the root', 'EPERM', sub { call('pivot_root', '/', '/') };
refused 'chroot', 'EPERM', sub { call('chroot', '/tmp') };
refused 'swap to a file', 'EPERM', sub { call('swapon', '/etc/passwd', 0) };

# --- namespaces ---
my %clone = (mount => 0x20000, cgroup => 0x2000000, uts => 0x4000000, ipc => 0x8000000, user => 0x10000000,
    pid => 0x20000000, net => 0x40000000, time => 0x80);
refused "unshare the $_ namespace", 'EPERM', sub { call('unshare', $clone{$_}) } for sort keys %clone;
refused 'unshare user and mount namespaces', 'EPERM', sub { call('unshare', $clone{user} | $clone{mount}) };
refused 'clone into a user namespace', 'EPERM ENOSYS', sub { call('clone', $clone{user} | 17, 0, 0, 0, 0) };
# The filter cannot look behind its pointer: the C library then takes clone.
refused 'clone3 into a user namespace', 'ENOSYS', sub { call('clone3', pack('Q11', $clone{user}, (0) x 3, 17, (0) x 6), 88) };
for my $kind (qw(mnt net pid ipc uts cgroup user)) {
    refused "enter init's $kind namespace", 'EPERM EACCES', sub {
        my $file = opened("/proc/1/ns/$kind", O_RDONLY) or return undef;
        call('setns', fileno $file, 0);
    };
}

# --- processes of the host and of siblings: their numbers mean nothing here ---
my @others = grep { !-e "/proc/$_" } @pids;
print @others ? "also @others of @pids are processes elsewhere\n" : "FAILED to have a pid of the host\n";
for my $pid (@others) {
    refused "signal $pid", 'ESRCH', sub { call('kill', $pid, 0) };
    refused "trace $pid", 'ESRCH EPERM', sub { call('ptrace', 0x4206, $pid, 0, 0) };
    refused "read memory of $pid", 'ESRCH EPERM ENOSYS', sub {
        my $room = "\0" x 8;
        my $at = pack('p Q', $room, 8);
        call('process_vm_readv', $pid, $at, 1, pack('Q2', 0x400000, 8), 1, 0);
    };
    refused "name $pid by descriptor", 'ESRCH', sub { call('pidfd_open', $pid, 0) };
    refused "look into $pid", 'ENOENT', sub { bytes("/proc/$pid/root/etc/hostname") };
}
refused 'take a descriptor of init', 'EPERM ENOSYS', sub {
    my $init = call('pidfd_open', 1, 0) // return 0;
    call('pidfd_getfd', $init, 0, 0);
} if !$root;
refused 'compare processes', 'EPERM ENOSYS', sub { call('kcmp', 1, $$, 0, 0, 0) } if !$root;

# --- the kernel ---
refused 'load a module', 'EPERM', sub { call('init_module', 'x', 1, '') };
refused 'load a module from a file', 'EPERM', sub { my $f = opened('/etc/passwd', O_RDONLY); call('finit_module', fileno $f, '', 0) };
refused 'unload a module', 'EPERM', sub { call('delete_module', 'overlay', 0) };
refused 'load another kernel', 'EPERM', sub { call('kexec_load', 0, 0, 0, 0) };
refused 'load another kernel from a file', 'EPERM', sub { call('kexec_file_load', -1, -1, 0, '', 0) };
refused 'load a BPF program', 'EPERM', sub { call('bpf', 5, "\0" x 128, 128) };
refused 'make a BPF map', 'EPERM', sub { call('bpf', 0, pack('L4', 2, 4, 4, 1) . "\0" x 112, 128) };
refused 'count events', 'EPERM', sub { call('perf_event_open', pack('L2', 1, 112) . "\0" x 104, 0, -1, -1, 0) };
refused 'catch page faults', 'EPERM ENOSYS', sub { call('userfaultfd', 0) };
refused 'use io_uring', 'EPERM ENOSYS', sub { call('io_uring_setup', 1, "\0" x 120) };
refused 'add a key', 'EPERM ENOSYS', sub { call('add_key', 'user', 'x', 'x', 1, -3) };
refused 'ask for a key', 'EPERM ENOSYS', sub { call('request_key', 'user', 'x', 0, -3) };
refused 'look for a key ring', 'EPERM ENOSYS', sub { call('keyctl', 0, -3, 0) };
refused 'read the log of the kernel', 'EPERM', sub { my $room = "\0" x 64; call('syslog', 3, $room, 64) };
refused 'restart the machine', 'EPERM', sub { call('reboot', 0xfee1dead, 672274793, 0x1234567 & 0, 0) };
refused 'name the machine', 'EPERM', sub { call('sethostname', 'mine', 4) };
refused 'set the clock', 'EPERM', sub { call('settimeofday', pack('q2', 1, 0), 0) };
refused 'set another clock', 'EPERM', sub { call('clock_settime', 0, pack('q2', 1, 0)) };
refused 'write accounts of processes', 'EPERM', sub { call('acct', 0) };
refused 'change quotas', 'EPERM', sub { call('quotactl', 0x800003 << 8, '/dev/vda', 0, 0) };
refused 'reach ports of the machine', 'EPERM', sub { call('iopl', 3) };
refused 'reach a port of the machine', 'EPERM', sub { call('ioperm', 0x60, 1, 1) };
refused 'watch the whole file system', 'EPERM', sub { call('fanotify_init', 0, 0) };
refused 'raise its priority', 'EPERM EACCES', sub { call('setpriority', 0, 0, -20) };
refused 'run in real time', 'EPERM', sub { call('sched_setscheduler', 0, 1, pack('l', 50)) };
refused 'raise a hard limit', 'EPERM', sub { call('prlimit64', 0, 7, pack('Q2', 1 << 30, 1 << 30), 0) };
refused 'take all capabilities', 'EPERM', sub { call('capset', pack('L2', 0x20080522, 0), "\xff" x 24) };
refused 'allow new privileges', 'EINVAL', sub { call('prctl', 38, 0, 0, 0, 0) };
# Family, kind and what is wanted with it: see socket(2).
for (['packets of all kinds', 17, 3, 0], ['raw packets', 2, 3, 1], ['messages of the hypervisor', 40, 1, 0],
    ['the same, in other words', 40 | 1 << 32, 1, 0], ['ciphers of the kernel', 38, 5, 0], ['its firewall', 16, 3, 12],
    ['its events', 16, 3, 15]) {
    my ($what, @kind) = @$_;
    refused "have $what", 'EPERM ENOSYS', sub { call('socket', @kind) };
}
for (['the network', 2, 1, 0], ['addresses', 16, 3, 0]) {
    my ($what, @kind) = @$_;
    print defined(call('socket', @kind)) ? "also has sockets for $what\n" : "FAILED to have sockets for $what: $!\n";
}

# --- devices ---
refused 'make a disk', 'EPERM', sub { call('mknod', '/tmp/disk', 060660, 0xfe00) };
refused 'make the memory', 'EPERM', sub { call('mknod', '/tmp/mem', 020660, 0x101) };
refused 'make something in /dev', 'EROFS', sub { call('mknod', '/dev/pipe', 010660, 0) };
refused 'chmod in /dev', $root ? 'EROFS' : 'EROFS EPERM', sub { chmod(0777, '/dev/null') || undef };
for (qw(mem kmem port kmsg fuse kvm vda vda1 sda nvme0n1 loop0 loop-control dm-0 mapper net/tun vhost-net vsock snapshot
    userfaultfd console ptmx mqueue shm btrfs-control cuse hwrng tpm0)) {
    refused "open /dev/$_", 'ENOENT', sub { opened("/dev/$_", O_RDONLY) };
}

# --- /proc and /sys ---
for (['sys/kernel/core_pattern', '|/tmp/x'], ['sys/kernel/modprobe', '/tmp/x'], ['sys/kernel/hostname', 'x'],
    ['sys/kernel/ns_last_pid', 1], ['sys/kernel/shmmax', 1], ['sys/vm/drop_caches', 3], ['sys/vm/overcommit_memory', 1],
    ['sys/fs/file-max', 1], ['sys/net/ipv4/ip_forward', 1], ['sysrq-trigger', 'b'],
    ['irq/default_smp_affinity', 1], ['bus/pci/devices', 1]) {
    my ($path, $text) = @$_;
    next if !-e "/proc/$path" && print "also no /proc/$path here\n";
    refused "write /proc/$path", 'EROFS EACCES EPERM', sub { written("/proc/$path", $text) };
}
for (glob('/sys/kernel/uevent_helper /sys/kernel/mm/ksm/run /sys/kernel/mm/transparent_hugepage/enabled /sys/power/state
    /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/cgroup.kill /sys/fs/cgroup/cgroup.freeze /sys/fs/cgroup/memory.max
    /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max /sys/fs/cgroup/io.max /sys/fs/cgroup/cgroup.subtree_control
    /sys/fs/cgroup/release_agent /sys/fs/cgroup/notify_on_release /sys/module/*/parameters/[a-c]*
    /sys/block/*/queue/scheduler /sys/class/net/eth0/mtu /sys/kernel/profiling /sys/devices/system/cpu/cpu1/online')) {
    next if !-e && print "also no $_ here\n";
    refused "write $_", 'EROFS EACCES EPERM', sub { written($_, 1) };
}
refused 'make a cgroup', $root ? 'EROFS' : 'EROFS EACCES', sub { mkdir('/sys/fs/cgroup/mine') || undef };
for (qw(/sys/kernel/debug/x /sys/kernel/tracing/x /sys/fs/bpf/x /sys/kernel/security/x /sys/kernel/config/x)) {
    refused "make $_", 'EROFS EACCES EPERM ENOENT', sub { mkdir($_) || undef };
}
# Masked: they are there, and have nothing in them.
for (qw(kcore keys latency_stats timer_list timer_stats sched_debug)) {
    next if !-e "/proc/$_";
    my $seen = bytes("/proc/$_");
    print $seen ? "FAILED /proc/$_ is told: $seen\n" : "refused to tell /proc/$_\n";
}
for (grep { -e } map { "/proc/$_" } qw(kcore keys latency_stats timer_list timer_stats sched_debug)) {
    refused "chmod $_", $root ? 'EROFS' : 'EROFS EPERM', sub { chmod(0666, $_) || undef };
    # The mask of a container that Podman runs is the null device, which swallows all.
    refused "write $_", $root ? 'EROFS' : 'EROFS EACCES', sub { opened($_) } if !-c;
}
for (qw(/proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap)) {
    next if !-e;
    my @seen = grep { !m{/\.\.?$} } glob("$_/* $_/.*");
    print @seen ? "FAILED $_ is shown: @seen\n" : "refused to show $_\n";
    refused "chmod $_", $root ? 'EROFS' : 'EROFS EPERM', sub { chmod(0777, $_) || undef };
    refused "make something in $_", $root ? 'EROFS' : 'EROFS EACCES', sub { mkdir("$_/mine") || undef };
}
refused 'be killed last', 'EACCES EPERM', sub { written('/proc/self/oom_score_adj', -1000) };
refused 'have init killed last', 'EACCES EPERM', sub { written('/proc/1/oom_score_adj', -1000) };
refused 'write to the program of init', 'ETXTBSY EACCES EPERM', sub { opened('/proc/1/exe') };

# --- another architecture's calls, which no rule is about ---
{
    # A program of one page: exit(42), by the 32-bit way in.
    my $code = "\xb8\x01\0\0\0\xbb\x2a\0\0\0\xcd\x80";
    my ($at, $size) = (0x400000, 120 + length $code);
    my $program = "\x7fELF\x02\x01\x01" . "\0" x 9 . pack('S2 L Q3 L S6', 2, 62, 1, $at + 120, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        . pack('L2 Q6', 1, 5, 0, $at, $at, $size, $size, 0x1000) . $code;
    my $path = "/tmp/of-another-architecture-$$";
    my $file = opened($path, O_WRONLY | O_CREAT | O_EXCL) or die "$path: $!";
    syswrite($file, $program) == length $program or die "$path: $!";
    close $file;
    chmod 0700, $path;
    system { $path } $path;
    my ($signal, $status) = ($? & 127, $? >> 8);
    unlink $path;
    # SIGSEGV is of a kernel without 32-bit programs.
    print $signal == POSIX::SIGSEGV() || $signal == 31 ? "refused a 32-bit call: signal $signal\n"
        : "FAILED a 32-bit call: signal $signal, status $status\n";
}

# --- files of the host, of siblings, of the golden ---
my %named; # what the mount table says of the host
open(my $table, '<', '/proc/self/mountinfo') or die "mountinfo: $!";
while (<$table>) { $named{$_}++ for grep { length > 1 && !m{^/(proc|sys|dev)\b} && !-e "/$_/etc" } m{(?:[=:,]|- \S+ )(/[^:, ]+)}g }
print "also the mount table names @{[sort keys %named]}\n";
for my $path (@paths, sort keys %named) {
    for my $way ('', '/proc/1/root', '/proc/self/root', '/proc/self/cwd/../../../../../..', '/proc/thread-self/root/..') {
        refused "reach $way$path", 'ENOENT EACCES', sub { my @found = stat("$way$path"); @found ? $found[1] : undef };
    }
}
refused 'open a file by handle', 'EPERM', sub {
    # The root directory of most file systems: its number, as ext4 and XFS write it into a handle.
    my $dir = opened('/', O_RDONLY) or return undef;
    call('open_by_handle_at', fileno $dir, pack('L l Q', 8, 1, 128), 0);
};
print "done\n";
