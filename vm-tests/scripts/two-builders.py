# A client and two executors over ssh-ng: 60 derivations. One builder crashes in the middle and comes
# back, the other is cut off from the network and joined again; all complete.
import shlex
import time


def write(machine, path, text):
    machine.succeed(f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(text)} > {path}")


EXPRESSION = """
{ nonce, width }: let
  one = number: inputs: derivation {
    name = "step-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
    builder = "/bin/sh"; inherit inputs nonce;
    args = [ "-c" "busybox sleep 2; echo ${toString number} $inputs > $out" ];
  };
  layer = above: start: builtins.genList (n: one (start + n) above) width;
  first = layer [ ] 0; second = layer [ (builtins.elemAt first 1) ] 100;
  third = layer [ (builtins.elemAt second 2) ] 200;
in derivation {
  name = "top"; system = builtins.currentSystem; PATH = "/bin"; builder = "/bin/sh";
  inputs = first ++ second ++ third; args = [ "-c" "echo $inputs > $out" ];
}
"""

# What the client starts at the other end. A store that is to survive a crash has to be told so.
BUILDER = "/root/builder"
START_BUILDER = """#!/bin/sh
export NIX_CONFIG="fsync-store-paths = true"
exec executor daemon "$@"
"""
# A directory that a reboot takes away; a name that Debian and NixOS have for it.
START_SSH = "mkdir -p /run/sshd; systemctl unmask ssh; systemctl start ssh || systemctl start sshd"

start_all()
for machine in machines:
    machine.wait_for_unit("multi-user.target")

with subtest("keys"):
    client.succeed(
        "mkdir -p -m 700 /root/.ssh && ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519"
    )
    key = client.succeed("cat /root/.ssh/id_ed25519.pub")
    for machine in (builder1, builder2):
        write(machine, "/root/.ssh/authorized_keys", key)
        machine.succeed("chmod 700 /root/.ssh; ssh-keygen -A >&2")
        write(machine, BUILDER, START_BUILDER)
        machine.succeed(f"chmod +x {BUILDER}")
        machine.succeed(START_SSH)
    # A builder that crashes says no farewell: without this, ssh would wait for it for ever.
    write(client, "/root/.ssh/config", "ServerAliveInterval 10\nServerAliveCountMax 6\n")
    for host in ("builder1", "builder2"):
        client.wait_for_open_port(22, host)
        client.succeed(f"ssh -o StrictHostKeyChecking=accept-new {host} true")

builders = " ; ".join(
    f"ssh-ng://{host}?remote-program={BUILDER} x86_64-linux /root/.ssh/id_ed25519 4 1"
    for host in ("builder1", "builder2")
)
write(client, "/tmp/graph.nix", EXPRESSION)


def begin(nonce, width):
    client.execute(
        f"nix-build --no-out-link /tmp/graph.nix --argstr nonce {nonce} --arg width {width}"
        f" --max-jobs 0 --builders {shlex.quote(builders)} --option connect-timeout 5 --keep-going"
        f" > /tmp/{nonce}.out 2>> /tmp/{nonce}.err; echo $? > /tmp/{nonce}.code",
        check_output=False,
    )


def end(nonce):
    client.wait_until_succeeds(f"test -s /tmp/{nonce}.code", timeout=900)
    text = client.succeed(f"tail -5 /tmp/{nonce}.err")
    return client.succeed(f"cat /tmp/{nonce}.code").strip() == "0", text


def finish(nonce, width):
    """Nix gives a step up whose machine went away; the same command again does what is left."""
    for _ in range(4):
        good, text = end(nonce)
        if good:
            return
        log(text)
        client.succeed(f"rm /tmp/{nonce}.code")
        begin(nonce, width)
    raise AssertionError(text)


def wait_for_steps(nonce, number):
    """Until so many have begun; the last must not have."""
    client.wait_until_succeeds(
        f"test $(grep -c '^building .*-step-' /tmp/{nonce}.err) -ge {number}", timeout=600
    )
    client.fail(f"test -e /tmp/{nonce}.code")


def built_by(machine):
    return int(machine.succeed("ls /nix/store | grep -c 'step-[0-9]*$' || true"))


with subtest("both build"):
    begin("first", 4)
    finish("first", 4)
    for machine in (builder1, builder2):
        assert built_by(machine) > 0

with subtest("one crashes in the middle and comes back, the other is cut off and joined again"):
    begin("second", 20)
    wait_for_steps("second", 15)
    builder1.crash()
    builder1.start()
    builder1.succeed(START_SSH)
    builder1.succeed("executor verify --check-contents")
    when_back = built_by(builder1)
    wait_for_steps("second", 30)
    builder2.block()
    time.sleep(20)
    builder2.unblock()
    finish("second", 20)
    assert built_by(builder1) > when_back, "nobody asked it again"

with subtest("what was built is whole"):
    client.succeed("nix-store --verify --check-contents")
    for machine in (builder1, builder2):
        machine.succeed("executor verify --check-contents")
