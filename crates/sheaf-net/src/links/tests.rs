//! Plans as tables, and one property: whatever the kernel says, applying a plan leaves nothing to do.

use proptest::prelude::*;

use super::*;

const BR: &str = "sheaf0";

fn subnet(text: &str) -> Subnet {
    text.parse().unwrap()
}

fn identity(machine: &str) -> Identity {
    Identity { machine: machine.into(), nic: "default".into() }
}

fn guest_mac() -> Mac {
    Mac([0x52, 0x54, 0, 0, 0, 1])
}

fn link(index: u32, name: &str, kind: LinkKind) -> ObservedLink {
    ObservedLink {
        index,
        name: name.into(),
        kind,
        up: true,
        mtu: 1500,
        mac: Some(Mac([2, 0, 0, 0, 0, 9])),
        master: None,
        alias: String::new(),
        addresses: Vec::new(),
        carrier: true,
        vlans: Vec::new(),
    }
}

const PLAIN: LinkKind = LinkKind::Bridge { vlan_filtering: false };
const FILTERING: LinkKind = LinkKind::Bridge { vlan_filtering: true };

fn our_bridge() -> ObservedLink {
    let subnet = subnet("10.52.3.0/24");
    ObservedLink {
        mac: Some(subnet.gateway_mac()),
        alias: bridge_alias(subnet),
        addresses: vec![(subnet.gateway(), 24)],
        ..link(5, BR, PLAIN)
    }
}

fn our_tap(master: u32) -> ObservedLink {
    ObservedLink {
        mac: Some(guest_mac().host_end()),
        master: Some(master),
        alias: identity("m").alias(),
        ..link(7, "shf1", LinkKind::Tap)
    }
}

fn desired(bridge: &str, vlan: Option<u16>) -> DesiredLinks {
    DesiredLinks {
        bridge: Some(DesiredBridge { name: BR.into(), subnet: subnet("10.52.3.0/24"), mtu: 1500 }),
        taps: vec![DesiredTap {
            name: "shf1".into(),
            identity: identity("m"),
            guest_mac: guest_mac(),
            bridge: bridge.into(),
            vlan,
        }],
    }
}

fn plan(desired: &DesiredLinks, links: Vec<ObservedLink>) -> LinksPlan {
    plan_links(desired, &ObservedLinks { links })
}

#[test]
fn an_empty_kernel_gets_a_bridge_and_no_tap() {
    let plan = plan(&desired(BR, None), vec![]);
    let link = || BR.to_owned();
    let subnet = subnet("10.52.3.0/24");
    assert_eq!(plan.obstacles, []);
    assert_eq!(
        plan.steps,
        [
            Step::CreateBridge { name: link(), mac: subnet.gateway_mac() },
            Step::AddAddress { link: link(), address: subnet.gateway(), prefix_len: 24 },
            Step::SetAlias { link: link(), alias: "sheaf:management 10.52.3.0/24".into() },
            Step::SetUp { link: link() },
        ]
    );
}

#[test]
fn what_is_right_is_left_alone() {
    let links =
        vec![our_bridge(), our_tap(5), link(1, "lo", LinkKind::Other), link(9, "tap9", LinkKind::Tap)];
    assert_eq!(plan(&desired(BR, None), links), LinksPlan::default());
    assert_eq!(plan(&DesiredLinks::default(), vec![our_bridge(), our_tap(5)]), LinksPlan::default());
}

#[test]
fn a_fresh_tap_is_marked_before_it_is_plugged_in_and_set_up_last() {
    let fresh = ObservedLink { up: false, ..link(7, "shf1", LinkKind::Tap) };
    let steps = plan(&desired(BR, None), vec![our_bridge(), fresh]).steps;
    let link = || "shf1".to_owned();
    assert_eq!(
        steps,
        [
            Step::SetAlias { link: link(), alias: "sheaf:nic:m/default".into() },
            Step::SetMac { link: link(), mac: guest_mac().host_end() },
            Step::SetMaster { link: link(), bridge: BR.into() },
            Step::SetUp { link: link() },
        ]
    );
}

#[test]
fn a_tap_follows_the_mtu_of_its_bridge() {
    let lan = ObservedLink { mtu: 9000, ..link(3, "lan", PLAIN) };
    let steps = plan(&desired("lan", None), vec![our_bridge(), lan, our_tap(3)]).steps;
    assert_eq!(steps, [Step::SetMtu { link: "shf1".into(), mtu: 9000 }]);
}

#[test]
fn only_taps_are_deleted_that_are_ours_and_that_nobody_holds() {
    let stray =
        |carrier, name: &str, kind, alias: String| ObservedLink { carrier, alias, ..link(8, name, kind) };
    let ours = || identity("gone").alias();
    let links = vec![
        our_bridge(),
        our_tap(5),
        stray(false, "shf2", LinkKind::Tap, ours()),
        stray(true, "shf3", LinkKind::Tap, ours()),
        stray(false, "eth0", LinkKind::Other, ours()),
        stray(false, "tap0", LinkKind::Tap, "vpn".into()),
    ];
    assert_eq!(plan(&desired(BR, None), links).steps, [Step::Delete { link: "shf2".into() }]);
}

#[test]
fn obstacles_name_what_is_in_the_way() {
    let taken = plan(&desired(BR, None), vec![link(3, BR, LinkKind::Other)]);
    assert_eq!(taken.obstacles.first(), Some(&Obstacle::NotABridge { name: BR.into() }));
    assert_eq!(taken.steps, []);

    let missing = plan(&desired("lan", None), vec![our_bridge(), our_tap(0)]);
    assert_eq!(missing.obstacles, [Obstacle::BridgeMissing { bridge: "lan".into(), tap: "shf1".into() }]);

    let links = vec![our_bridge(), our_tap(0), link(3, "lan", LinkKind::Other)];
    let wrong = plan(&desired("lan", None), links);
    assert_eq!(wrong.obstacles, [Obstacle::NotTheBridge { bridge: "lan".into(), tap: "shf1".into() }]);
}

#[test]
fn a_vlan_needs_a_bridge_that_filters_and_is_never_given_without() {
    let links = vec![our_bridge(), ObservedLink { master: None, ..our_tap(0) }, link(3, "lan", PLAIN)];
    let without = plan(&desired("lan", Some(10)), links);
    let text = without.obstacles.first().map(ToString::to_string).unwrap_or_default();
    assert!(text.contains("bridge lan does not filter VLANs") && text.contains("VLAN 10"), "{text}");
    assert_eq!(without.steps, [], "not plugged in");

    let links = vec![our_bridge(), ObservedLink { master: None, ..our_tap(0) }, link(3, "lan", FILTERING)];
    let steps = plan(&desired("lan", Some(10)), links).steps;
    let link_name = || "shf1".to_owned();
    let set = |remove| Step::SetPortVlan { link: link_name(), vlan: 10, remove };
    assert_eq!(steps, [Step::SetMaster { link: link_name(), bridge: "lan".into() }, set(vec![1])]);

    let vlans = vec![PortVlan { id: 10, access: true }];
    let right = ObservedLink { vlans, ..our_tap(3) };
    let links = vec![our_bridge(), right, link(3, "lan", FILTERING)];
    assert_eq!(plan(&desired("lan", Some(10)), links).steps, []);

    let vlans = vec![PortVlan { id: 1, access: true }, PortVlan { id: 10, access: false }];
    let wrong = ObservedLink { vlans, ..our_tap(3) };
    let links = vec![our_bridge(), wrong, link(3, "lan", FILTERING)];
    assert_eq!(plan(&desired("lan", Some(10)), links).steps, [set(vec![1])]);
}

/// What the kernel would make of a step.
fn simulate(observed: &mut ObservedLinks, step: &Step) {
    let index_of = |observed: &ObservedLinks, name: &str| observed.by_name(name).map(|l| l.index);
    let next = observed.links.iter().map(|l| l.index).max().unwrap_or(0) + 1;
    let target = match step {
        Step::CreateBridge { name, mac } => {
            assert!(observed.by_name(name).is_none(), "made twice");
            observed.links.push(ObservedLink { up: false, mac: Some(*mac), ..link(next, name, PLAIN) });
            return;
        }
        Step::Delete { link } => {
            observed.links.retain(|l| l.name != *link);
            return;
        }
        Step::SetMaster { bridge, .. } => index_of(observed, bridge),
        _ => None,
    };
    let name = match step {
        Step::SetAlias { link, .. }
        | Step::SetMac { link, .. }
        | Step::SetMtu { link, .. }
        | Step::AddAddress { link, .. }
        | Step::DeleteAddress { link, .. }
        | Step::SetMaster { link, .. }
        | Step::SetPortVlan { link, .. }
        | Step::SetUp { link } => link,
        Step::CreateBridge { .. } | Step::Delete { .. } => return,
    };
    let link = observed.links.iter_mut().find(|l| l.name == *name).expect("a step on a link that exists");
    match step {
        Step::SetAlias { alias, .. } => link.alias.clone_from(alias),
        Step::SetMac { mac, .. } => link.mac = Some(*mac),
        Step::SetMtu { mtu, .. } => link.mtu = *mtu,
        Step::AddAddress { address, prefix_len, .. } => link.addresses.push((*address, *prefix_len)),
        Step::DeleteAddress { address, prefix_len, .. } => {
            link.addresses.retain(|a| *a != (*address, *prefix_len));
        }
        Step::SetMaster { .. } => link.master = Some(target.expect("a bridge that exists")),
        Step::SetPortVlan { vlan, .. } => link.vlans = vec![PortVlan { id: *vlan, access: true }],
        Step::SetUp { .. } => link.up = true,
        Step::CreateBridge { .. } | Step::Delete { .. } => {}
    }
}

prop_compose! {
    fn any_link(index: u32, name: &'static str)(
        kind in prop_oneof![Just(PLAIN), Just(FILTERING), Just(LinkKind::Tap), Just(LinkKind::Other)],
        up: bool,
        carrier: bool,
        mtu in prop_oneof![Just(1500_u32), Just(1400), Just(9000)],
        master in prop_oneof![Just(None), Just(Some(1_u32)), Just(Some(2))],
        alias in prop_oneof![Just(""), Just("sheaf:nic:m/default"), Just("sheaf:nic:other/x"),
                             Just("sheaf:management 10.52.9.0/24"), Just("uplink")],
        addresses in proptest::collection::vec(
            prop_oneof![Just(("10.52.9.1", 24)), Just(("10.52.3.1", 24)), Just(("192.0.2.1", 32))], 0..3),
    ) -> ObservedLink {
        let addresses = addresses.into_iter().map(|(a, len): (&str, u8)| (a.parse().unwrap(), len)).collect();
        ObservedLink { kind, up, carrier, mtu, master, alias: alias.into(), addresses, ..link(index, name, kind) }
    }
}

proptest! {
    #[test]
    fn applying_a_plan_leaves_nothing_to_do_and_others_links_alone(
        ours in proptest::option::of(any_link(1, BR)),
        lan in proptest::option::of(any_link(2, "lan")),
        tap in proptest::option::of(any_link(3, "shf1")),
        other in any_link(4, "other"),
        on_lan: bool,
        vlan in proptest::option::of(1_u16..4095),
    ) {
        let desired = desired(if on_lan { "lan" } else { BR }, vlan.filter(|_| on_lan));
        let mut observed = ObservedLinks { links: [ours, lan, tap, Some(other)].into_iter().flatten().collect() };
        let before = observed.clone();
        let first = plan_links(&desired, &observed);
        for step in &first.steps {
            simulate(&mut observed, step);
        }
        let second = plan_links(&desired, &observed);
        prop_assert_eq!(&second.steps, &vec![], "after {:?}", first.steps);
        for link in &before.links {
            let ours = [BR, "shf1"].contains(&link.name.as_str()) || link.alias.starts_with("sheaf:nic:");
            if !ours {
                prop_assert_eq!(observed.by_name(&link.name), Some(link));
            }
        }
    }
}
