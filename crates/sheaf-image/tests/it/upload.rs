//! Uploads: bare and as a form, complete and broken.

use std::time::Duration;

use http_body_util::{Full, StreamBody};
use hyper::body::{Bytes, Frame};
use sheaf_image::fetch::Progress;
use sheaf_image::intake::{Demands, part_path};
use sheaf_image::upload::receive;
use tokio::sync::watch;

use crate::disk;

#[tokio::test]
async fn an_upload_is_stored() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let bytes = disk(3 << 20);
    let mut form =
        b"--b\r\nContent-Disposition: form-data; name=\"chunk\"; filename=\"blob\"\r\n\r\n".to_vec();
    form.extend(&bytes);
    form.extend(b"\r\n--b--\r\n");
    for (body, kind) in
        [(bytes.clone(), "application/octet-stream"), (form, "multipart/form-data; boundary=b")]
    {
        let progress = watch::Sender::new(Progress::default());
        let demands = Demands { len: Some(bytes.len() as u64), ..Demands::default() };
        let body = Full::new(Bytes::from(body));
        let stored =
            receive(body, Some(kind), &dest, demands, Duration::from_secs(10), &progress).await.unwrap();
        assert_eq!(stored.virtual_size, 3 << 20);
        assert_eq!(std::fs::read(&dest).unwrap(), bytes);
        assert_eq!(*progress.borrow(), Progress { connected: true, received: 3 << 20, total: Some(3 << 20) });
    }
}

#[tokio::test]
async fn a_broken_upload_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dest = dir.path().join("base");
    let demands = Demands { len: Some(8 << 20), ..Demands::default() };
    let progress = watch::Sender::new(Progress::default());
    let stall = Duration::from_millis(20);

    let short = Full::new(Bytes::from(disk(1 << 20)));
    let error = receive(short, None, &dest, demands, stall, &progress).await.unwrap_err();
    assert_eq!(error.to_string(), "1048576 bytes came, 8388608 were announced");

    let pieces = [Ok(Frame::data(Bytes::from(disk(4096)))), Err("gone")];
    let broken = StreamBody::new(futures(pieces));
    let error = receive(broken, None, &dest, demands, stall, &progress).await.unwrap_err();
    assert_eq!(error.to_string(), "the upload broke off after 4096 bytes");

    let silent = StreamBody::new(futures_util::stream::pending::<Result<Frame<Bytes>, std::io::Error>>());
    let error = receive(silent, None, &dest, demands, stall, &progress).await.unwrap_err();
    assert_eq!(error.to_string(), "the upload stalled after 0 bytes: nothing came for 0 s");
    assert!(!dest.exists() && !part_path(&dest).exists());
}

fn futures<T: Unpin, const N: usize>(items: [T; N]) -> impl futures_util::Stream<Item = T> + Unpin {
    futures_util::stream::iter(items)
}
