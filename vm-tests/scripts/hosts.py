# Fixed-output builds with a policy: a web server in a second machine is reached, one that the policy
# denies and what listens on the builder itself are not.
import json
import shlex


def write(machine, path, text):
    machine.succeed(f"printf %s {shlex.quote(text)} > {path}")


# Not wget: Debian's static busybox crashes when it looks a host up without the files of the C library.
# And the input stays open, because pasta of Debian 12 may lose what follows a half-close.
DOWNLOAD = """
{ printf 'GET /file HTTP/1.0\\r\\n\\r\\n'; busybox sleep 4; } | busybox nc -w 10 HOST PORT > answer
busybox sed '1,/^.$/d' answer | busybox tr -d '\\n' > $out
busybox test -s $out
"""


def instantiate(name, host, port):
    """The .drv of a fixed output that is downloaded by the builder itself; its contents are its name."""
    script = DOWNLOAD.replace("HOST", host).replace("PORT", str(port))
    write(builder, f"/tmp/{name}.sh", script)
    write(
        builder,
        f"/tmp/{name}.nix",
        f"""derivation {{
          name = "{name}"; system = builtins.currentSystem; PATH = "/bin";
          builder = "/bin/sh"; args = [ "-c" (builtins.readFile ./{name}.sh) ];
          outputHashMode = "flat"; outputHashAlgo = "sha256";
          outputHash = builtins.hashString "sha256" "{name}";
        }}""",
    )
    return builder.succeed(f"nix-instantiate /tmp/{name}.nix").strip()


def build(name, host, port):
    """Whether the download worked, and the record of the build."""
    drv = instantiate(name, host, port)
    rules = f"allow {address} tcp 8080; deny any"
    code, text = builder.execute(
        f"executor build --json --option fod-network-rules {shlex.quote(rules)} {drv} 2>/tmp/err"
    )
    log(builder.succeed("cat /tmp/err"))
    return code == 0, json.loads(text)[0]


def serve(machine, port, name, address="0.0.0.0"):
    machine.succeed(f"mkdir -p /srv/{name}")
    write(machine, f"/srv/{name}/file", name)
    machine.succeed(
        f"systemd-run -q python3 -m http.server --bind {address} --directory /srv/{name} {port}"
    )
    machine.wait_for_open_port(port, "127.0.0.1" if address == "0.0.0.0" else address)


start_all()
builder.wait_for_unit("multi-user.target")
server.wait_for_unit("multi-user.target")
address = builder.succeed("getent hosts server").split()[0]
own = builder.succeed("getent hosts builder").split()[0]
serve(server, 8080, "allowed")
serve(server, 8081, "denied")
serve(builder, 8080, "loopback", "127.0.0.1")
serve(builder, 8090, "own")
builder.wait_for_open_port(8080, "server")
builder.wait_for_open_port(8081, "server")

with subtest("what the policy allows is reached"):
    good, record = build("allowed", address, 8080)
    assert good, record
    reached = {
        (one["protocol"], one["address"], one["port"]) for one in record["network"]["contacted"]
    }
    assert ("tcp", address, 8080) in reached, record

with subtest("what it denies is not, and the record says so"):
    good, record = build("denied", address, 8081)
    assert not good, record
    refused = {
        (one["protocol"], one["address"], one["port"]) for one in record["network"]["denied"]
    }
    assert ("tcp", address, 8081) in refused, record

with subtest("nor is the builder's own loopback, nor its address"):
    for host, port in (("127.0.0.1", 8080), ("::1", 8080), ("0.0.0.0", 8080), (own, 8090)):
        good, record = build("own" if host == own else "loopback", host, port)
        assert not good, (host, record)

with subtest("a network that goes away is a failed build, and not a hanging one"):
    builder.block()
    good, record = build("allowed2", address, 8080)
    assert not good, record
    builder.unblock()
    builder.wait_for_open_port(8080, "server")

for machine in machines:
    machine.shutdown()
