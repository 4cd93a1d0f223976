"""The guest's half: its init, and the words it exchanges with the host.

The init mounts the tag, makes that mount the root of the namespace, as switch_root does, and
stays behind on the initramfs as an agent, because the served root need not hold one program that
it could rely on. A command is started with its root and working directory in the new root, from
where the initramfs is invisible but for /proc/1/root: the way by which the command's launcher
gets a shell in a root that has none.

Ports (virtio-serial) and who speaks on them:

    dentry.control   host: a line, a `run` followed by its payload; agent: a line
    dentry.stdin     host: the stream behind a command's standard input, once a guest
    dentry.stdout    agent: output of commands, a marker at the end of each
    dentry.stderr    likewise

    run MARKER STDIN SCRIPT-BYTES STDIN-BYTES    STDIN is upload, stream or terminal
    kill                                         the running command and its process group
    size ROWS COLUMNS                            of the terminal
    halt                                         sync and restart, which ends QEMU

    ready                                        after boot
    exit MARKER STATUS                           STATUS as in sh: 128 + n after signal n

Output travels through FIFOs, because a virtio port can be opened once and a command that opens
/dev/stderr anew would fail. The agent itself writes the marker into the FIFO, behind the
command's bytes, so the host knows when it has seen them all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from harness.guest.errors import GuestUnavailable

APPLETS: Final = (
    *("[", "cat", "chroot", "dd", "echo", "insmod", "kill", "ln", "mkdir", "mkfifo", "mount"),
    *("printf", "reboot", "rm", "setsid", "sh", "stty", "sync", "usleep"),
)
"""What init and the launcher use of busybox."""

CONTROL_PORT: Final = "dentry.control"
STDIN_PORT: Final = "dentry.stdin"
STDOUT_PORT: Final = "dentry.stdout"
STDERR_PORT: Final = "dentry.stderr"

FAILURE_PREFIX: Final = "dentry-init: "
"""Opens the console line in which init says why it gives up."""

INIT: Final = r"""#!/bin/sh
export PATH=/bin

# A line in the kernel log is on the console when the write returns, one on the tty may not be.
die() {
    echo "<2>dentry-init: $*" >/dev/kmsg
    reboot -f
}

find_port() {
    for port in /sys/class/virtio-ports/*; do
        if [ "$(cat "$port/name" 2>/dev/null)" = "$1" ]; then
            echo "/dev/${port##*/}"
            return
        fi
    done
    return 1
}

mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
mount -t sysfs sysfs /sys
[ -c /dev/kmsg ] || exit 1
while read -r module; do
    error=$(insmod "/lib/$module" 2>&1) || die "can't load $module: $error"
done </etc/modules

# Ports appear and get their names by messages that follow the driver's loading.
tries=0
until find_port dentry.control >/dev/null && find_port dentry.stdin >/dev/null &&
    find_port dentry.stdout >/dev/null && find_port dentry.stderr >/dev/null; do
    tries=$((tries + 1))
    [ $tries -lt 1000 ] || die "no virtio-serial ports: the kernel lacks virtio_console"
    usleep 10000
done

tag=$(cat /etc/tag)
error=$(mount -t virtiofs -o "$(cat /etc/options)" "$tag" /newroot 2>&1) ||
    die "can't mount virtio-fs tag '$tag': $error"
cd /newroot
[ -d proc ] || mkdir proc
mount -t proc proc proc || die "the root has no directory /proc, and none can be made in it"
[ -d sys ] || mkdir sys
mount -t sysfs sysfs sys
if [ ! -c dev/null ]; then
    [ -d dev ] || mkdir dev
    mount -t devtmpfs devtmpfs dev
    mkdir -p dev/pts dev/shm
    mount -t tmpfs tmpfs dev/shm
    ln -s /proc/self/fd dev/fd
    ln -s fd/0 dev/stdin
    ln -s fd/1 dev/stdout
    ln -s fd/2 dev/stderr
fi
[ ! -d dev/pts ] || mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts dev/pts

number=0
while read -r options destination; do
    tries=0
    # The driver of the bus finds the devices in its own time.
    until [ -b "/dev/pmem$number" ]; do
        tries=$((tries + 1))
        [ $tries -lt 1000 ] || die "no /dev/pmem$number: the machine or the kernel lacks pmem"
        usleep 10000
    done
    [ -d ".$destination" ] || mkdir -p ".$destination" || die "can't make $destination"
    error=$(mount -t ext2 -o "$options" "/dev/pmem$number" ".$destination" 2>&1) ||
        error=$(mount -t ext4 -o "$options" "/dev/pmem$number" ".$destination" 2>&1) ||
        die "can't mount /dev/pmem$number on $destination: $error"
    number=$((number + 1))
done </etc/pmem
mount -o move . / || die "can't make the tag the root"

: >/run/size
mkfifo /run/stdin /run/stdout /run/stderr
stdin_port=$(find_port dentry.stdin)
cat </run/stdout >"$(find_port dentry.stdout)" &
cat </run/stderr >"$(find_port dentry.stderr)" &
# Held open for good, so that the readers above never see an end of file.
exec 3<>"$(find_port dentry.control)" 5<>/run/stdout 6<>/run/stderr

# Everything a command inherits: its session, standard streams and root. The working directory
# is the new root, while this shell's own root is still the initramfs.
start() {
    setsid $1 chroot . /proc/1/root/bin/sh /proc/1/root/run/launcher /proc/1/root/run/pid \
        3>&- 5>&- 6>&- 7>&-
}

run() {
    case $2 in
    terminal)
        # Held open, for a terminal forgets its size with its last close.
        exec 7<>/dev/hvc0
        stty -F /dev/hvc0 sane $(cat /run/size)
        start -c <>/dev/hvc0 >&0 2>&0
        status=$?
        printf %s "$1" >/dev/hvc0
        exec 7>&-
        ;;
    stream)
        cat <"$stdin_port" >/run/stdin 3>&- 5>&- 6>&- &
        start </run/stdin >/run/stdout 2>/run/stderr
        status=$?
        kill $! 2>/dev/null
        ;;
    *)
        start </run/upload >/run/stdout 2>/run/stderr
        status=$?
        ;;
    esac
    if [ "$2" != terminal ]; then
        printf %s "$1" >&5
        printf %s "$1" >&6
    fi
    echo "exit $1 $status" >&3
}

run_all() {
    while read -r marker input; do
        run "$marker" "$input"
    done
}

receive() {
    rm -f "$2"
    if [ "$1" -gt 0 ]; then
        dd bs="$1" count=1 iflag=fullblock of="$2" <&3 2>/dev/null
    else
        : >"$2"
    fi
}

kill_command() {
    tries=0
    until [ -s /run/pid ] || [ $tries -ge 100 ]; do
        tries=$((tries + 1))
        usleep 10000
    done
    pid=$(cat /run/pid)
    kill -KILL "-$pid" || kill -KILL "$pid"
}

obey() {
    while read -r verb first second third fourth <&3; do
        case $verb in
        run)
            receive "$third" /run/launcher
            receive "$fourth" /run/upload
            : >/run/pid
            echo "$first $second"
            ;;
        kill)
            kill_command
            ;;
        size)
            echo "rows $first cols $second" >/run/size
            stty -F /dev/hvc0 rows "$first" cols "$second"
            ;;
        halt)
            break
            ;;
        esac
    done
    sync
    reboot -f
}

echo ready >&3
# A pipeline, because a shell has the commands of `&` ignore SIGINT and SIGQUIT for ever.
obey | run_all
"""

_LAUNCHER: Final = rb"""
name=$1
case $name in
*/*) exec "$@" ;;
esac
shift
set -f
IFS=:
# A bare name would get busybox's applet of that name from a busybox shell.
for directory in $PATH; do
    program=${directory:-.}/$name
    if [ -f "$program" ] && [ -x "$program" ]; then
        exec -a "$name" "$program" "$@"
    fi
done
echo "dentry: $name: command not found" >&2
exit 127
"""

_VARIABLE: Final = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*\Z")


def launcher(command: Sequence[bytes], environment: Mapping[bytes, bytes], cwd: bytes) -> bytes:
    """Return the shell script that becomes `command` in the guest's root.

    It writes its process id to the file that is its argument, if it has one. Every byte but NUL
    passes unchanged. A command of a bare name is searched in the guest's PATH.

    Raises: GuestUnavailable, if the command is empty, something has a NUL, or a variable's name
    is none.
    """
    if not command or not command[0]:
        raise GuestUnavailable("the guest was given no command to run")
    lines = [
        b'[ -z "$1" ] || echo $$ >"$1"',
        b"unset HOME TERM",
        b"cd %s || exit 126" % _quote(cwd),
        b"unset OLDPWD SHLVL",
    ]
    for name, value in environment.items():
        if not _VARIABLE.match(name):
            raise GuestUnavailable(f"not the name of an environment variable: {name!r}")
        lines.append(b"export %s=%s" % (name, _quote(value)))
    lines.append(b"set -- " + b" ".join(map(_quote, command)))
    return b"\n".join(lines) + _LAUNCHER


def _quote(word: bytes) -> bytes:
    if b"\0" in word:
        raise GuestUnavailable(f"no argument can hold a NUL byte: {word!r}")
    return b"'" + word.replace(b"'", b"'\\''") + b"'"
