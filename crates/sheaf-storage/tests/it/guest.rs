//! A real guest under QEMU, with a disk through each frontend, while the storage process is killed and started again.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use sheaf_storage::api::{Ask, Attach, FrontendAt, ReplicaAt};

use crate::node::{Node, PATIENCE, base, until};

const BYTES: u64 = 64 << 20;

/// QEMU, with the guest's serial console on its standard input and output.
struct Guest {
    qemu: Child,
    console: Arc<Mutex<String>>,
}

impl Guest {
    /// Waits for a line of the console that has this in it.
    fn says(&self, what: &str) -> String {
        until(&format!("the guest says {what}"), 10 * PATIENCE, || {
            let console = self.console.lock().expect("is whole");
            let line = console.lines().find(|line| line.contains(what));
            line.map(str::to_owned)
                .ok_or_else(|| console.lines().rev().take(8).collect::<Vec<_>>().join("\n"))
        })
    }

    fn types(&mut self, line: &str) {
        let stdin = self.qemu.stdin.as_mut().expect("is piped");
        stdin.write_all(format!("{line}\n").as_bytes()).expect("types");
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

fn image() -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))?;
    Some(cache.join("sheaf/guest/small.img")).filter(|image| image.exists())
}

#[test]
fn a_guest_notices_nothing_but_a_pause() {
    let Some(image) = image() else {
        eprintln!("the small guest is not built (make guest)");
        return;
    };
    let base = base();
    let mut node = Node::start(base.path(), "a", None);
    let sockets = [node.root.join("vhost.sock"), node.root.join("nbd.sock")];
    for (number, socket) in (1..).zip(&sockets) {
        let volume = format!("6f6c0a4e-0000-4000-8000-0000000001{number:02}");
        let name = format!("disk{number}");
        let frontend =
            if number == 1 { FrontendAt::Vhost(socket.clone()) } else { FrontendAt::Nbd(socket.clone()) };
        node.done(&Ask::CreateReplica {
            volume: volume.clone(),
            name: name.clone(),
            replica: 1,
            bytes: BYTES,
            disk: None,
            together_with: vec![1],
            directory: None,
            base: None,
        });
        node.done(&Ask::Attach(Attach {
            volume,
            name,
            bytes: BYTES,
            replicas: vec![ReplicaAt { id: 1, address: None }],
            frontends: vec![frontend],
        }));
    }
    let mut qemu = Command::new("qemu-system-x86_64");
    qemu.args(["-accel", "tcg", "-m", "256", "-nographic", "-no-reboot", "-nic", "none", "-monitor", "none"]);
    qemu.args([
        "-object",
        "memory-backend-memfd,id=memory,size=256M,share=on",
        "-machine",
        "pc,memory-backend=memory",
    ]);
    qemu.arg("-drive").arg(format!("file={},if=none,id=boot,format=raw,snapshot=on", image.display()));
    qemu.args(["-device", "virtio-blk-pci,drive=boot,bootindex=1"]);
    qemu.arg("-chardev").arg(format!("socket,id=vhost,path={},reconnect=1", sockets[0].display()));
    qemu.args(["-device", "vhost-user-blk-pci,chardev=vhost,num-queues=2"]);
    qemu.arg("-blockdev").arg(format!(
        "driver=nbd,node-name=nbd,server.type=unix,server.path={},export=disk2,reconnect-delay=120",
        sockets[1].display()
    ));
    qemu.args(["-device", "virtio-blk-pci,drive=nbd"]);
    let mut qemu = match qemu.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn() {
        Ok(qemu) => qemu,
        Err(error) => {
            eprintln!("QEMU is not on this machine: {error}");
            return;
        }
    };
    let console = Arc::new(Mutex::new(String::new()));
    let (mut out, heard) = (qemu.stdout.take().expect("is piped"), console.clone());
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = out.read(&mut buffer) {
            if count == 0 {
                return;
            }
            heard.lock().expect("is whole").push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    let mut guest = Guest { qemu, console };
    for disk in ["vdb", "vdc"] {
        assert!(guest.says(&format!("disk {disk} {BYTES}")).contains("new boots=1"), "its mark was written");
    }
    guest.says("SHEAF-GUEST ready");
    for (round, disk) in ["vdb", "vdc"].into_iter().enumerate() {
        // Each write goes to the device; the process is killed in the middle of them. The quotes keep the echo of the
        // command from being taken for its answer.
        guest.types(&format!(
            "echo 'BEG''UN-{round}'; dd if=/dev/zero bs=64k count=384 2>/dev/null | tr '\\0' 'x' | dd of=/dev/{disk} bs=64k conv=fsync 2>/tmp/e; echo 'WRI''TTEN-{round}-'$?; cat /tmp/e"
        ));
        guest.says(&format!("BEGUN-{round}"));
        node.kill();
        node.again();
        guest.says(&format!("WRITTEN-{round}-0"));
        guest.types(&format!(
            "echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/{disk} bs=64k count=384 2>/dev/null | tr -d x | wc -c | sed 's/^/OTH''ER-{round}-/'"
        ));
        guest.says(&format!("OTHER-{round}-0"));
    }
    let console = guest.console.lock().expect("is whole").clone();
    assert!(!console.contains("I/O error"), "{console}");
}
