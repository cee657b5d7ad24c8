# What the sandbox shows, and keeps away (S1-S14, I1, U1-U4).
lib: with lib;
{
  "S2-only-the-closure" = sh "closure" "names=$($b ls -A /nix/store); echo \"$names\" > $out" { inherit branch dependency; };
  "S2-link-as-input" = sh "link-input" "$b readlink $link > $out; $b cat $link/file >> $out" { link = sh "link" "$b ln -s $dependency $out" { inherit dependency; }; };
  "S2-inputs-are-read-only" = sh "read-only" "echo x > $dependency/file" { inherit dependency; };
  "S2-inputs-keep-their-modes" = sh "chmod" "$b chmod 777 $dependency" { inherit dependency; };
  "S2-inputs-stay" = sh "removal" "$b rm -rf $dependency; $b mv $leaf elsewhere" { inherit dependency leaf; };
  "S2-others-are-absent" = sh "absent" "$b ls ${builtins.unsafeDiscardStringContext leaf}" { };
  "S3-tmp" = sh "tmp" "$b stat -c '%a' /tmp > $out; $b ls -A /tmp >> $out; echo x > /tmp/x" { };
  "S4-users" = sh "users" "$b cat /etc/passwd /etc/group > $out" { };
  "S5-hosts" = sh "hosts" "$b cat /etc/hosts > $out; $b ls -A /etc >> $out; $b stat -c '%a' /etc >> $out" { };
  "S5-etc-is-read-only" = sh "etc" "echo x > /etc/new" { };
  "S6-services-for-fixed" = fixed "services" "[ -e /etc/nsswitch.conf ] && $b grep hosts: /etc/nsswitch.conf; echo > $out" { hash = builtins.hashString "sha256" "\n"; };
  "S7-devices" = sh "devices" "$b ls -A /dev | $b sort > $out; for l in fd stdin stdout stderr ptmx; do $b readlink /dev/$l; done >> $out; $b stat -c '%n %a %t %T' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty >> $out" { };
  "S7-devices-work" = sh "devices-work" "$b head -c 4 /dev/zero | $b od -An -tx1 > $out; $b head -c 9 /dev/urandom | $b wc -c >> $out; echo x > /dev/null" { };
  "S7-full-device" = sh "full" "echo x > /dev/full" { };
  "S7-shared-memory" = sh "shm" "echo x > /dev/shm/x; $b cat /dev/shm/x > $out; $b stat -c '%a' /dev/shm >> $out" { };
  "S7-no-disks" = sh "disks" "$b ls /dev/vda /dev/sda /dev/mem /dev/kmsg" { };
  "S8-processes" = sh "processes" "echo $$ > $out; for p in /proc/[0-9]*; do echo $p; done >> $out" { };
  "S8-no-host-process" = sh "no-process" "$b kill -0 2" { };
  "S10-sandbox-path" = with_ { sandbox-paths = "/bin/sh=@busybox@ /bin/busybox=@busybox@ /extra/tool=@busybox@ /nothing=/no/such/path?"; }
    (sh "path" "$b ls /extra > $out; /extra/tool true; [ ! -e /nothing ]" { });
  "S10-path-is-missing" = with_ { sandbox-paths = "/bin/sh=@busybox@ /bin/busybox=@busybox@ /nothing=/no/such/path"; } (sh "missing" "echo > $out" { });
  "S12-path-escapes" = with_ { sandbox-paths = "/bin/sh=@busybox@ /bin/busybox=@busybox@ /../../x=@busybox@"; } (sh "escapes" "echo > $out" { });
  "S14-shell" = sh "shell" "$b ls /bin > $out; $b ls / | $b sort >> $out" { };
  "S14-no-other-program" = sh "no-program" "/usr/bin/env" { };
  "I1-names" = sh "names" "$b hostname > $out; $b uname -n >> $out; $b cat /proc/sys/kernel/domainname >> $out" { };
  "I1-only-loopback" = sh "loopback" "$b tail -n +3 /proc/net/dev | $b cut -d: -f1 > $out; $b ping -c 1 127.0.0.1 >/dev/null 2>&1; $b ip addr show lo 2>/dev/null | $b grep -o 'inet [0-9./]*' >> $out" { };
  "I1-no-network" = sh "network" "$b nc -w 2 192.0.2.1 80 </dev/null" { };
  "I1-process-one" = sh "process-one" "echo $$ > $out; $b ps -o pid | $b wc -l >> $out" { };
  "U1-ids" = sh "ids" "$b id -u > $out; $b id -g >> $out; $b id -un >> $out; $b stat -c '%u %g' . >> $out" { };
  "U1-not-root" = sh "root" "$b id -u; [ $($b id -u) = 0 ]" { };
  "U3-uid-range" = sh "range" "echo > $out" { requiredSystemFeatures = [ "uid-range" ]; };
  "U4-groups-and-capabilities" = sh "groups" "$b grep -E '^(Groups|CapEff|CapPrm|CapInh|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status > $out" { };
  "U4-no-setuid" = sh "setuid" ": > $out; $b chmod 4755 $out" { };
  "U4-no-setgid" = sh "setgid" "$b mkdir $out; $b chmod 2755 $out" { };
  "U4-no-foreign-owner" = sh "chown" ": > $out; $b chown 0 $out" { };
  "S3-no-other-temporary-directory" = sh "var-tmp" "echo x > /var/tmp/x" { };
  "S4-no-host-users" = sh "host-users" "$b grep daemon /etc/passwd" { };
  "S6-no-host-name" = fixed "host-name" "$b cat /etc/hostname; exit 5" { hash = builtins.hashString "sha256" "\n"; };
}
