# A client and two executors over ssh-ng: 60 derivations. One builder crashes in the middle, comes
# back, is cut off from the network and joined again; all complete.
import shlex


def write(machine, path, text):
    machine.succeed(f"mkdir -p $(dirname {path}) && printf %s {shlex.quote(text)} > {path}")


EXPRESSION = """
{ nonce }: let
  one = number: inputs: derivation {
    name = "step-${toString number}"; system = builtins.currentSystem; PATH = "/bin";
    builder = "/bin/sh"; inherit inputs nonce;
    args = [ "-c" "busybox sleep 2; echo ${toString number} $inputs > $out" ];
  };
  layer = above: start: builtins.genList (n: one (start + n) above) 20;
  first = layer [ ] 0; second = layer [ (builtins.elemAt first 3) ] 100;
  third = layer [ (builtins.elemAt second 5) ] 200;
in derivation {
  name = "top"; system = builtins.currentSystem; PATH = "/bin"; builder = "/bin/sh";
  inputs = first ++ second ++ third; args = [ "-c" "echo $inputs > $out" ];
}
"""

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
        machine.succeed("chmod 700 /root/.ssh; mkdir -p /run/sshd; ssh-keygen -A >&2")
        # What Nix's clients start at the other end.
        write(
            machine,
            "/usr/local/bin/nix-daemon",
            '#!/bin/sh\nexec /usr/local/bin/executor daemon "$@"\n',
        )
        machine.succeed(
            "chmod +x /usr/local/bin/nix-daemon; ln -sf /usr/local/bin/nix-daemon /usr/bin/"
        )
        machine.succeed("systemctl is-active ssh || systemctl unmask ssh; systemctl start ssh")
    for host in ("builder1", "builder2"):
        client.wait_for_open_port(22, host)
        client.succeed(f"ssh -o StrictHostKeyChecking=accept-new {host} true")

builders = " ; ".join(
    f"ssh-ng://{host} x86_64-linux /root/.ssh/id_ed25519 4 1" for host in ("builder1", "builder2")
)
write(client, "/tmp/graph.nix", EXPRESSION)


def begin(nonce):
    client.execute(
        f"nix-build --no-out-link /tmp/graph.nix --argstr nonce {nonce} --max-jobs 0"
        f" --builders {shlex.quote(builders)} --option connect-timeout 5 --keep-going"
        f" > /tmp/{nonce}.out 2> /tmp/{nonce}.err; echo $? > /tmp/{nonce}.code",
        check_output=False,
    )


def end(nonce):
    client.wait_until_succeeds(f"test -s /tmp/{nonce}.code", timeout=900)
    return client.succeed(f"cat /tmp/{nonce}.code").strip() == "0", client.succeed(
        f"tail -5 /tmp/{nonce}.err"
    )


def finish(nonce):
    """Nix gives a step up whose machine went away; the same command again does what is left."""
    for _ in range(4):
        good, text = end(nonce)
        if good:
            return
        log(text)
        client.succeed(f"rm /tmp/{nonce}.code")
        begin(nonce)
    raise AssertionError(text)


with subtest("both build"):
    begin("first")
    finish("first")
    for machine in (builder1, builder2):
        machine.succeed("ls -d /nix/store/*-step-* | grep -v drv | head -1 | grep .")

with subtest("one crashes in the middle and comes back"):
    begin("second")
    client.wait_until_succeeds("test $(grep -c 'step-' /tmp/second.err) -ge 10", timeout=300)
    builder1.crash()
    builder1.start()
    builder1.succeed("mkdir -p /run/sshd; systemctl start ssh")
    finish("second")
    builder1.succeed("executor verify --check-contents")

with subtest("one is cut off and joined again"):
    begin("third")
    client.wait_until_succeeds("test $(grep -c 'step-' /tmp/third.err) -ge 10", timeout=300)
    builder2.block()
    client.succeed("sleep 20")
    builder2.unblock()
    finish("third")

with subtest("what was built is whole"):
    client.succeed("nix-store --verify --check-contents")
    for machine in (builder1, builder2):
        machine.succeed("executor verify --check-contents")
