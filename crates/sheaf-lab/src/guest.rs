//! The small guest (see `guest/small` in the repository): where its image is, and getting it into a lab.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::run::Lab;
use crate::wait::{Deadline, wait_for};

/// The image, which `make guest` makes: `SHEAF_SMALL_GUEST`, or where that puts it.
pub fn small_guest_image() -> Result<PathBuf> {
    let path = match std::env::var_os("SHEAF_SMALL_GUEST") {
        Some(path) => PathBuf::from(path),
        None => {
            let home = || std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".cache"));
            let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
            cache.context("neither XDG_CACHE_HOME nor HOME is set")?.join("sheaf/guest/small.img")
        }
    };
    if !path.exists() {
        bail!(
            "there is no {}: run `make guest` first, or name the image in SHEAF_SMALL_GUEST",
            path.display()
        );
    }
    Ok(path)
}

impl Lab {
    /// Uploads the small guest as the image `default/small`, as the dashboard and Terraform do, and waits until it is
    /// imported.
    pub async fn import_small_guest(&self) -> Result<()> {
        self.import_image("small", &small_guest_image()?).await
    }

    /// Uploads a file as the image `default/NAME`.
    pub async fn import_image(&self, name: &str, file: &Path) -> Result<()> {
        self.apply(&format!(
            "apiVersion: harvesterhci.io/v1beta1\nkind: VirtualMachineImage\n\
             metadata: {{name: {name}, namespace: default}}\nspec: {{displayName: {name}, sourceType: upload}}\n"
        ))
        .await?;
        self.upload(&format!("/v1/harvester/harvesterhci.io.virtualmachineimages/default/{name}"), file)
            .await?;
        let path = format!("/apis/harvesterhci.io/v1beta1/namespaces/default/virtualmachineimages/{name}");
        let imported = |image: &serde_json::Value| condition(image, "Imported").0 == "True";
        let what = format!("the image {name} to be imported");
        self.wait_object(&what, &path, Deadline::GUEST, imported).await.map(drop)
    }

    /// The upload action of an image: a multipart form with the file as `chunk`.
    async fn upload(&self, path: &str, image: &Path) -> Result<()> {
        let [ca, cert, key] = self.credentials().await?;
        let size = std::fs::metadata(image).context("looking at the image")?.len();
        let url = format!("https://127.0.0.1:6443{path}?action=upload&size={size}");
        let form = format!("chunk=@{}", image.display());
        let patience = (60 * crate::wait::slow()).to_string();
        let tls = ["--cacert", &ca, "--cert", &cert, "--key", &key];
        wait_for("the image to be uploaded", Deadline::SOON, async || {
            let args =
                [&["-sS", "--fail-with-body", "--max-time", &patience], &tls[..], &["-F", &form, &url]]
                    .concat();
            let out = self.command("curl", &args).await.map_err(|e| format!("{e:#}"))?;
            // Until a node is chosen the server may ask to come back.
            if out.code == 0 { Ok(()) } else { Err(format!("{}{}", out.stderr, out.stdout)) }
        })
        .await
    }

    /// The manifests of a VM `name` that boots the small guest from a claim of its own, with more lines for its spec.
    pub fn small_vm(name: &str, strategy: &str, more_template_spec: &str) -> String {
        format!(
            r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: {name}-root
  namespace: default
  annotations:
    harvesterhci.io/imageId: default/small
spec:
  accessModes: [ReadWriteOnce]
  volumeMode: Block
  resources:
    requests:
      storage: 64Mi
---
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: {name}
  namespace: default
spec:
  runStrategy: {strategy}
  template:
    spec:
      terminationGracePeriodSeconds: 60
      domain:
        cpu:
          cores: 1
        memory:
          guest: 160Mi
        devices:
          disks:
            - name: root
              disk:
                bus: virtio
            - name: cloudinit
              disk:
                bus: virtio
          interfaces:
            - name: default
              masquerade: {{}}
      networks:
        - name: default
          pod: {{}}
      volumes:
        - name: root
          persistentVolumeClaim:
            claimName: {name}-root
        - name: cloudinit
          cloudInitNoCloud:
            userData: |
              #cloud-config
              hostname: {name}
{more_template_spec}"#
        )
    }
}

/// Status, reason and message of a condition of an object; empty if it has none of that type.
pub fn condition(object: &serde_json::Value, kind: &str) -> (String, String, String) {
    let text = |c: &serde_json::Value, field: &str| c[field].as_str().unwrap_or_default().to_owned();
    let list = object["status"]["conditions"].as_array();
    let found = list.and_then(|l| l.iter().find(|c| c["type"] == kind));
    found.map(|c| (text(c, "status"), text(c, "reason"), text(c, "message"))).unwrap_or_default()
}
