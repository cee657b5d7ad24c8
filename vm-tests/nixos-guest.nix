# What the scripts expect of every machine; vm-tests/guest/make-image.sh does the same for Debian.
{ pkgs, ... }:

{
  services.executor = {
    enable = true;
    replaceNixDaemon = true;
    maxJobs = 2;
    settings = {
      experimental-features = [
        "nix-command"
        "flakes"
        "ca-derivations"
      ];
      substitute = false;
    };
  };
  users.users.alice.isNormalUser = true;
  users.users.bob.isNormalUser = true;
  # The scripts' derivations have /bin/busybox in their sandboxes.
  systemd.tmpfiles.rules = [ "L+ /bin/busybox - - - - ${pkgs.pkgsStatic.busybox}/bin/busybox" ];
  environment.systemPackages = [
    pkgs.busybox
    pkgs.python3
  ];
  services.openssh.enable = true;
  # The machines of a test serve each other.
  networking.firewall.enable = false;
  # The probe of system calls, and what each has to be answered.
  environment.etc."executor-tests/ordinary.txt".source = ../tests/hostile/golden/ordinary.txt;
  environment.etc."executor-tests/probe".source = pkgs.runCommandCC "probe" {
    buildInputs = [ pkgs.glibc.static ];
  } "$CC -static -no-pie -O1 -o $out ${../tests/hostile/probe.c}";
}
