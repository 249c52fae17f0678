//! Plans, applied to the kernel: they hold, are idempotent, and mend what was changed by hand.

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};

use sheaf_net::links::{
    DesiredBridge, DesiredLinks, DesiredTap, Events, Identity, Kernel, LinkKind, LinksPlan, plan_links, tap,
    tap_name,
};
use sheaf_net::nft;

use crate::netns::{inside, ip, run};

fn block_on<T>(future: impl Future<Output = T>) -> T {
    // One thread, so that everything happens in the namespace of the test's thread.
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

async fn converge(kernel: &Kernel, desired: &DesiredLinks) {
    let plan = plan_links(desired, &kernel.observe().await.unwrap());
    assert_eq!(plan.obstacles, []);
    for step in &plan.steps {
        kernel.apply(step).await.unwrap_or_else(|e| panic!("{step:?}: {e:?}"));
    }
    let after = plan_links(desired, &kernel.observe().await.unwrap());
    assert_eq!(after, LinksPlan::default(), "nothing is left to do");
}

#[test]
fn links_are_made_mended_and_removed() {
    inside("kernel::links_are_made_mended_and_removed", &[], || block_on(links()));
}

async fn links() {
    let kernel = Kernel::connect().unwrap();
    let identity = Identity { machine: "uid".into(), nic: "default".into() };
    let name = tap_name(&identity, |_| None).unwrap();
    let mut desired = DesiredLinks {
        bridge: Some(DesiredBridge {
            name: "sheaf0".into(),
            subnet: "10.52.3.0/24".parse().unwrap(),
            mtu: 1400,
        }),
        taps: vec![DesiredTap {
            name: name.clone(),
            identity,
            guest_mac: "52:54:00:00:00:01".parse().unwrap(),
            bridge: "sheaf0".into(),
            vlan: None,
        }],
    };
    let mut events = Events::listen().unwrap();
    converge(&kernel, &desired).await;
    events.changed().await.unwrap();

    let fd = tap::open(&name, 1).unwrap();
    assert!(matches!(tap::open(&name, 1), Err(tap::TapError::Held { .. })));
    // A tap of several queues has a descriptor for each.
    let many = tap::open("shfqueues", 3).unwrap();
    assert_eq!(many.len(), 3);
    drop(many);
    converge(&kernel, &desired).await;
    let observed = kernel.observe().await.unwrap();
    let link = observed.by_name(&name).unwrap();
    assert_eq!(link.kind, LinkKind::Tap);
    assert_eq!(link.alias, "sheaf:nic:uid/default");
    assert!(run("ip", &["-d", "link", "show", &name]).contains("vnet_hdr on persist off"));
    assert_eq!(
        run("ip", &["-6", "addr", "show", "dev", &name]).trim(),
        "",
        "no address of ours where the guest is"
    );

    ip(&["addr flush dev sheaf0", "link set sheaf0 down mtu 1500 alias x"]);
    converge(&kernel, &desired).await;
    ip(&["link del sheaf0"]);
    converge(&kernel, &desired).await;
    let observed = kernel.observe().await.unwrap();
    assert_eq!(observed.by_name(&name).unwrap().master, observed.by_name("sheaf0").map(|b| b.index));

    // Another subnet: the old address goes, one that we did not give stays.
    ip(&["addr add 192.0.2.1/32 dev sheaf0"]);
    desired.bridge.as_mut().unwrap().subnet = "10.52.9.0/24".parse().unwrap();
    converge(&kernel, &desired).await;
    let addresses = &kernel.observe().await.unwrap().by_name("sheaf0").unwrap().addresses.clone();
    assert!(addresses.contains(&("10.52.9.1".parse().unwrap(), 24)), "{addresses:?}");
    assert!(addresses.contains(&("192.0.2.1".parse().unwrap(), 32)), "{addresses:?}");
    assert!(!addresses.contains(&("10.52.3.1".parse().unwrap(), 24)), "{addresses:?}");

    // Taps of ours that nobody holds are removed; those that are held never, nor those of others.
    ip(&["tuntap add other mode tap", "tuntap add stray mode tap", "link set stray alias sheaf:nic:gone/x"]);
    desired.taps.clear();
    converge(&kernel, &desired).await;
    let observed = kernel.observe().await.unwrap();
    assert!(observed.by_name(&name).is_some() && observed.by_name("other").is_some());
    assert!(observed.by_name("stray").is_none());
    drop(fd);

    // Without anybody who holds it, a tap ends.
    let fd = tap::open(&name, 1).unwrap();
    assert!(kernel.observe().await.unwrap().by_name(&name).is_some());
    drop(fd);
    assert!(kernel.observe().await.unwrap().by_name(&name).is_none());
}

#[test]
fn filter_rules_are_applied_once_and_their_loss_is_seen() {
    let name = "kernel::filter_rules_are_applied_once_and_their_loss_is_seen";
    inside(name, &["nft"], || block_on(filter()));
}

async fn filter() {
    let subnet = "10.52.3.0/24".parse().unwrap();
    let first = nft::apply("sheaf0", subnet).await.unwrap();
    assert_eq!(nft::apply("sheaf0", subnet).await.unwrap(), first);
    assert!(nft::is_intact(&first).await.unwrap());
    run("nft", &["flush", "ruleset"]);
    assert!(!nft::is_intact(&first).await.unwrap());

    // As Docker leaves it.
    run(
        "nft",
        &["add table ip filter; add chain ip filter DOCKER-USER; \
                  add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; \
                  add rule ip filter FORWARD jump DOCKER-USER; \
                  add chain ip filter INPUT { type filter hook input priority 0; policy drop; }; \
                  add rule ip filter INPUT ct state established accept"],
    );
    let changed = nft::apply_foreign("sheaf0").await.unwrap();
    assert_eq!(changed.len(), 2, "{changed:?}");
    let rules = run("nft", &["list", "ruleset"]);
    assert!(rules.contains("iifname \"sheaf0\" accept comment \"sheaf.io guests\""), "{rules}");
    assert_eq!(
        nft::apply_foreign("sheaf0").await.unwrap(),
        [""; 0],
        "it is seen that they are there\n{rules}"
    );
    nft::remove("sheaf0").await.unwrap();
    assert!(!run("nft", &["list", "ruleset"]).contains("sheaf"));
    nft::remove("sheaf0").await.unwrap();
}

#[test]
fn a_tap_lives_as_long_as_the_qemu_that_holds_it() {
    let name = "kernel::a_tap_lives_as_long_as_the_qemu_that_holds_it";
    inside(name, &["qemu-system-x86_64"], || block_on(handed_over()));
}

async fn handed_over() {
    let kernel = Kernel::connect().unwrap();
    let fd = tap::open("shftest", 1).unwrap().remove(0);
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let netdev = format!("tap,id=n,fd={}", fd.as_raw_fd());
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-nodefaults", "-display", "none", "-S", "-m", "32", "-accel", "tcg", "-monitor", "stdio"])
        .args(["-netdev", &netdev, "-device", "virtio-net-pci,netdev=n"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // As when the agent dies.
    drop(fd);
    let mut monitor = BufReader::new(qemu.stdout.take().unwrap());
    let mut line = String::new();
    assert_ne!(monitor.read_line(&mut line).unwrap(), 0, "QEMU took the tap");
    assert!(kernel.observe().await.unwrap().by_name("shftest").is_some());
    assert!(matches!(tap::open("shftest", 1), Err(tap::TapError::Held { .. })));
    qemu.kill().unwrap();
    qemu.wait().unwrap();
    assert!(kernel.observe().await.unwrap().by_name("shftest").is_none(), "nobody has to clean up");
}
