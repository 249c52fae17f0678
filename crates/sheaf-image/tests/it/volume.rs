//! Overlays and blank disks as QEMU's own tools see them.

use std::path::Path;
use std::process::Command;

use sheaf_image::probe::{Format, probe_file};
use sheaf_image::volume::{VolumeError, create_blank, create_overlay, grow, size};

use crate::disk;

/// Standard output; `None`, said loudly, if qemu-img is not installed.
fn qemu_img(args: &[&str]) -> Option<String> {
    let output = match Command::new("qemu-img").args(args).output() {
        Ok(output) => output,
        Err(error) => {
            eprintln!("SKIPPED: qemu-img cannot be run ({error}); install the Debian package qemu-utils");
            return None;
        }
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "qemu-img {args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    Some(text)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn overlays_are_what_qemu_makes() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, disk(1 << 20)).unwrap();
    for (format, name) in [(Format::Raw, "raw"), (Format::Qcow2, "qcow2")] {
        if format == Format::Qcow2 {
            let made = dir.path().join("made");
            if qemu_img(&["convert", "-f", "raw", "-O", "qcow2", text(&image), text(&made)]).is_none() {
                return;
            }
            std::fs::rename(made, &image).unwrap();
            let probed = probe_file(&std::fs::File::open(&image).unwrap()).unwrap();
            assert_eq!((probed.format, probed.virtual_size), (Format::Qcow2, 1 << 20));
        }
        let volume = dir.path().join(name);
        for virtual_size in [1 << 20, 10 << 30, 10 << 40_u64] {
            create_overlay(&volume, "disk.qcow2", &image, format, virtual_size).unwrap();
            let overlay = volume.join("disk.qcow2");
            let Some(info) = qemu_img(&["info", "--output=json", "--backing-chain", text(&overlay)]) else {
                return;
            };
            let info: serde_json::Value = serde_json::from_str(&info).unwrap();
            assert_eq!(info[0]["virtual-size"], virtual_size);
            assert_eq!(info[0]["backing-filename"], "base");
            assert_eq!(info[0]["backing-filename-format"], name);
            assert_eq!(info[1]["virtual-size"], 1 << 20);
            assert!(qemu_img(&["check", text(&overlay)]).unwrap().contains("No errors were found"));
            assert!(std::fs::metadata(&overlay).unwrap().len() < 2 << 20);

            let more = virtual_size + (5 << 30);
            grow(&overlay, true, more).unwrap();
            assert_eq!(size(&overlay, true).unwrap(), more);
            let info: serde_json::Value =
                serde_json::from_str(&qemu_img(&["info", "--output=json", text(&overlay)]).unwrap()).unwrap();
            assert_eq!(info["virtual-size"], more);
            assert!(qemu_img(&["check", text(&overlay)]).unwrap().contains("No errors were found"));
        }
    }
    // The overlay shows what the image has, and nothing behind it; also after the image has gone.
    std::fs::remove_file(&image).unwrap();
    create_blank(&dir.path().join("zero"), 512).unwrap();
    create_overlay_contents(dir.path());
}

fn create_overlay_contents(dir: &Path) {
    let overlay = dir.join("raw/disk.qcow2");
    let out = dir.join("out");
    let args = ["dd", "-f", "qcow2", "-O", "raw", "bs=1M", "count=2"];
    let (from, to) = (format!("if={}", text(&overlay)), format!("of={}", text(&out)));
    qemu_img(&[&args[..], &[&from, &to]].concat()).unwrap();
    let mut expected = disk(1 << 20);
    expected.resize(2 << 20, 0);
    assert!(std::fs::read(out).unwrap() == expected);
}

#[test]
fn blank_disks_take_no_space_and_grow() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/disk.img");
    create_blank(&path, 100 << 30).unwrap();
    assert_eq!((size(&path, false).unwrap(), std::fs::metadata(&path).unwrap().blocks()), (100 << 30, 0));
    grow(&path, false, 200 << 30).unwrap();
    grow(&path, false, 200 << 30).unwrap();
    assert_eq!(size(&path, false).unwrap(), 200 << 30);
    assert!(matches!(grow(&path, false, 1 << 30), Err(VolumeError::Shrink { .. })));
    assert!(grow(&path, false, (200 << 30) + 1).is_err());
    assert!(create_blank(&path, 0).is_err());
}
