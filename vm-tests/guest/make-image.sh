#!/bin/sh
# make-image.sh BASE WORK PROJECT IMAGE SIZE: the image of BASE with WORK/upper above it and PROJECT
# installed. Runs in a mount namespace of its own, so nothing stays mounted, however it ends.
set -eu
base=$1 work=$2 project=$3 image=$4 size=$5
guest=$(dirname "$(realpath "$0")")

mkdir -p "$work/overlay" "$work/root"
mount -t overlay overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/overlay" "$work/root"
root=$work/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mkdir -p "$root/opt/project"
mount --bind "$project" "$root/opt/project"
within() { env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C chroot "$root" "$@"; }

within groupadd --system nixbld
for number in 1 2 3 4 5 6 7 8; do
    within useradd --system --no-user-group --gid nixbld --groups nixbld --home-dir /var/empty \
        --shell /usr/sbin/nologin "nixbld$number"
done
for user in alice bob; do within useradd --create-home --shell /bin/bash $user; done
within passwd -q -d root

within sh /opt/project/scripts/install.sh --prefix /usr/local --wheels /opt/wheels \
    --replace-nix-daemon

install -D -m 0755 "$guest/backdoor" "$root/usr/local/lib/vm/backdoor"
install -D -m 0755 "$guest/network" "$root/usr/local/lib/vm/network"
install -m 0644 "$guest/backdoor.service" "$guest/vm-network.service" "$root/etc/systemd/system/"
install -D -m 0644 "$guest/nix.conf" "$root/etc/nix/nix.conf"
printf '/dev/vda / ext4 defaults 0 1\n' > "$root/etc/fstab"
printf 'vm_unset\n' > "$root/etc/hostname"
printf 'RateLimitIntervalSec=0\n' | (mkdir -p "$root/etc/systemd/journald.conf.d"; \
    printf '[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n' \
    > "$root/etc/systemd/journald.conf.d/vm.conf")
: > "$root/etc/machine-id"
within systemctl -q enable backdoor.service vm-network.service executor.socket
# Nothing of this is looked at, and each costs an emulated processor time.
within systemctl -q mask systemd-timesyncd.service systemd-resolved.service apt-daily.timer \
    apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer man-db.timer \
    getty@tty1.service serial-getty@ttyS0.service serial-getty@hvc0.service ssh.service \
    systemd-firstboot.service
within systemctl -q set-default multi-user.target

umount "$root/opt/project"
rmdir "$root/opt/project"
umount "$root/proc"
umount -l "$root/dev"
rm -rf "$root/opt/wheels"
truncate -s "$size" "$image"
mkfs.ext4 -q -F -L root -E lazy_itable_init=1,lazy_journal_init=1 -d "$root" "$image"
