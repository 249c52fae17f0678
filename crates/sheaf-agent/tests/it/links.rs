//! The management network as a guest sees it: a real DHCP client in a namespace that is plugged into the bridge, and a
//! third namespace as the outside.

use std::io::Read as _;
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use sheaf_agent::links::{Links, LinksConfig};
use sheaf_agent::parts::{Mac, Network as _, NicRequest, NicTarget, PartError};
use sheaf_net::Subnet;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::netns::{Netns, inside, ip, run, wait};

const GUEST: Mac = Mac([0x52, 0x54, 0, 0, 0, 1]);
const SCRIPT: &str = "#!/bin/sh
case $1 in
deconfig) ip link set $interface up ;;
bound|renew)
  ip addr flush dev $interface
  ip addr add $ip/$mask dev $interface
  ip route replace default via $router
  echo \"ip=$ip router=$router dns=$dns domain=$domain mtu=$mtu hostname=$hostname lease=$lease\" > $OUT ;;
esac
";

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(15)
}

/// The agent's part under test, with a restart.
struct Agent {
    runtime: Runtime,
    config: LinksConfig,
    subnet: watch::Sender<Option<Subnet>>,
    links: Links,
    task: JoinHandle<()>,
}

impl Agent {
    fn start(directory: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut config = LinksConfig::new("node-a", directory.join("network"));
        config.resolv_conf = directory.join("resolv.conf");
        std::fs::write(&config.resolv_conf, "# as systemd-resolved does\nnameserver 127.0.0.53\n").unwrap();
        let subnet = watch::Sender::new(None);
        let (links, task) = Self::spawn(&runtime, &config, &subnet);
        Self { runtime, config, subnet, links, task }
    }

    fn spawn(
        runtime: &Runtime,
        config: &LinksConfig,
        subnet: &watch::Sender<Option<Subnet>>,
    ) -> (Links, JoinHandle<()>) {
        let (links, owner) = Links::new(config.clone(), subnet.subscribe()).unwrap();
        (
            links,
            runtime.spawn(async move {
                owner.run().await.unwrap();
            }),
        )
    }

    /// With an API server that cannot be reached yet: the node has to remember its subnet itself.
    fn restart(&mut self) {
        self.stop();
        self.subnet = watch::Sender::new(None);
        (self.links, self.task) = Self::spawn(&self.runtime, &self.config, &self.subnet);
    }

    /// As by SIGKILL: nothing is torn down.
    fn stop(&mut self) {
        if !self.task.is_finished() {
            self.task.abort();
            let _ = self.runtime.block_on(&mut self.task);
        }
    }

    fn until_ready(&self) {
        wait("the management network", soon(), || {
            let status = self.links.status().borrow().clone();
            if status.ready { Ok(()) } else { Err(format!("{status:?}")) }
        });
    }

    fn attach(&self, nic: &NicRequest) -> Result<sheaf_agent::parts::Tap, PartError> {
        self.runtime.block_on(self.links.attach(nic))
    }
}

fn nic(machine: &str, mac: Mac, target: NicTarget) -> NicRequest {
    NicRequest {
        machine: machine.into(),
        name: "default".into(),
        mac,
        target,
        hostname: "web".into(),
        queues: 1,
    }
}

/// A namespace with `eth0`, whose other end is `port` in ours.
fn peer(port: &str, mac: Mac) -> Netns {
    let netns = Netns::new();
    // A fixed address on this side too: a random one could be the highest of a bridge.
    let near = Mac([2, 0xaa, mac.0[5], 0, 0, 0]);
    ip(&[&format!(
        "link add {port} address {near} type veth peer name eth0 address {mac} netns {}",
        netns.pid()
    )]);
    ip(&[&format!("link set {port} up")]);
    netns.run("ip", &["link", "set", "eth0", "up"]);
    netns
}

/// A process that ends with the test.
struct Ending(Child);

impl Drop for Ending {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct DhcpClient {
    directory: PathBuf,
}

impl DhcpClient {
    fn new(directory: &Path) -> Self {
        let script = directory.join("udhcpc.sh");
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self { directory: directory.to_owned() }
    }

    /// What the client was told, if it got a lease.
    fn run(&self, netns: &Netns, tries: u32) -> Option<String> {
        let out = self.directory.join("lease");
        let _ = std::fs::remove_file(&out);
        let output = netns
            .command("busybox")
            .args(["udhcpc", "-f", "-n", "-q", "-i", "eth0", "-T", "1", "-t", &tries.to_string(), "-s"])
            .arg(self.directory.join("udhcpc.sh"))
            .args(["-O", "mtu", "-O", "hostname", "-O", "domain", "-O", "dns"])
            .env("OUT", &out)
            .output()
            .unwrap();
        let text = std::fs::read_to_string(&out).ok();
        assert_eq!(output.status.success(), text.is_some(), "{output:?}");
        text
    }
}

fn field<'a>(lease: &'a str, name: &str) -> &'a str {
    lease.split_whitespace().find_map(|w| w.strip_prefix(name)?.strip_prefix('=')).unwrap_or_default()
}

#[test]
fn a_guest_gets_address_names_and_a_way_out() {
    let name = "links::a_guest_gets_address_names_and_a_way_out";
    inside(name, &["nft", "busybox"], || guest_story(tempfile::tempdir().unwrap().path()));
}

fn guest_story(directory: &Path) {
    let outside = peer("up0", Mac([2, 0, 0, 0, 0, 2]));
    ip(&["addr add 198.51.100.1/24 dev up0", "link set up0 mtu 1400", "route add default via 198.51.100.2"]);
    outside.run("ip", &["addr", "add", "198.51.100.2/24", "dev", "eth0"]);

    let mut agent = Agent::start(directory);
    let request = nic("uid-1", GUEST, NicTarget::Management);
    let refused = agent.attach(&request).unwrap_err();
    assert!(
        matches!(&refused, PartError::Missing(t) if t.contains("node-a") && t.contains("podCIDR")),
        "{refused:?}"
    );
    agent.subnet.send_replace(Some("10.52.3.0/24".parse().unwrap()));
    agent.until_ready();
    let tap = agent.attach(&request).unwrap();
    let twin = agent.attach(&nic("uid-2", GUEST, NicTarget::Management)).unwrap_err();
    assert!(matches!(&twin, PartError::Missing(t) if t.contains("uid-1")), "{twin:?}");

    // A lease, with all that a guest needs.
    let guest = peer("c0", GUEST);
    ip(&["link set c0 master sheaf0"]);
    let client = DhcpClient::new(directory);
    let mut changes = agent.links.leases_changed();
    changes.mark_unchanged();
    let lease = client.run(&guest, 10).expect("a lease");
    assert_eq!(field(&lease, "router"), "10.52.3.1", "{lease}");
    assert_eq!(field(&lease, "dns"), "10.52.3.1", "{lease}");
    assert_eq!(field(&lease, "domain"), "sheaf.internal", "{lease}");
    assert_eq!(field(&lease, "hostname"), "web", "{lease}");
    assert_eq!(field(&lease, "mtu"), "1400", "as that of the way out: {lease}");
    let address: Ipv4Addr = field(&lease, "ip").parse().unwrap();
    assert_eq!(agent.links.lease(GUEST), Some(address.into()));
    assert!(changes.has_changed().unwrap());

    // The host, both ways, and the outside, which has no route back but to the host.
    guest.run("busybox", &["ping", "-c", "1", "-W", "5", "10.52.3.1"]);
    run("busybox", &["ping", "-c", "1", "-W", "5", &address.to_string()]);
    std::fs::write(directory.join("hello"), "hello from outside").unwrap();
    let www = directory.to_str().unwrap();
    let httpd =
        outside.command("busybox").args(["httpd", "-f", "-p", "198.51.100.2:8080", "-h", www]).spawn();
    let httpd = Ending(httpd.unwrap());
    wait("an answer from outside", soon(), || {
        let get = "printf 'GET /hello HTTP/1.0\\r\\n\\r\\n' | busybox nc -w 2 198.51.100.2 8080";
        let got = guest.command("sh").args(["-c", get]).output().unwrap();
        if got.stdout.ends_with(b"hello from outside") { Ok(()) } else { Err(format!("{got:?}")) }
    });
    drop(httpd);

    names(&guest, address);
    survives_a_restart(&mut agent, &guest, &client, address, &tap.ifname);
    heals(&agent, &tap.ifname, &guest, &client, address);

    // A NIC that we did not attach gets nothing, and neither does one that was detached.
    let stranger = peer("c1", Mac([0x52, 0x54, 0, 0, 0, 9]));
    ip(&["link set c1 master sheaf0"]);
    assert_eq!(client.run(&stranger, 2), None);
    agent.runtime.block_on(agent.links.detach("uid-1")).unwrap();
    assert_eq!(agent.links.lease(GUEST), None);
    assert!(!run("ip", &["link"]).contains(&tap.ifname));
    agent.runtime.block_on(agent.links.detach("uid-1")).unwrap();
    // A machine that comes again, as another object, has its address again.
    let _tap = agent.attach(&nic("uid-2", GUEST, NicTarget::Management)).unwrap();
    let lease = client.run(&guest, 10).expect("a lease");
    assert_eq!(field(&lease, "ip"), address.to_string());

    // And clean again.
    agent.stop();
    for _ in 0..2 {
        agent.runtime.block_on(sheaf_agent::links::remove_all(&agent.config)).unwrap();
    }
    assert!(!run("ip", &["link"]).contains("sheaf0"));
    assert_eq!(run("nft", &["list", "ruleset"]), "");
}

fn names(guest: &Netns, address: Ipv4Addr) {
    // Without an answer from the resolver of the host: a failure, quickly, and no silence.
    let lookup = |name: &str| {
        let output = guest.command("busybox").args(["nslookup", name, "10.52.3.1"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for name in ["web.sheaf.internal", "web"] {
        let answer = lookup(name);
        assert!(answer.contains(&format!("Address: {address}")), "{name}: {answer}");
    }
    assert!(lookup(&address.to_string()).contains("web.sheaf.internal"));
    assert!(lookup("nobody.sheaf.internal").contains("NXDOMAIN"));
    let resolver = UdpSocket::bind("127.0.0.53:53").unwrap();
    let upstream = std::thread::spawn(move || answer_queries(&resolver));
    let answer = lookup("example.org");
    assert!(answer.contains("Address: 192.0.2.99"), "{answer}");
    let _ = lookup("end.example.org");
    upstream.join().unwrap();
    assert!(lookup("example.org").contains("SERVFAIL"), "no resolver answers any more");
}

/// A resolver that knows one address; ends after a query for a name that begins with `end`.
fn answer_queries(socket: &UdpSocket) {
    let mut buffer = [0; 512];
    loop {
        let (len, peer) = socket.recv_from(&mut buffer).unwrap();
        let query = &buffer[..len];
        let wants_address = query[len - 4..] == [0, 1, 0, 1];
        let mut reply = query.to_vec();
        reply[2] |= 0x80;
        if wants_address {
            reply[7] = 1;
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 99]);
        }
        socket.send_to(&reply, peer).unwrap();
        if query[12..].starts_with(b"\x03end") && wants_address {
            return;
        }
    }
}

fn survives_a_restart(agent: &mut Agent, guest: &Netns, client: &DhcpClient, address: Ipv4Addr, tap: &str) {
    let orphan =
        agent.attach(&nic("uid-orphan", Mac([0x52, 0x54, 0, 0, 0, 7]), NicTarget::Management)).unwrap();
    agent.restart();
    agent.until_ready();
    let adopted = nic("uid-1", GUEST, NicTarget::Management);
    agent.runtime.block_on(agent.links.adopt(&adopted)).unwrap();
    assert_eq!(agent.links.lease(GUEST), Some(address.into()), "from the file");
    // Somebody holds it, so it is some guest's; one that nobody holds is nobody's.
    ip(&["tuntap add stray mode tap", "link set stray alias sheaf:nic:gone/x"]);
    wait("the stray tap to go", soon(), || {
        let links = run("ip", &["link"]);
        if links.contains("stray") { Err(links) } else { Ok(()) }
    });
    let links = run("ip", &["link"]);
    assert!(links.contains(&orphan.ifname) && links.contains(tap), "{links}");
    let lease = client.run(guest, 10).expect("a lease");
    assert_eq!(field(&lease, "ip"), address.to_string());
}

fn heals(agent: &Agent, tap: &str, guest: &Netns, client: &DhcpClient, address: Ipv4Addr) {
    ip(&["addr del 10.52.3.1/24 dev sheaf0"]);
    wait("the address to come back", soon(), || {
        let state = run("ip", &["-4", "addr", "show", "sheaf0"]);
        if state.contains("10.52.3.1/24") { Ok(()) } else { Err(state) }
    });
    ip(&["link del sheaf0"]);
    wait("the bridge to come back with the tap", soon(), || {
        let state = run("ip", &["link", "show", tap]);
        if state.contains("master sheaf0") { Ok(()) } else { Err(state) }
    });
    agent.until_ready();
    ip(&["link set c0 master sheaf0"]);
    let lease = client.run(guest, 10).expect("a lease from the bridge that was made anew");
    assert_eq!(field(&lease, "ip"), address.to_string());
}

#[test]
fn nics_on_bridges_of_the_node() {
    inside("links::nics_on_bridges_of_the_node", &["nft"], || {
        bridge_story(tempfile::tempdir().unwrap().path());
    });
}

fn bridge_story(directory: &Path) {
    let agent = Agent::start(directory);
    let on = |vlan| nic("uid-1", GUEST, NicTarget::Bridge { name: "br-lan".into(), vlan });
    let missing = agent.attach(&on(None)).unwrap_err();
    assert!(
        matches!(&missing, PartError::Missing(t) if t.contains("br-lan") && t.contains("node-a")),
        "{missing:?}"
    );
    ip(&["link add br-lan type bridge", "link set br-lan up"]);
    let _lan = peer("uplink", Mac([2, 0, 0, 0, 0, 3]));
    ip(&["link set uplink mtu 1450 master br-lan"]);
    let refused = agent.attach(&on(Some(10))).unwrap_err();
    assert!(matches!(&refused, PartError::Refused(t) if t.contains("VLAN 10")), "{refused:?}");
    assert!(!run("ip", &["link"]).contains("shf"), "nothing is left of the failed attempts");

    let before = run("ip", &["link", "show", "br-lan"]);
    let tap = agent.attach(&on(None)).unwrap();
    let state = run("ip", &["link", "show", &tap.ifname]);
    assert!(state.contains("master br-lan") && state.contains("mtu 1450"), "{state}");
    let mac = |text: &str| text.split("link/ether ").nth(1).map(|t| t[..17].to_owned());
    assert_eq!(mac(&before), mac(&run("ip", &["link", "show", "br-lan"])), "the bridge keeps its address");
    // Pulled out by hand: plugged in again.
    ip(&[&format!("link set {} nomaster", tap.ifname)]);
    wait("the tap to be plugged in again", soon(), || {
        let state = run("ip", &["link", "show", &tap.ifname]);
        if state.contains("master br-lan") { Ok(()) } else { Err(state) }
    });
    // The machine ends, and with it whoever holds the tap.
    drop(tap.queues);
    wait("the tap to end", soon(), || {
        let links = run("ip", &["link"]);
        if links.contains(&tap.ifname) { Err(links) } else { Ok(()) }
    });
    let again = agent.attach(&on(None)).unwrap();
    assert_eq!(again.ifname, tap.ifname);
}

/// The small guest that `make` prepares; other tests build it, this one takes it if it is there.
fn small_guest() -> Option<PathBuf> {
    let image = Path::new(&std::env::var_os("HOME")?).join(".cache/sheaf/guest/small.img");
    image.exists().then_some(image)
}

#[test]
fn a_real_guest_outlives_the_agent() {
    let name = "links::a_real_guest_outlives_the_agent";
    let Some(image) = small_guest() else {
        eprintln!("SKIPPED {name}: the small guest is not built (guest/small/build.sh)");
        return;
    };
    inside(name, &["nft", "qemu-system-x86_64"], || {
        real_guest_story(tempfile::tempdir().unwrap().path(), &image);
    });
}

fn real_guest_story(directory: &Path, image: &Path) {
    let mut agent = Agent::start(directory);
    agent.subnet.send_replace(Some("10.52.3.0/24".parse().unwrap()));
    agent.until_ready();
    let request = nic("uid-1", GUEST, NicTarget::Management);
    let tap = agent.attach(&request).unwrap();
    rustix::io::fcntl_setfd(&tap.queues[0], rustix::io::FdFlags::empty()).unwrap();
    let console = directory.join("console");
    let qemu = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-m", "160", "-accel", "tcg", "-snapshot"])
        .arg("-drive")
        .arg(format!("file={},format=raw,if=virtio", image.display()))
        .args(["-netdev", &format!("tap,id=n,fd={}", tap.queues[0].as_raw_fd())])
        .args(["-device", &format!("virtio-net-pci,netdev=n,mac={GUEST}")])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .spawn();
    let qemu = Ending(qemu.unwrap());
    drop(tap.queues);

    let deadline = Instant::now() + Duration::from_secs(60);
    let address = wait("the guest's lease", deadline, || {
        agent.links.lease(GUEST).ok_or_else(|| std::fs::read_to_string(&console).unwrap_or_default())
    });
    let greet = |when: &str| {
        wait(&format!("the guest's greeting {when}"), soon(), || {
            let mut text = String::new();
            let stream = TcpStream::connect_timeout(&(address, 22).into(), Duration::from_secs(2));
            match stream.and_then(|mut s| s.read_to_string(&mut text)) {
                Ok(_) if text.starts_with("sheaf-guest") => Ok(()),
                other => Err(format!("{other:?} {text}")),
            }
        });
    };
    greet("with the agent");
    let seen = std::fs::read_to_string(&console).unwrap();
    assert!(seen.contains(&format!("ip={address}/24 router=10.52.3.1 dns=10.52.3.1 hostname=web")), "{seen}");
    agent.stop();
    greet("without the agent");
    agent.restart();
    agent.until_ready();
    agent.runtime.block_on(agent.links.adopt(&request)).unwrap();
    greet("after the agent came back");
    assert_eq!(agent.links.lease(GUEST), Some(address));
    drop(qemu);
    assert!(!run("ip", &["link"]).contains(&tap.ifname), "ended with its QEMU");
}
