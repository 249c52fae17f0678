//! Netlink, nftables, DHCP and DNS: desired state against the kernel's.
