//! Images and volumes against the real API server: what a user sees, and what lies on the disk.

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use sheaf_agent::http::{Routes, serve};
use sheaf_agent::identity::{Identity, KeyedCertificate};
use sheaf_agent::images::{Images, plan::condition};
use sheaf_agent::parts::{DiskFormat, DiskSource, PartError, VolumeBackend};
use sheaf_agent::volumes::{Caches, Volumes, users_of};
use sheaf_api::harvester::{VirtualMachineImage, VirtualMachineImageStatus};
use sheaf_api::kubevirt::VirtualMachineInstance;
use sheaf_apiserver::authn::{MASTERS, NODES};
use sheaf_apiserver::{ApiServer, Config, UserInfo};
use sheaf_runtime::{EventRecorder, Informer, Selection, TaskGroup};
use sheaf_store::sqlite::{Options, SqliteStore};
use tempfile::TempDir;
use tower::ServiceExt;

use crate::server::{Server, file, status};

const MIB: usize = 1 << 20;

/// A server, and as many nodes as are started.
struct Cluster {
    api: ApiServer,
    client: Client,
    dir: TempDir,
    group: TaskGroup,
}

struct TestNode {
    dir: PathBuf,
    volumes: Arc<Volumes>,
}

impl Cluster {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("state.db"), &Options::default()).unwrap();
        let config = Config {
            data_dir: dir.path().into(),
            listen: "127.0.0.1:0".parse().unwrap(),
            extra_sans: Vec::new(),
            server_url: None,
        };
        let api = ApiServer::start(config, Arc::new(store), sheaf_api::kinds()).await.unwrap();
        let client = Client::new(api.in_process(UserInfo::new("admin", [MASTERS])), "default");
        let class: StorageClass = parse(json!({
            "metadata": {"name": "thin"}, "provisioner": "local.sheaf.io", "reclaimPolicy": "Delete",
            "volumeBindingMode": "WaitForFirstConsumer", "allowVolumeExpansion": true,
        }));
        Api::all(client.clone()).create(&PostParams::default(), &class).await.unwrap();
        Cluster { api, client, dir, group: TaskGroup::new() }
    }

    /// A node's images and volumes, with the node's own rights.
    async fn node(&self, name: &str) -> TestNode {
        let user = format!("system:node:{name}");
        let client = Client::new(self.api.in_process(UserInfo::new(&user, [NODES])), "default");
        let keyed = |pair: sheaf_apiserver::pki::KeyedCert| KeyedCertificate {
            certificate_pem: pair.cert_pem,
            key_pem: pair.key_pem,
        };
        let ca = self.api.ca();
        let own = keyed(ca.issue_client(&user, NODES, 1).unwrap());
        let serving = keyed(ca.issue_server(&user, &[name.to_owned(), "127.0.0.1".to_owned()], 1).unwrap());
        let identity = Identity::new(ca.cert_pem().to_owned(), &own, &serving, None).unwrap();

        let dir = self.dir.path().join(name);
        let images_cache = Informer::spawn(&client, &self.group, &Selection::all());
        let nodes_cache = Informer::spawn(&client, &self.group, &Selection::all());
        let images = Images::spawn(&client, &self.group, name, &dir, &identity, &images_cache, &nodes_cache);
        let instances = Informer::spawn(&client, &self.group, &Selection::all());
        let caches = Caches {
            claims: Informer::spawn(&client, &self.group, &Selection::all()),
            volumes: Informer::spawn(&client, &self.group, &Selection::all()),
            classes: Informer::spawn(&client, &self.group, &Selection::all()),
            images: images_cache,
            users: users_of(&instances),
            instances,
        };
        let events = EventRecorder::spawn(&client, &self.group, "local.sheaf.io", name);
        let volumes = Volumes::spawn(&client, &self.group, name, &dir, caches, &images, &events, None);

        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut routes = Routes::default();
        images.routes(&mut routes);
        serve(listener, Arc::new(identity.server_config().unwrap()), routes, &self.group);
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = parse(json!({"metadata": {"name": name}}));
        nodes.create(&PostParams::default(), &node).await.unwrap();
        let state = json!({"status": {
            "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        }});
        nodes.patch_status(name, &PatchParams::default(), &Patch::Merge(state)).await.unwrap();
        TestNode { dir, volumes }
    }

    fn images(&self) -> Api<VirtualMachineImage> {
        Api::default_namespaced(self.client.clone())
    }

    fn claims(&self) -> Api<PersistentVolumeClaim> {
        Api::default_namespaced(self.client.clone())
    }

    fn volumes(&self) -> Api<PersistentVolume> {
        Api::all(self.client.clone())
    }

    async fn image(&self, name: &str, spec: Value) {
        let mut object = json!({
            "apiVersion": "harvesterhci.io/v1beta1", "kind": "VirtualMachineImage",
            "metadata": {"name": name, "annotations": {"sheaf.io/image-node": "n1"}},
            "spec": {"displayName": name},
        });
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        self.images().create(&PostParams::default(), &parse(object)).await.unwrap();
    }

    async fn claim(&self, name: &str, node: &str, image: Option<&str>, size: &str) {
        let mut object = json!({
            "metadata": {"name": name, "annotations": {"volume.kubernetes.io/selected-node": node}},
            "spec": {"storageClassName": "thin", "accessModes": ["ReadWriteMany"], "volumeMode": "Block",
                "resources": {"requests": {"storage": size}}},
        });
        if let Some(image) = image {
            object["metadata"]["annotations"]["harvesterhci.io/imageId"] = json!(image);
        }
        self.claims().create(&PostParams::default(), &parse(object)).await.unwrap();
    }

    /// Waits for a state of an image.
    async fn image_is(&self, name: &str, what: &str, is: impl Fn(&VirtualMachineImageStatus) -> bool) {
        eventually(what, async || {
            let status = self.images().get(name).await.unwrap().status.unwrap_or_default();
            if is(&status) { Ok(()) } else { Err(format!("{status:?}")) }
        })
        .await;
    }

    async fn imported(&self, name: &str) {
        self.image_is(name, "the image is imported", |status| said(status, "Imported").0 == "True").await;
    }

    /// Waits until a claim is bound; its volume.
    async fn bound(&self, name: &str) -> PersistentVolume {
        eventually("the claim is bound", async || {
            let claim = self.claims().get(name).await.unwrap();
            let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
            if phase != Some("Bound") {
                return Err(format!("{:?}", claim.status));
            }
            Ok(self.volumes().get(&claim.spec.unwrap().volume_name.unwrap()).await.unwrap())
        })
        .await
    }

    /// Waits until a claim has a condition with these words.
    async fn held(&self, name: &str, words: &str) {
        eventually(words, async || {
            let status = self.claims().get(name).await.unwrap().status.unwrap_or_default();
            let text = format!("{:?}", status.conditions);
            if text.contains(words) { Ok(()) } else { Err(text) }
        })
        .await;
    }

    async fn upload(&self, name: &str, query: &str, body: Vec<u8>) -> (u16, String) {
        let path = format!("/v1/harvester/harvesterhci.io.virtualmachineimages/default/{name}?{query}");
        let request = http::Request::post(path).body(Full::new(Bytes::from(body))).unwrap();
        let admin = self.api.in_process(UserInfo::new("admin", [MASTERS]));
        let answer = admin.oneshot(request).await.unwrap();
        let code = answer.status().as_u16();
        let text = answer.into_body().collect().await.unwrap().to_bytes();
        (code, String::from_utf8_lossy(&text).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.group.cancel();
    }
}

fn parse<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).unwrap()
}

fn said<'a>(status: &'a VirtualMachineImageStatus, kind: &str) -> (&'a str, &'a str, &'a str) {
    condition(status, kind).map_or(("", "", ""), |c| (&c.status, &c.reason, &c.message))
}

/// A disk with a boot sector, zeroes and data.
fn disk(len: usize) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|i| if (i >> 14) % 3 == 0 { 0 } else { (i >> 6) as u8 }).collect();
    bytes[510..512].copy_from_slice(&[0x55, 0xaa]);
    bytes
}

async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) => assert!(Instant::now() < deadline, "not in time: {what}; last: {last}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What QEMU says of a disk; nothing, said loudly, if its tools are not here.
fn qemu_img(path: &std::path::Path) -> Option<Value> {
    let output =
        Command::new("qemu-img").args(["info", "--output=json", "--backing-chain"]).arg(path).output();
    let Ok(output) = output else {
        eprintln!("SKIPPED in part: qemu-img is not installed (Debian package qemu-utils)");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(serde_json::from_slice(&output.stdout).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_becomes_a_volume_that_outlives_it() {
    let cluster = Cluster::start().await;
    let node = cluster.node("n1").await;
    let bytes = disk(3 * MIB);
    let server = Server::start(move |_, asked| file(asked, &bytes, "\"1\"", MIB));
    // The claim is first: it waits, and says for what.
    cluster.claim("root", "n1", Some("default/debian"), "1Gi").await;
    cluster.held("root", "image default/debian does not exist").await;
    let attached = node.volumes.attach("default", "root").await;
    assert!(
        matches!(&attached, Err(PartError::Missing(text)) if text.contains("does not exist")),
        "{attached:?}"
    );

    cluster.image("debian", json!({"sourceType": "download", "url": server.url("/debian.img")})).await;
    cluster.imported("debian").await;
    let image = cluster.images().get("debian").await.unwrap();
    let uid = image.metadata.uid.unwrap();
    let state = image.status.unwrap();
    assert_eq!((state.progress, state.size, state.virtual_size), (Some(100), Some(3 << 20), Some(3 << 20)));
    assert_eq!(
        (state.applied_url, state.storage_class_name),
        (server.url("/debian.img"), format!("lh-{uid}"))
    );

    let volume = cluster.bound("root").await;
    let spec = volume.spec.unwrap();
    assert_eq!(spec.persistent_volume_reclaim_policy.as_deref(), Some("Delete"));
    assert_eq!(spec.capacity.unwrap()["storage"].0, "1Gi");
    assert_eq!(spec.claim_ref.unwrap().name.as_deref(), Some("root"));
    let Ok(DiskSource::File { path, format, read_only: false }) =
        node.volumes.attach("default", "root").await
    else {
        panic!("not attached")
    };
    assert_eq!(
        (format, path.to_str(), spec.local.map(|l| l.path)),
        (DiskFormat::Qcow2, path.to_str(), path.to_str().map(str::to_owned))
    );
    node.volumes.detach("default", "root").await.unwrap();

    // The image goes at once, its data stays for the volume.
    cluster.images().delete("debian", &DeleteParams::default()).await.unwrap();
    let of_image = node.dir.join("images").join(&uid);
    eventually(
        "the image's files are gone",
        async || if of_image.exists() { Err(uid.clone()) } else { Ok(()) },
    )
    .await;
    if let Some(info) = qemu_img(&path) {
        assert_eq!((&info[0]["virtual-size"], &info[1]["virtual-size"]), (&json!(1 << 30), &json!(3 << 20)));
    }

    // A larger request: the disk grows at once, since nobody uses it.
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    cluster.claims().patch("root", &PatchParams::default(), &Patch::Merge(larger)).await.unwrap();
    eventually("the claim has grown", async || {
        let status = cluster.claims().get("root").await.unwrap().status.unwrap();
        if status.capacity.as_ref().unwrap()["storage"].0 == "2Gi" {
            Ok(())
        } else {
            Err(format!("{status:?}"))
        }
    })
    .await;
    if let Some(info) = qemu_img(&path) {
        assert_eq!(info[0]["virtual-size"], json!(2_i64 << 30));
    }

    cluster.claims().delete("root", &DeleteParams::default()).await.unwrap();
    eventually("claim, volume and file are gone", async || {
        let volumes = cluster.volumes().list(&ListParams::default()).await.unwrap().items;
        let claim = cluster.claims().get_opt("root").await.unwrap();
        if claim.is_none() && volumes.is_empty() && !path.exists() {
            return Ok(());
        }
        Err(format!("{claim:?}\n{volumes:?}\n{}", path.exists()))
    })
    .await;
    let events: Api<Event> = Api::default_namespaced(cluster.client.clone());
    let reasons: Vec<String> = events
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .into_iter()
        .filter_map(|e| e.reason)
        .collect();
    for reason in ["ProvisioningFailed", "ProvisioningSucceeded", "VolumeResizeSuccessful"] {
        assert!(reasons.iter().any(|r| r == reason), "{reason} is not among {reasons:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_download_says_why_and_heals() {
    let cluster = Cluster::start().await;
    let _node = cluster.node("n1").await;
    let bytes = disk(MIB);
    let server =
        Server::start(
            move |n, asked| if n == 0 { status("404 Not Found") } else { file(asked, &bytes, "\"1\"", MIB) },
        );
    let page = Server::start(|_, asked| file(asked, b"<html><body>log in</body></html>", "\"1\"", MIB));
    cluster.image("page", json!({"sourceType": "download", "url": page.url("/x.img"), "retry": 0})).await;
    cluster.image("debian", json!({"sourceType": "download", "url": server.url("/x.img")})).await;
    let words = format!("the image cannot be fetched: HTTP 404 Not Found from {}", server.url("/x.img"));
    cluster
        .image_is("debian", &words, |s| {
            said(s, "Imported") == ("Unknown", "Failed", &words) && s.failed == Some(1)
        })
        .await;
    cluster
        .image_is("page", "an HTML page is refused", |s| {
            said(s, "Imported").0 == "False"
                && said(s, "RetryLimitExceeded").0 == "True"
                && said(s, "Imported").2.contains("this looks like an HTML page, not a disk image")
        })
        .await;
    // A claim passes it on.
    cluster.claim("root", "n1", Some("page"), "1Gi").await;
    cluster.held("root", "this looks like an HTML page").await;
    // After 10 s it is tried again, and the server has the file now.
    cluster.imported("debian").await;
    // What has failed can be deleted.
    cluster.images().delete("page", &DeleteParams::default()).await.unwrap();
    assert!(cluster.images().get_opt("page").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_is_relayed_and_copied_to_another_node() {
    let cluster = Cluster::start().await;
    let first = cluster.node("n1").await;
    let second = cluster.node("n2").await;
    let bytes = disk(2 * MIB);
    cluster.image("up", json!({"sourceType": "upload"})).await;
    cluster.image_is("up", "waiting", |s| said(s, "Imported").2 == "waiting for the upload").await;

    let mut vmdk = b"KDMV".to_vec();
    vmdk.resize(8 * MIB, 7);
    let (code, text) = cluster.upload("up", &format!("action=upload&size={}", 8 * MIB), vmdk).await;
    assert_eq!(code, 400, "{text}");
    assert!(text.contains("this is a VMDK image; convert it with"), "{text}");
    let (code, text) = cluster.upload("up", "action=upload&size=99999999", bytes.clone()).await;
    assert_eq!(code, 400, "{text}");
    assert!(text.contains("2097152 bytes came, 99999999 were announced"), "{text}");
    cluster.image_is("up", "failed", |s| said(s, "Imported").1 == "UploadFailed").await;
    let (code, text) = cluster.upload("up", &format!("action=upload&size={}", 2 * MIB), bytes.clone()).await;
    assert_eq!((code, text.as_str()), (200, ""));
    cluster.imported("up").await;
    let (code, text) = cluster.upload("up", &format!("action=upload&size={}", 2 * MIB), bytes.clone()).await;
    assert_eq!(code, 409, "{text}");

    // A volume on the other node: it fetches the image from the first, by its certificate.
    cluster.claim("far", "n2", Some("default/up"), "1Gi").await;
    let volume = cluster.bound("far").await;
    let path = volume.spec.unwrap().local.unwrap().path;
    assert!(path.starts_with(second.dir.to_str().unwrap()), "{path}");
    let base = std::path::Path::new(&path).with_file_name("base");
    assert!(std::fs::read(base).unwrap() == bytes);
    let refused = first.volumes.attach("default", "far").await;
    assert!(
        matches!(&refused, Err(PartError::Refused(t)) if t.contains("is on node n2, not on n1")),
        "{refused:?}"
    );
    assert!(second.volumes.attach("default", "far").await.is_ok());

    // Too small for its image.
    cluster.claim("small", "n1", Some("default/up"), "1Mi").await;
    cluster
        .held("small", "spec.resources.requests.storage is 1.0 MiB (1048576 bytes), less than the 2.0 MiB")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_in_use_is_held() {
    let cluster = Cluster::start().await;
    let node = cluster.node("n1").await;
    cluster.claim("data", "n1", None, "1Gi").await;
    cluster.bound("data").await;
    let machines: Api<VirtualMachineInstance> = Api::default_namespaced(cluster.client.clone());
    let machine = parse(json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
        "metadata": {"name": "web"},
        "spec": {"domain": {"memory": {"guest": "64Mi"}, "devices": {"disks": [{"name": "d", "disk": {"bus": "virtio"}}]}},
            "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "data"}}]},
    }));
    machines.create(&PostParams::default(), &machine).await.unwrap();
    let running = json!({"status": {"nodeName": "n1", "phase": "Running"}});
    let patch = Patch::Merge(running);
    let status = machines.patch_status("web", &PatchParams::default(), &patch).await;
    if status.is_err() {
        machines.patch("web", &PatchParams::default(), &patch).await.unwrap();
    }
    let Ok(DiskSource::File { path, format: DiskFormat::Raw, .. }) =
        node.volumes.attach("default", "data").await
    else {
        panic!("not attached")
    };
    let larger = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    cluster.claims().patch("data", &PatchParams::default(), &Patch::Merge(larger)).await.unwrap();
    cluster
        .held("data", "the volume grows from 1.0 GiB to 2.0 GiB in machine web, or when that is stopped")
        .await;
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 30);

    cluster.claims().delete("data", &DeleteParams::default()).await.unwrap();
    let going = cluster.claims().get("data").await.unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    assert!(path.exists());
    // The machine ends; its own loop, which is not here, would let the object go.
    let ended = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    machines.patch("web", &PatchParams::default(), &ended).await.unwrap();
    machines.delete("web", &DeleteParams::default()).await.unwrap();
    node.volumes.detach("default", "data").await.unwrap();
    eventually("the claim is let go", async || {
        if path.exists() || cluster.claims().get_opt("data").await.unwrap().is_some() {
            return Err(format!("{:?}", machines.get_opt("web").await.unwrap().map(|m| m.metadata)));
        }
        Ok(())
    })
    .await;
}
